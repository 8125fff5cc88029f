"""Every limit, every kind of broken request: one sentence, the right status, and the server goes on."""

import contextlib
import http.client
import select
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from msdeform.models.inference.detections import Detections
from msdeform.train.serving import service
from msdeform.train.serving.limits import open_image
from tests.serving.servers import LIMIT, Asking, StandIn, ask, connected, head, picture, serving, shut, until
from tests.serving.test_interface import form


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(StandIn(), max_bytes=20_000, max_pixels=10_000) as port:
        yield port


@pytest.fixture(autouse=True)
def goes_on(port: int) -> Iterator[None]:
    """After each test the server answers as before, and holds no request."""
    yield
    assert ask(port, body=picture()).status == 200
    until(port, "msdeform_requests_under_way 0.0")


def bomb(width: int, height: int) -> bytes:
    """A PNG of one colour, a few bytes long, that would take a byte a pixel."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def everything(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(4096), b""))


JPEG = {"Content-Type": "image/jpeg"}


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b"", JPEG, 400, "the body is empty; expected the bytes of an image"),
        (b"x" * 20_001, JPEG, 413, "the body is longer than 20000 bytes"),
        (iter([b"x" * 9_000] * 3), JPEG, 413, "the body is longer than 20000 bytes"),  # in pieces, of no told length
        (
            b"a=3",
            {"Content-Type": "text/plain"},
            415,
            "Content-Type: expected image/*, application/octet-stream or mul",
        ),
        (b"<svg>" + b" " * 500, JPEG, 415, "the body is no image in JPEG, PNG, WEBP, BMP or TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", JPEG, 415, "the body is no image in"),
        (picture()[:-400], JPEG, 422, "the image cannot be decoded: "),
        (picture(kind="PNG")[:300], JPEG, 422, "the image cannot be decoded: "),
        (picture(101, 100), JPEG, 413, "the image has 100 x 101 pixels, more than 10000"),
        (bomb(20_000, 20_000), JPEG, 413, "the image has "),
        (bomb(60_000, 60_000), JPEG, 413, "the image has more than 10000 pixels"),
        (b"--xyz", {"Content-Type": "multipart/form-data"}, 400, "the form cannot be read: "),
        (*form(picture(), name="photo"), 400, "the form: expected a file in the field image, got photo"),
        (*form(b"abc", filename=""), 400, "the form: expected a file in the field image, got image"),
        (*form(b""), 400, "the form: the field image is empty; expected the bytes of an image"),
    ],
)
def test_what_cannot_be_taken_gets_a_sentence(
    port: int, body: bytes, headers: dict[str, str], status: int, sentence: str
) -> None:
    answer = ask(port, body=body, headers=headers, method="POST")
    assert answer.json.keys() == {"error"}
    assert answer.json["error"].startswith(sentence)
    assert "Traceback" not in answer.json["error"]
    assert answer.status == status


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("confidence=1.5", "confidence: input should be less than or equal to 1, got '1.5'"),
        ("confidence=nan", "confidence: input should be "),
        ("nms=-1", "nms: input should be greater than or equal to 0, got '-1'"),
        ("top_k=0", "top_k: input should be greater than or equal to 1, got '0'"),
        ("top_k=1001", "top_k: input should be less than or equal to 1000, got '1001'"),
        ("top_k=many", "top_k: input should be a valid integer"),
        ("format=gif", "format: input should be 'json', 'jpeg' or 'png', got 'gif'"),
        ("confidance=0.5", "no parameter is called confidance; there are confidence, top_k, nms, format"),
    ],
)
def test_a_wrong_query_gets_a_sentence(port: int, query: str, sentence: str) -> None:
    answer = ask(port, f"/detect?{query}", picture())
    assert answer.status == 422
    assert answer.json["error"].startswith(sentence)


def test_no_pixel_of_a_large_image_is_decoded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    monkeypatch.setattr(service, "decode", decoded.append)
    assert ask(port, body=bomb(200, 51)).status == 413
    assert decoded == []
    assert open_image(bomb(200, 50), 10_000).size == (200, 50)


def test_a_long_body_is_not_read_to_its_end(port: int) -> None:
    """Its length is told first: the answer comes while the client has sent none of it."""
    with connected(port) as client:
        client.sendall(head(10**12).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()


def test_one_more_request_than_may_wait_is_sent_away() -> None:
    model = StandIn()
    with serving(model, max_queue=2, max_batch=1) as port:
        shut(model)
        waiting = [Asking(port, picture(seed=seed)) for seed in range(3)]
        until(port, "msdeform_requests_under_way 3.0")
        answer = ask(port, body=picture())
        assert (answer.status, answer.json) == (503, {"error": "3 requests are under way already; try again later"})
        assert answer.headers["retry-after"] == "1"
        assert ask(port, "/health").status == 200
        model.gate.set()
        assert [one.answer().status for one in waiting] == [200] * 3
        assert ask(port, body=picture()).status == 200


def test_decoded_images_are_held_within_their_budget() -> None:
    """The pixels of two of the largest images; the others wait as files."""
    model = StandIn()
    with serving(model, max_batch=1, max_pixels=3000) as port:
        shut(model)
        waiting = [Asking(port, picture(50, 60, seed=seed)) for seed in range(4)]
        until(port, "msdeform_requests_under_way 4.0")
        until(port, "msdeform_queue_images 1.0")  # beside the one that is computed
        model.gate.set()
        assert [one.answer().status for one in waiting] == [200] * 4


def test_what_takes_too_long_is_given_up_and_not_computed() -> None:
    model = StandIn()
    with serving(model, timeout=0.5, max_batch=1) as port:
        shut(model)
        first = Asking(port, picture(32, 32))
        assert model.entered.acquire(timeout=LIMIT)
        second = ask(port, body=picture(32, 64))
        assert (second.status, second.json) == (504, {"error": "no answer within 0.5 seconds"})
        assert first.answer().status == 504
        model.gate.set()
        assert ask(port, body=picture(64, 32)).status == 200
    assert model.batches == [[(32, 32)], [(64, 32)]]


def test_a_body_that_does_not_come_ends_the_request() -> None:
    with serving(StandIn(), timeout=0.3) as port, connected(port) as client:
        client.sendall(head(1000) + b"\xff\xd8")
        answer = everything(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'{"error":"the body did not come within 0.3 seconds"}' in answer
        until(port, 'msdeform_requests_total{status="408"} 1.0')
        until(port, "msdeform_requests_under_way 0.0")


def test_what_is_not_done_in_time_is_told_when_the_server_ends() -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serving(StandIn(), grace=0.0))
        half = connected(port)
        half.sendall(head(1000) + b"\xff")
        until(port, "msdeform_requests_under_way 1.0")
        stack.close()  # the server ends
        with half:
            answer = everything(half)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'{"error":"the server ended before the answer was found"}' in answer


@pytest.mark.parametrize("sent", [b"", b"POST /detect HTTP/1.1\r\nHost:"])
def test_a_client_that_says_nothing_is_let_go(sent: bytes) -> None:
    with serving(StandIn(), timeout=0.3) as port, connected(port) as client:
        client.sendall(sent)
        assert everything(client) == b""


def test_a_client_that_says_nothing_after_its_first_request_is_let_go() -> None:
    with serving(StandIn(), timeout=0.3) as port, connected(port) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"GET")
        everything(client)


def test_a_client_that_does_not_read_is_let_go() -> None:
    body = picture(1200, 1200)
    with serving(StandIn(), timeout=3.0) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(head(len(body), "/detect?format=png") + body)
        gone = select.poll()
        gone.register(client, 0)
        assert [event & select.POLLERR for _, event in gone.poll(1000 * LIMIT)], "the connection is reset"


def test_a_connection_is_used_again_after_a_refusal(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    sockets = set()
    for body, query in ((b"x" * 20_001, ""), (b"", ""), (picture(), "?top_k=0"), (b"no image", "")):
        connection.request("POST", f"/detect{query}", body)
        assert connection.getresponse().read().startswith(b'{"error":')
        sockets.add(connection.sock)
    connection.close()
    assert len(sockets) == 1
    assert None not in sockets


def test_boxes_that_are_no_numbers_are_told() -> None:
    class Lost(StandIn):
        def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
            found = super().post_process(outputs, target_sizes, top_k)
            for one in found:
                one.boxes[0, 0] = float("inf")
            return found

    with serving(Lost()) as port:
        answer = ask(port, body=picture())
        assert (answer.status, answer.json) == (500, {"error": "the model's boxes are not numbers"})
        assert ask(port, "/detect?format=png", picture()).status == 500


def test_what_the_client_left_is_not_computed() -> None:
    model = StandIn()
    with serving(model, max_batch=1) as port:
        shut(model)
        first = Asking(port, picture(32, 32))
        assert model.entered.acquire(timeout=LIMIT)
        body = picture(32, 64)
        with connected(port) as client:
            client.sendall(head(len(body)) + body)
            until(port, "msdeform_queue_images 1.0")
        until(port, 'msdeform_requests_total{status="499"} 1.0')
        with connected(port) as client:  # in the middle of its body
            client.sendall(head(len(body)) + body[:100])
            until(port, "msdeform_requests_under_way 2.0")
        until(port, 'msdeform_requests_total{status="499"} 2.0')
        model.gate.set()
        assert first.answer().status == 200
        assert ask(port, body=picture(64, 32)).status == 200
    assert model.batches == [[(32, 32)], [(64, 32)]]


def test_a_model_that_fails_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(StandIn()) as port:
        answer = ask(port, body=picture(seed=None))
        assert (answer.status, answer.json) == (500, {"error": "the model failed on this image: RuntimeError"})
        assert ask(port, body=picture()).status == 200
    told = capsys.readouterr().err
    assert told == "msdeform serve: RuntimeError: this stand-in fails on white images\n"


def test_garbage_is_no_end(port: int) -> None:
    for garbage in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        with connected(port) as client:
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            everything(client)


def test_many_at_once_are_all_answered(port: int) -> None:
    wrong: list[int] = []

    def several(seed: int) -> None:
        for _ in range(5):
            answer = ask(port, body=picture(32 + 8 * (seed % 3), 48, seed=seed))
            if answer.status != 200 or len(answer.json["detections"]) != 2:
                wrong.append(answer.status)

    threads = [threading.Thread(target=several, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert wrong == []
