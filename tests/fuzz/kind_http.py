"""Requests to ``msdeform serve``, given to its application without a network: paths, queries, headers and bodies."""

import asyncio
import atexit
import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from msdeform.train.serving.app import create_app
from msdeform.train.serving.options import ServeOptions
from msdeform.train.serving.service import Service
from tests.fuzz.fuzzing import Kind, Outcome, is_one_line
from tests.serving.servers import StandIn, picture

STATUSES = {200, 400, 404, 405, 413, 415, 422}
_MOST = 4000  # bytes of a body
_NAMES = ("confidence", "top_k", "nms", "format", "Confidence", "x\x1b[31m", "")
_VALUES = (
    "0",
    "0.5",
    "1",
    "-1",
    "1e400",
    "nan",
    "inf",
    "7",
    "1000",
    "1001",
    "9" * 400,
    "json",
    "jpeg",
    "png",
    "gif",
    "None",
    "\n",
    "\ud7ff",
    "",
)
_TYPES = (
    *("image/jpeg",) * 6,
    *("", "application/octet-stream", "application/json", "text/html", "IMAGE/PNG; q=1"),
    *("multipart/form-data; boundary=xyz", "multipart/form-data; boundary=xyz", "multipart/form-data"),
    *("multipart/form-data; boundary=\xff", "multipart/form-data; boundary=" + "x" * 300),
)
_ACCEPTS = ("", "*/*", "image/png", "image/jpeg;q=0.1, text/html", "application/json", ",;,", "\xff\xfe")
_LENGTHS = (None, b"0", b"5", b"99999999999999999999", b"-1", b"x", "\u0663".encode())


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    cut: int
    """The body comes in parts of so many bytes."""
    leaves: bool
    """The client goes away after the body, or before its end."""


@cache
def _pictures() -> tuple[bytes, ...]:
    palette = io.BytesIO()
    Image.fromarray(np.eye(9, dtype=np.uint8)).convert("P").save(palette, "PNG")
    kinds = [picture(24, 32, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")]
    return (
        *(one for one in kinds if len(one) < _MOST),
        palette.getvalue(),
        picture(200, 300, quality=1),
        b"GIF89a",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    )


def _changed(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for place, byte in changes:
        if changed:
            at = place % len(changed)
            if byte > 255:
                del changed[at:]
            else:
                changed[at] = byte
    return bytes(changed)


def _form(content: bytes, name: str, filename: str, ends: bool) -> bytes:
    disposition = f'form-data; name="{name}"{filename}'
    head = f"--xyz\r\nContent-Disposition: {disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    return head + content + (b"\r\n--xyz--\r\n" if ends else b"")


_BROKEN = (b"", b"{}", b"[" * 3000, b"x" * (_MOST + 1), b"--xyz", b"--xyz--\r\n")
_changes = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 270)), max_size=4)
_whole = st.integers(0, 8).map(lambda which: _pictures()[which % len(_pictures())])
_image = st.builds(_changed, _whole, _changes | st.just([]))
_part = st.builds(
    _form,
    _image,
    st.sampled_from(("image", "image", "other", "", "image\x00")),
    st.sampled_from(('; filename="a.jpg"', "", '; filename="../../x"', "; filename*=utf-8''%ff")),
    st.booleans(),
)
_forms = _part | st.builds(_changed, _part, _changes) | st.lists(_part, max_size=3).map(b"".join)
_pairs = st.lists(st.tuples(st.sampled_from(_NAMES), st.sampled_from(_VALUES)), max_size=3)


def _query(pairs: list[tuple[str, str]]) -> bytes:
    return "&".join("=".join(pair) for pair in pairs).encode("utf-8", "surrogatepass")


def _headers(kind: str, accept: str, length: bytes | None, expect: bool) -> tuple[tuple[bytes, bytes], ...]:
    known = [(b"content-type", kind.encode("latin-1")), (b"accept", accept.encode("latin-1"))]
    known += [(b"content-length", length)] * (length is not None) + [(b"expect", b"100-continue")] * expect
    return tuple((name, value) for name, value in known if value)


INPUTS = st.builds(
    Asked,
    method=st.sampled_from(("POST",) * 6 + ("GET", "PUT", "HEAD", "X")),
    path=st.sampled_from(
        ("/detect",) * 12 + ("/model", "/health", "/metrics", "/docs", "/../etc", "/\x1b[2J", "/detect/")
    ),
    query=st.just(b"") | _pairs.map(_query) | st.binary(max_size=20),
    headers=st.builds(
        _headers,
        st.sampled_from(_TYPES),
        st.sampled_from(_ACCEPTS),
        st.sampled_from((None,) * 6 + _LENGTHS),
        st.integers(0, 9).map(lambda number: number == 9),
    ),
    body=_whole | _image | _forms | st.binary(max_size=200) | st.sampled_from(_BROKEN),
    cut=st.sampled_from((10_000, 10_000, 100, 7)),
    leaves=st.integers(0, 19).map(lambda number: number == 19),
)


@cache
def _server() -> tuple[asyncio.AbstractEventLoop, Any]:
    """An event loop, and the application in it, whose model has been loaded."""
    options = ServeOptions(source=Path("stand-in"), max_wait=0.0, max_bytes=_MOST, max_pixels=5000)
    service = Service(options, StandIn)
    service.batcher.start()
    service.batcher.loaded.result(60)
    loop = asyncio.new_event_loop()
    atexit.register(service.close, 10)
    return loop, create_app(service)


async def _answer(app: Any, asked: Asked) -> tuple[int | None, bytes, bytes]:
    """Status, type and body of the answer; no status where none came."""
    parts = [asked.body[at : at + asked.cut] for at in range(0, len(asked.body), asked.cut)] or [b""]
    coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    coming[-1]["more_body"] = asked.leaves
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if coming:
            return coming.pop(0)
        if asked.leaves:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""},
        **{"method": asked.method, "path": asked.path, "raw_path": asked.path.encode(), "query_string": asked.query},
        **{"headers": list(asked.headers), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)},
    }
    await asyncio.wait_for(app(scope, receive, send), 50)
    if not sent:
        return None, b"", b""
    kinds = [value for name, value in sent[0]["headers"] if name == b"content-type"]
    return sent[0]["status"], kinds[0] if kinds else b"", b"".join(one.get("body", b"") for one in sent[1:])


def check(asked: Asked) -> Outcome:
    """Detections, a picture or a page; or JSON with one sentence, and a status that says whose mistake it was."""
    loop, app = _server()
    status, kind, body = loop.run_until_complete(_answer(app, asked))
    if asked.leaves and status in (None, 499, *STATUSES):
        return "answered" if status == 200 else "refused"
    assert status in STATUSES, f"{status} {body!r:.300} to {asked}"
    if kind == b"application/json" and asked.method != "HEAD":
        said = json.loads(body)
        if status != 200:
            sentence = said["error"]
            assert list(said) == ["error"], said
            assert 5 < len(sentence) < 600, said
            assert is_one_line(sentence), said
        elif asked.path == "/detect":
            assert len(said["detections"]) <= 1000
            assert all(0 <= one["score"] <= 1 and len(one["box"]) == 4 for one in said["detections"])
    elif kind.startswith(b"image/"):
        Image.open(io.BytesIO(body)).load()
    assert (status == 200) or kind == b"application/json"
    return "answered" if status == 200 else "refused"


KIND = Kind("http", INPUTS, check)
