"""One thread that runs the model, and the queue before it, in which images of one size find together.

An image waits a few milliseconds for others. Only images that the model resizes to one same size are computed
together: those of different sizes would be padded, and padding moves what these models find.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...models.inference.detections import Detections
from ...models.inference.predictor import Predictor

Observe = Callable[[int, float], None]
"""Told of each forward pass: its images, and the seconds it took."""


@dataclass(eq=False)
class Job:
    """An image that waits for the model."""

    pixels: Tensor
    """RGB (3, H, W) uint8."""
    top_k: int
    size: tuple[int, int]
    """The height and width that the model resizes it to."""
    found: Future[Detections] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Loads the model in a thread of its own, and runs it there for all that is submitted.

    Args:
        load: gives the model.
        max_batch: most images of a forward pass.
        max_wait: seconds that an image waits for others.
        image_size: as the argument ``size`` of `Predictor.predict`.
        threads: of PyTorch on a CPU; its own number when None.
        observe: called after each forward pass.
    """

    def __init__(
        self,
        load: Callable[[], Predictor],
        *,
        max_batch: int = 8,
        max_wait: float = 0.005,
        image_size: int | None = None,
        threads: int | None = None,
        observe: Observe = lambda images, seconds: None,
    ) -> None:
        self.loaded: Future[Predictor] = Future()
        """The model, once it has computed a first image; or why there is none."""
        self._load, self._threads, self._observe = load, threads, observe
        self._max_batch, self._max_wait, self._image_size = max_batch, max_wait, image_size
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait for the model."""
        return len(self._waiting)

    def submit(self, pixels: Tensor, top_k: int) -> Future[Detections]:
        """What will be found in an image (3, H, W) uint8: at most ``top_k`` detections of any score, best first.

        A future that is cancelled before its image is taken is never computed. Raises RuntimeError after `close`.
        """
        height, width = pixels.shape[1:]
        job = Job(pixels, top_k, self.loaded.result().resized_to(self._image_size).fit(height, width))
        with self._changed:
            if self._closed:
                raise RuntimeError("the server is shutting down")
            self._waiting.append(job)
            self._changed.notify()
        return job.found

    def hurry(self) -> None:
        """From now on no image waits for others."""
        with self._changed:
            self._max_wait = 0.0
            self._changed.notify()

    def close(self, limit: float | None = None) -> None:
        """Computes what waits, and ends the thread, for which it waits at most ``limit`` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(limit)

    def _work(self) -> None:
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            model = self._load()
            # the first pass compiles and allocates: nobody should wait for that, and a model that fails is told at once
            model.predict(torch.zeros(3, 64, 64, dtype=torch.uint8), confidence=0.0, size=self._image_size)
        except BaseException as error:
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(model)
        while batch := self._next():
            self._run(model, batch)
            del batch  # or its images would be held until the next come

    def _next(self) -> list[Job]:
        """The next batch, of one size, the oldest image's; empty when closed and done."""
        with self._changed:
            while True:
                # those that nobody waits for any more
                for job in [job for job in self._waiting if job.found.cancelled()]:
                    self._waiting.remove(job)
                if not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                oldest = self._waiting[0]
                batch = [job for job in self._waiting if job.size == oldest.size][: self._max_batch]
                left = oldest.arrived + self._max_wait - time.monotonic()
                if len(batch) < self._max_batch and left > 0 and not self._closed:
                    self._changed.wait(left)
                    continue
                for job in batch:
                    self._waiting.remove(job)
                # from here on it is computed; one that was given up at the last moment is left out
                if taken := [job for job in batch if job.found.set_running_or_notify_cancel()]:
                    return taken

    def _run(self, model: Predictor, batch: list[Job]) -> None:
        begun = time.perf_counter()
        try:
            found = list(
                model.predict_each(
                    [job.pixels for job in batch],
                    confidence=0.0,
                    size=self._image_size,
                    batch_size=len(batch),
                    top_k=max(job.top_k for job in batch),
                )
            )
        except Exception as error:
            if len(batch) == 1:
                print(f"msdeform serve: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                batch[0].found.set_exception(error)
                return
            for job in batch:  # one image's failure is no other's
                self._run(model, [job])
            return
        self._observe(len(batch), time.perf_counter() - begun)
        for job, one in zip(batch, found, strict=True):
            job.found.set_result(best(one, job.top_k))


def best(found: Detections, top_k: int) -> Detections:
    """The first ``top_k``."""
    if len(found) <= top_k:
        return found
    kept = slice(top_k)
    return Detections(found.boxes[kept], found.labels[kept], found.scores[kept], found.image_size, found.names[kept])


def as_predicted(found: Detections, confidence: float | None, nms: float | None, model: Predictor) -> Detections:
    """Of detections of any score, what `Predictor.predict` keeps by these arguments."""
    found = found if nms is None else found.without_duplicates(nms)
    usual = 0.5 if model.thresholds is None else model.thresholds
    return found.at_least(usual if confidence is None else confidence)
