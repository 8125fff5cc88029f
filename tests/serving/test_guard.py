"""Who is answered: this machine's own pages and programs, and others with the token; each refusal is one sentence."""

from pathlib import Path
from typing import Any

import pytest

from msdeform.cli import main
from msdeform.train.serving.app import create_app
from msdeform.train.serving.guard import Guard, is_loopback, token_for
from msdeform.train.serving.options import ServeOptions
from msdeform.train.serving.service import Service
from tests.serving.servers import StandIn, ask, picture, serving

TOKEN = "a-token-of-the-tests-0123456789"
PATHS = ("/detect", "/model", "/metrics", "/docs", "/openapi.json", "/health", "/ready", "/nowhere")


@pytest.fixture(scope="module")
def local() -> Any:
    with serving(StandIn(), allowed_host=("photos.example",)) as port:
        yield port


@pytest.fixture(scope="module")
def reached() -> Any:
    """As `--host 0.0.0.0`: a server that other machines reach."""
    with serving(StandIn(), host="0.0.0.0", token=TOKEN) as port:
        yield port


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        *(("localhost", True), ("LOCALHOST:8000", True), ("127.0.0.1:{port}", True), ("[::1]:{port}", True)),
        *(("photos.example", True), ("photos.example:443", True)),
        *(("evil.example", False), ("evil.example:{port}", False), ("localhost.evil.example", False)),
        *(("127.0.0.1.evil.example", False), ("evil.example@localhost:x", False), ("[", False), ("0.0.0.0", False)),
        *(("127.0.0.2", False), ("localhost,evil.example", False), ("evil.example#localhost", False)),
    ],
)
def test_a_name_that_a_site_made_ours_is_refused(local: int, host: str, answered: bool) -> None:
    """DNS rebinding: the site's name leads to this machine, and its own page would read every answer."""
    for path in PATHS:
        answer = ask(local, path, headers={"Host": host.format(port=local)})
        assert (answer.status != 421) == answered, path
        if not answered:
            assert answer.json["error"].startswith("Host: expected a name of this machine, such as localhost, got ")


@pytest.mark.parametrize(
    ("origin", "answered"),
    [
        *((None, True), ("http://127.0.0.1:{port}", True)),
        *(
            ("http://evil.example", False),
            ("null", False),
            ("http://127.0.0.1", False),
            ("http://localhost:{port}", False),
        ),
        *(("http://127.0.0.1:{port}.evil.example", False), ("", False)),
    ],
)
def test_a_page_of_another_server_posts_nothing(local: int, origin: str | None, answered: bool) -> None:
    headers = {} if origin is None else {"Origin": origin.format(port=local)}
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = ask(local, body=picture(), headers=headers, method=method)
        assert (answer.status != 403) == answered, method
        assert method != "POST" or answer.status == (200 if answered else 403)
        if not answered:
            assert answer.json["error"].startswith("Origin: expected a page of this server, or none, got ")


def test_beyond_loopback_every_request_needs_the_token(reached: int) -> None:
    for path in PATHS:
        for headers in (
            {},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer \xe9"},
            {"Cookie": f"msdeform-{reached}=wrong"},
            {"Cookie": f"msdeform-1={TOKEN}"},
            {"Cookie": "=;;=\x80"},
        ):
            answer = ask(reached, path, headers=headers)
            if path in ("/health", "/ready"):
                assert answer.status == 200
                continue
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), (path, headers)
            assert "\n" not in answer.json["error"]
    assert ask(reached, body=picture()).status == 401
    assert ask(reached, f"/detect?token={TOKEN}", picture()).status == 401  # addresses end up in logs
    for scheme in ("Bearer", "bearer"):
        assert ask(reached, body=picture(), headers={"Authorization": f"{scheme} {TOKEN}"}).status == 200


def test_a_browser_comes_in_by_an_address_with_the_token(reached: int) -> None:
    assert ask(reached, "/docs?token=wrong").status == 401
    answer = ask(reached, f"/docs?token={TOKEN}&more=1")
    assert (answer.status, answer.headers["location"]) == (303, "/docs?more=1")
    cookie = answer.headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=lax" in cookie.lower()
    assert ask(reached, "/docs", headers={"Cookie": cookie.split(";")[0]}).status == 200
    assert ask(reached, f"//evil.example/?token={TOKEN}").headers["location"] == "/evil.example/"


def test_the_cookie_opens_nothing_to_a_page_of_another_server(reached: int) -> None:
    headers = {"Cookie": f"msdeform-{reached}={TOKEN}", "Origin": "http://evil.example"}
    assert ask(reached, body=picture(), headers=headers).status == 403


def test_every_answer_has_the_policy(local: int, reached: int) -> None:
    answers = [ask(local, path) for path in PATHS]
    answers += [
        ask(local, "/health", headers={"Host": "evil.example"}),
        ask(reached, "/docs"),
        ask(local, body=picture()),
    ]
    answers.append(ask(local, body=b"no image"))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert policy.endswith("; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_a_refused_body_is_not_waited_for(reached: int) -> None:
    answer = ask(reached, body=b"0" * 3_000_000, headers={"Content-Type": "image/jpeg"})
    assert answer.status == 401


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        *(("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.0.5", False), ("example.org", False), ("", False)),
    ],
)
def test_which_addresses_this_machine_has_for_itself(host: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSDEFORM_TOKEN", raising=False)
    assert is_loopback(host) == alone
    token, new = token_for(host, None)
    assert (token is None, new) == (alone, not alone)
    assert token_for(host, TOKEN) == (TOKEN, False)
    monkeypatch.setenv("MSDEFORM_TOKEN", TOKEN)
    assert token_for(host, None) == (TOKEN, False)
    monkeypatch.setenv("MSDEFORM_TOKEN", "short")
    with pytest.raises(ValueError, match="^MSDEFORM_TOKEN: expected 16 or more of letters, digits"):
        token_for(host, None)


def test_new_tokens_differ() -> None:
    found = {token_for("0.0.0.0", None)[0] for _ in range(100)}
    assert len(found) == 100
    assert min(map(len, map(str, found))) >= 43  # 256 bits


def test_no_application_is_made_beyond_loopback_without_a_token() -> None:
    with pytest.raises(ValueError, match=r"host: a server at 0\.0\.0\.0 .* needs a token; got none"):
        Guard(create_app(Service(ServeOptions(source=Path("x")))), host="0.0.0.0", token=None, policy="")


@pytest.mark.parametrize("token", ["", "short", "with a space in it", "a" * 15, "\xe9" * 20, "a" * 16 + "\n"])
def test_a_token_that_could_be_guessed_is_refused(token: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", __file__, "--token", token])
    assert caught.value.code == 2
    assert "token: expected 16 or more of letters, digits" in " ".join(capsys.readouterr().err.split())
