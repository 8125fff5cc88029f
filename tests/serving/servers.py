"""A server in a thread of the test, a model that waits for the test, and clients."""

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msdeform.models.inference.detections import Detections
from msdeform.models.inference.image_size import Size
from msdeform.models.inference.predictor import Predictor
from msdeform.train.serving.app import create_app
from msdeform.train.serving.command import listen
from msdeform.train.serving.listening import Server, configuration
from msdeform.train.serving.options import ServeOptions
from msdeform.train.serving.service import Service

LIMIT = 30.0  # seconds that a test waits for anything


class StandIn(Predictor):
    """Finds three boxes whose scores are made of the image's mean; waits while ``gate`` is shut; fails on white."""

    input_size = Size(32, 64)

    def __init__(self) -> None:
        super().__init__()
        self.categories = ["cat", "dog", "cow"]
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[tuple[int, ...]]] = []

    def forward(self, images: list[Tensor]) -> dict[str, Any]:
        self.entered.release()
        assert self.gate.wait(LIMIT)
        self.batches.append([tuple(image.shape[1:]) for image in images])
        means = torch.stack([image.mean() for image in images])
        if means.max() > 2.3:
            raise RuntimeError("this stand-in fails on white images")
        return {"means": means}

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
        found = []
        for mean, size in zip(outputs["means"], target_sizes.tolist(), strict=True):
            scores = (torch.tensor([0.9, 0.8, 0.3]) - mean.abs() / 100)[:top_k]
            boxes = torch.tensor([[1.0, 1, 9, 9], [1, 1, 9, 8], [3, 3, 20, 20]])[:top_k]
            found.append(Detections(boxes, torch.tensor([0, 0, 2])[:top_k], scores, tuple(size)))
        return found


def shut(model: StandIn) -> None:
    """From now on its passes wait, and the first that begins is told by ``entered``."""
    model.gate.clear()
    while model.entered.acquire(blocking=False):
        pass
    model.batches.clear()


def picture(height: int = 40, width: int = 56, kind: str = "JPEG", seed: int | None = 0, **settings: Any) -> bytes:
    """An image file of noise; of white where ``seed`` is None."""
    shape = (height, width, 3)
    pixels = np.full(shape, 255) if seed is None else np.random.default_rng(seed).integers(0, 256, shape)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind, **settings)
    return file.getvalue()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int, path: str = "/detect", body: Any = None, headers: dict[str, str] | None = None, method: str = ""
) -> Answer:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def head(length: int, path: str = "/detect") -> bytes:
    """Of a request whose body the test sends by itself, or never."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


@dataclass
class Asking:
    """A request that a thread waits for."""

    port: int
    body: bytes
    path: str = "/detect"
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=lambda: self.answers.append(ask(self.port, self.path, self.body)))
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join(LIMIT)
        return self.answers[0]


def until(port: int, line: str) -> None:
    """Waits until /metrics has this line."""
    for _ in range(5000):
        if line.encode() in ask(port, "/metrics").body.splitlines():
            return
    raise AssertionError(f"/metrics never had {line}: {ask(port, '/metrics').body.decode()}")


@contextmanager
def serving(model: Predictor, *, wait: bool = True, load: Any = None, **options: Any) -> Iterator[int]:
    """The port of a server of this model, which ends with the block."""
    settings = ServeOptions(source=Path("stand-in"), **{"grace": 1.0, "max_wait": 0.0, **options})
    service = Service(settings, load or (lambda: model))
    with listen("127.0.0.1", 0) as listening:
        port: int = listening.getsockname()[1]
        server = Server(configuration(create_app(service), settings), service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            if wait:
                service.batcher.loaded.result(LIMIT)
            yield port
        finally:
            server.should_exit = True
            thread.join(LIMIT)
            service.close(LIMIT)
    assert not thread.is_alive()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), LIMIT)
