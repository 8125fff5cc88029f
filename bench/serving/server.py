"""A server of ``msdeform serve`` as a process, and what is asked of it and expected from it."""

import contextlib
import http.client
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...models.export.check import like_a_photograph
from ...models.inference.detections import Detections
from ...models.inference.images import IMAGENET_MEAN, IMAGENET_STD, SUFFIXES
from ...models.inference.predictor import Predictor
from ...models.zoo import create_model
from ...train.serving.engine import open_detector
from ...train.serving.options import ServeOptions as Served
from ..options import ServeOptions

TOP_K = 10
"""Detections that each request asks for, of any score."""
QUERY = f"/detect?confidence=0&top_k={TOP_K}"
_PICTURES = 8  # made, or files of a folder
_START = 300.0  # seconds until a server is ready
# of two forward passes, one of them of more images: sums in another order
_SCORE, _PIXELS = 1e-3, 0.5


@dataclass(frozen=True)
class Subject:
    """What is served, and what is sent to it."""

    model: str
    source: Path
    options: ServeOptions
    bodies: list[bytes]
    image: str
    """Height and width of the pictures, or that they are photographs."""

    def served(self) -> Served:
        """The server's options, of what decides its answers."""
        size = self.options.image_size
        if size is None and self.options.checkpoint is None:  # random weights know no size
            size = max(map(int, self.options.image.split("x")))
        return Served(source=self.source, device=self.options.device, image_size=size, threads=self.options.threads)


@contextlib.contextmanager
def subject(options: ServeOptions) -> Iterator[Subject]:
    """What the options name; random weights lie in a folder that goes with the block."""
    made = [_made(options.image, seed) for seed in range(_PICTURES)] if options.images is None else []
    bodies = made or _photographs(options.images or Path())
    image = options.image if made else "photographs"
    with tempfile.TemporaryDirectory() as folder:
        if options.checkpoint is not None:
            yield Subject(options.checkpoint.name, options.checkpoint, options, bodies, image)
            return
        torch.manual_seed(0)
        source = Path(folder) / options.model
        create_model(options.model).save_pretrained(source)
        yield Subject(options.model, source, options, bodies, image)


def _made(image: str, seed: int) -> bytes:
    height, width = map(int, image.split("x"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((like_a_photograph((height, width), seed) * std + mean) * 255).clamp(0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _photographs(folder: Path) -> list[bytes]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)[:_PICTURES]
    if not files:
        raise ValueError(f"images: expected photographs in {folder}, found none")
    return [file.read_bytes() for file in files]


def open_model(what: Subject) -> Predictor:
    """The same detector in this process."""
    options = what.served()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return open_detector(options)


def expected(what: Subject, model: Predictor) -> list[Detections]:
    """What is found in each picture: more than a request asks for, since what is nearly equal may change places."""
    size = what.served().image_size
    return [
        model.predict(Image.open(io.BytesIO(body)), confidence=0.0, top_k=4 * TOP_K, size=size) for body in what.bodies
    ]


def is_right(answer: dict[str, Any], whole: Detections) -> bool:
    """Does an answer have the best scores, and is each of its detections one of those expected?"""
    found = answer["detections"]
    scores = torch.tensor([one["score"] for one in found])
    if answer["image"] != dict(zip(("height", "width"), whole.image_size, strict=True)):
        return False
    if len(found) != min(TOP_K, len(whole)) or bool(((scores - whole.scores[: len(found)]).abs() > _SCORE).any()):
        return False
    for one in found:
        near = (whole.boxes - torch.tensor(one["box"])).abs().amax(1) < _PIXELS
        if not bool((near & (whole.labels == one["label"]) & ((whole.scores - one["score"]).abs() < _SCORE)).any()):
            return False
    return True


@dataclass
class Running:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    port: int
    errors: Any
    """The file of what it says on standard error."""

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        answer = get(self.port, "/metrics").decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer, re.M)
        return 0.0 if found is None else float(found[1])

    def tracebacks(self) -> int:
        """How many it printed."""
        self.errors.seek(0)
        return self.errors.read().count(b"Traceback")


@contextlib.contextmanager
def running(what: Subject, *words: str) -> Iterator[Running]:
    """A server of this subject, in a process that ends with the block.

    Raises RuntimeError when it does not start, with the last that it said.
    """
    options = what.served()
    line = [sys.executable, "-m", "msdeform", "serve", str(what.source), "--port", "0", "--device", options.device]
    line += ["--max-batch", str(what.options.max_batch), "--max-wait", str(what.options.max_wait), *words]
    line += [] if options.image_size is None else ["--image-size", str(options.image_size)]
    line += [] if options.threads is None else ["--threads", str(options.threads)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        hanging = threading.Timer(_START, process.kill)
        hanging.start()
        try:
            assert process.stdout is not None
            said = re.search(rb"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            if said is None:
                process.wait()
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise RuntimeError(f"the server did not start: {last}")
            hanging.cancel()
            yield Running(process, int(said[1]), errors)
        finally:
            hanging.cancel()
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


def detect(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and answer of one request over a connection that is kept."""
    connection.request("POST", QUERY, body, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def in_threads(clients: int, work: Any) -> Sequence[Any]:
    """What ``work(number)`` returns in each of so many threads; the first error of any is raised."""
    results: list[Any] = [None] * clients
    errors: list[BaseException] = []

    def call(number: int) -> None:
        try:
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
