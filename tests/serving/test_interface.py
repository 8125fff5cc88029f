"""What the server answers: detections, pictures, what it is, what it counts."""

import http.client
import io
import re
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import msdeform
from msdeform.models.inference.predictor import Predictor
from msdeform.train.serving.options import ServeOptions
from tests.serving.servers import LIMIT, StandIn, ask, picture, serving, until


def form(content: bytes, name: str = "image", filename: str = 'filename="a.jpg"') -> tuple[bytes, dict[str, str]]:
    """Body and headers of a multipart form."""
    disposition = f'form-data; name="{name}"{"; " if filename else ""}{filename}'
    head = f"--xyz\r\nContent-Disposition: {disposition}\r\nContent-Type: image/jpeg\r\n\r\n"
    return head.encode() + content + b"\r\n--xyz--\r\n", {"Content-Type": "multipart/form-data; boundary=xyz"}


def turned() -> bytes:
    """A photograph that lies on its side in the file, and is 40 wide and 56 high as displayed."""
    tags = Image.Exif()
    tags[0x0112] = 6
    return picture(40, 56, exif=tags.tobytes())


def test_detections_are_those_of_predict() -> None:
    torch.manual_seed(0)
    model = msdeform.create_model("detr_tiny").eval()
    with serving(model, image_size=64) as port:
        for body in (picture(), turned(), picture(kind="PNG"), picture(kind="WEBP")):
            answer = ask(port, "/detect?confidence=0.01&top_k=7&nms=0.6", body)
            assert answer.status == 200
            expected = model.predict(Image.open(io.BytesIO(body)), size=64, confidence=0.01, top_k=7, nms=0.6)
            assert answer.json["image"] == dict(zip(("height", "width"), expected.image_size, strict=True))
            detections = answer.json["detections"]
            assert [one["name"] for one in detections] == expected.names
            assert [one["label"] for one in detections] == expected.labels.tolist()
            torch.testing.assert_close(torch.tensor([one["score"] for one in detections]), expected.scores)
            torch.testing.assert_close(torch.tensor([one["box"] for one in detections]), expected.boxes)
            assert answer.json["model"] == "stand-in"
            assert answer.json["milliseconds"] > 0
    assert expected.image_size == (40, 56)


def test_an_image_may_come_in_a_form() -> None:
    with serving(StandIn()) as port:
        plain = ask(port, body=picture()).json["detections"]
        assert len(plain) == 2  # of at least 0.5
        assert ask(port, "/detect", *form(picture())).json["detections"] == plain


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("?format=jpeg", "", "JPEG"),
        ("?format=png", "application/json", "PNG"),
        ("", "image/png", "PNG"),
        ("", "text/html, image/jpeg;q=0.5", "JPEG"),
        ("", "application/json, image/jpeg", None),
        ("", "*/*", None),
        ("?format=json", "image/png", None),
    ],
)
def test_a_picture_comes_where_one_is_asked_for(
    served: tuple[int, StandIn], query: str, accept: str, kind: str | None
) -> None:
    answer = ask(served[0], f"/detect{query}", turned(), {"Accept": accept} if accept else {})
    assert answer.status == 200
    if kind is None:
        assert answer.headers["content-type"] == "application/json"
        assert answer.json["image"] == {"height": 56, "width": 40}
        return
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    drawn = Image.open(io.BytesIO(answer.body))
    assert (drawn.format, drawn.size) == (kind, (40, 56))
    # upright, with boxes in it
    plain = Image.open(io.BytesIO(turned())).transpose(Image.Transpose.ROTATE_270)
    assert drawn.convert("RGB").tobytes() != plain.tobytes()


@pytest.fixture(scope="module")
def served() -> object:
    model = StandIn()
    with serving(model, max_bytes=20_000, max_pixels=10_000) as port:
        yield port, model


def test_what_is_served_is_told(served: tuple[int, StandIn]) -> None:
    assert ask(served[0], "/model").json == {
        "name": "stand-in",
        "kind": "StandIn",
        "engine": "pytorch",
        "classes": ["cat", "dog", "cow"],
        "thresholds": None,
        "image_size": {"shortest": 32, "longest": 64},
    }
    assert ask(served[0], "/health").json == {"status": "alive"}
    assert ask(served[0], "/ready").json == {"status": "ready"}


