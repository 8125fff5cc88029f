"""Who is answered: a server on this machine answers its own pages alone, and one that others reach needs a token.

A page of any site can make its reader's browser ask servers on the reader's machine. Two checks refuse that: the name
that the browser believes to ask (the header Host) has to be one of this machine, or a site could call its own name
ours; and a request that changes something has to come from our own page (the header Origin).
"""

import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import drain
from .options import TOKEN, TOKEN_IN_WORDS

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_READING = ("GET", "HEAD", "OPTIONS")


class Refusal(NamedTuple):
    status: int
    sentence: str


def is_loopback(host: str) -> bool:
    """Does a server at this address answer its own machine alone?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token_for(host: str, given: str | None) -> tuple[str | None, bool]:
    """The token of a server at ``host``, and whether it is a new one, made where other machines reach the server.

    It is the given one, or that of the environment. Raises ValueError where that could be guessed.
    """
    named = given or os.environ.get("MSDEFORM_TOKEN")
    if named and not re.fullmatch(TOKEN, named):
        raise ValueError(f"MSDEFORM_TOKEN: expected {TOKEN_IN_WORDS}")
    if named or is_loopback(host):
        return named or None, False
    return secrets.token_urlsafe(32), True


class Guard:
    """Refuses requests with one sentence before ``app`` sees them, and adds headers to every answer.

    Args:
        host: address that is listened at.
        token: what has to come in the header Authorization, or once in the query of a page; None on loopback alone.
        names: by which the server may be called on loopback, beside its own.
        free: paths that need no token.
        policy: the content security policy of every answer.

    Raises ValueError for an address beyond loopback without a token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        token: str | None,
        names: Collection[str] = (),
        free: Collection[str] = (),
        policy: str,
    ) -> None:
        if token is None and not is_loopback(host):
            raise ValueError(f"host: a server at {host} is reached from other machines, and needs a token; got none")
        self._app, self._token, self._free = app, token, free
        # who has the token was told it; a site that only calls its own name ours was not
        self._names = {*_LOOPBACK, host.lower(), *map(str.lower, names)} if is_loopback(host) else None
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing of ours speaks anything else
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        answer = self._entry(scope)
        refusal = None if answer else self._refusal(scope)
        if refusal:
            closing = {} if await drain(Request(scope, receive)) else {"Connection": "close"}
            asking = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
            answer = JSONResponse({"error": refusal.sentence}, refusal.status, {**closing, **asking})
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Why a request is not answered."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._names is not None and host and _name(host) not in self._names:
            return Refusal(421, f"Host: expected a name of this machine, such as localhost, got {host:.100}")
        origin = headers.get("origin")
        if scope["method"] not in _READING and origin is not None and urlsplit(origin).netloc != host:
            return Refusal(403, f"Origin: expected a page of this server, or none, got {origin:.100}")
        if self._token is None or scope["path"] in self._free:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if (scheme.lower() == "bearer" and self._right(given.strip())) or self._right(_cookie(headers, scope)):
            return None
        return Refusal(401, "the token is missing or wrong; expected the header Authorization: Bearer TOKEN")

    def _entry(self, scope: Scope) -> Response | None:
        """Of a page's address with the right token in it: to the page without it, which a cookie opens from now on."""
        query = QueryParams(scope["query_string"])
        if self._token is None or scope["method"] != "GET" or not self._right(query.get("token", "")):
            return None
        rest = urlencode([(name, value) for name, value in query.multi_items() if name != "token"])
        # never another server's, as //name would be
        answer = RedirectResponse(f"/{scope['path'].lstrip('/')}{'?' * bool(rest)}{rest}", 303)
        answer.set_cookie(_cookie_name(scope), self._token, httponly=True, samesite="lax")
        return answer

    def _right(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())


def _name(host: str) -> str | None:
    """The name in a header Host, which may have a port."""
    found = re.fullmatch(r"(?:\[([\da-f:.]+)\]|([\w.-]+))(?::\d+)?", host.lower())
    return found and (found[1] or found[2])


def _cookie_name(scope: Scope) -> str:
    """By port, since the servers of a machine share their cookies."""
    return f"msdeform-{(scope.get('server') or (None, 0))[1]}"


def _cookie(headers: Headers, scope: Scope) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(_cookie_name(scope))
    except CookieError:
        return ""
    return "" if found is None else found.value