def test_a_path_that_is_not_there_is_told_in_a_sentence(served: tuple[int, StandIn]) -> None:
    assert ask(served[0], "/detct").json == {"error": "GET /detct: not found"}
    answer = ask(served[0], "/detect", method="GET")
    assert (answer.status, answer.json) == (405, {"error": "GET /detect: method not allowed"})


def test_the_page_needs_no_network_and_has_every_path(served: tuple[int, StandIn]) -> None:
    page = ask(served[0], "/docs").body.decode()
    assert not re.search(r"https?://|<script|<link|@import|src=", page)
    paths = ask(served[0], "/openapi.json").json["paths"]
    assert {"/detect", "/health", "/ready", "/model", "/metrics"} == paths.keys()
    assert all(f" {path}</code>" in page for path in paths)
    for words in ("confidence", "number from 0 to 1", "json or jpeg or png", "multipart/form-data", "408", "413"):
        assert words in page


def test_metrics_count_what_happened() -> None:
    with serving(StandIn()) as port:
        for body in (picture(), picture(), b"no image"):
            ask(port, body=body)
        ask(port, "/detect?top_k=0", picture())
        answer = ask(port, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.body.decode().splitlines()
    for line in (
        'msdeform_requests_total{status="200"} 2.0',
        'msdeform_requests_total{status="415"} 1.0',
        'msdeform_requests_total{status="422"} 1.0',
        "msdeform_request_seconds_count 4.0",
        'msdeform_request_seconds_bucket{le="+Inf"} 4.0',
        'msdeform_batch_images_bucket{le="1.0"} 2.0',
        "msdeform_model_seconds_count 2.0",
        "msdeform_queue_images 0.0",
        "msdeform_requests_under_way 0.0",
    ):
        assert line in lines, line
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


def test_images_of_one_size_that_wait_are_computed_together() -> None:
    with serving(StandIn(), max_wait=30_000.0, max_batch=2) as port:
        threads = [threading.Thread(target=ask, args=(port, "/detect", picture(seed=seed))) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        until(port, 'msdeform_batch_images_bucket{le="1.0"} 0.0')
        until(port, 'msdeform_batch_images_bucket{le="2.0"} 1.0')


def test_an_answer_is_sent_at_once(served: tuple[int, StandIn]) -> None:
    """On a connection that is kept, where the system holds back what follows an unacknowledged part, for 40 ms."""
    connection = http.client.HTTPConnection("127.0.0.1", served[0], timeout=LIMIT)
    taken = []
    for _ in range(10):
        begun = time.monotonic()
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        taken.append(time.monotonic() - begun)
    connection.close()
    assert sorted(taken)[5] < 0.03


def test_it_is_not_ready_before_its_model_is() -> None:
    model, loading = StandIn(), threading.Event()

    def load() -> Predictor:
        assert loading.wait(LIMIT)
        return model

    with serving(model, wait=False, load=load) as port:
        try:
            assert ask(port, "/health").status == 200
            for path, body in (("/ready", None), ("/model", None), ("/detect", picture())):
                answer = ask(port, path, body)
                assert (answer.status, answer.json) == (503, {"error": "the model is being loaded"})
                assert answer.headers["retry-after"] == "1"
        finally:
            loading.set()
        for _ in range(5000):
            if ask(port, "/ready").status == 200:
                break
        assert ask(port, body=picture()).status == 200


def test_the_engine_is_the_usual_one_of_a_source() -> None:

    assert ServeOptions(source=Path("run")).computed_by == "pytorch"
    assert ServeOptions(source=Path("a.onnx")).computed_by == "onnxruntime"
    assert ServeOptions(source=Path("a.xml")).computed_by == "openvino"
    assert ServeOptions(source=Path("a.onnx"), engine="openvino").computed_by == "openvino"
    assert ServeOptions(source=Path("a.pt2")).computed_by == "pytorch"
