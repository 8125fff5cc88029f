"""From a request to what is found in its image: read, decode, queue, compute, draw; each step within its limits.

The event loop reads and waits; a few threads decode and draw, and the thread of `Batcher` computes.
"""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from ...models.inference.detections import Detections
from ...models.inference.predictor import Predictor
from ..prediction.pictures import with_boxes
from .batching import Batcher, as_predicted
from .engine import open_detector
from .limits import PixelBudget, Refused, check_type, decode, image_of_form, open_image, read_body
from .metrics import Metrics
from .options import ServeOptions

MOST_DETECTIONS = 1000
GONE = 499
"""The status that is counted where the client went away; nobody reads it."""
_DECODERS = 2
Result = TypeVar("Result")


class Wanted(BaseModel):
    """The query of /detect."""

    model_config = ConfigDict(extra="forbid")

    confidence: float | None = Field(
        None, ge=0, le=1, description="Minimum score; when not given that of each class in the checkpoint, or 0.5."
    )
    top_k: int = Field(100, ge=1, le=MOST_DETECTIONS, description="Most detections.")
    nms: float | None = Field(
        None, ge=0, le=1, description="Of two detections of a class that overlap by a higher IoU, keep the surer alone."
    )
    format: Literal["json", "jpeg", "png"] | None = Field(
        None,
        description="Of the answer; jpeg and png are pictures with boxes. When not given what Accept says, or json.",
    )


class Service:
    """A detector behind its limits. Everything but the constructor and `close` runs in one event loop."""

    def __init__(self, options: ServeOptions, load: Callable[[], Predictor] | None = None) -> None:
        """``load`` gives the detector, of ``options`` when None; it is called by `Batcher.start`."""
        self.options = options
        self.name = options.source.name or options.source.resolve().name
        self.metrics = Metrics(lambda: self.batcher.waiting, lambda: self._inside)
        self.batcher = Batcher(
            load or (lambda: open_detector(options)),
            max_batch=options.max_batch,
            max_wait=options.max_wait / 1000,
            image_size=options.image_size,
            threads=options.threads,
            observe=self.metrics.computed,
        )
        self.closing = False
        """Is the server shutting down?"""
        self._inside = 0
        self._decoded = PixelBudget(2 * options.max_pixels)
        self._pool = ThreadPoolExecutor(_DECODERS, "decode")

    def close(self, limit: float) -> None:
        """Ends the threads, within ``limit`` seconds."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.batcher.close(limit)

    @property
    def not_ready(self) -> str | None:
        """Why no image is taken, or None."""
        if self.closing:
            return "the server is shutting down"
        if not self.batcher.loaded.done():
            return "the model is being loaded"
        return None if self.batcher.loaded.exception() is None else "the model could not be loaded"

    @property
    def model(self) -> Predictor:
        return self.batcher.loaded.result()

    def about(self) -> dict[str, Any]:
        """What is served: name, engine, classes, thresholds, the size of images."""
        size = self.model.resized_to(self.options.image_size)
        return {
            "name": self.name,
            "kind": self.model.kind,
            "engine": self.options.computed_by,
            "classes": self.model.categories,
            "thresholds": self.model.thresholds,
            "image_size": {"shortest": size.short, "longest": size.longest},
        }

    async def detect(self, request: Request, wanted: Wanted, kind: str) -> tuple[Detections, bytes]:
        """What is found in a request's image; and a picture of it, where ``kind`` is jpeg or png.

        Raises Refused, also where the time is up or the client is gone. What then still waits is never computed.
        """
        if self.not_ready is not None:
            raise Refused(503, self.not_ready, unread=True)
        most = self.options.max_queue + self.options.max_batch
        if self._inside >= most:
            raise Refused(503, f"{most} requests are under way already; try again later", unread=True)
        end = asyncio.get_running_loop().time() + self.options.timeout
        self._inside += 1
        try:
            form = check_type(request.headers.get("content-type", ""))
            try:
                async with asyncio.timeout_at(end):
                    body = await read_body(request, self.options.max_bytes)
            except TimeoutError:
                sentence = f"the body did not come within {self.options.timeout:g} seconds"
                raise Refused(408, sentence, unread=True) from None
            if form:
                body = await image_of_form(request, body, self.options.max_bytes)
            return await self._until(end, self._compute(body, wanted, kind), request)
        finally:
            self._inside -= 1

    async def _until(self, end: float, work: Any, request: Request) -> Any:
        """The result of ``work``, which is given up when the time is up or the client is gone."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_gone(request))
        try:
            left = end - asyncio.get_running_loop().time()
            await asyncio.wait({working, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                raise Refused(GONE, "the client went away")
            raise Refused(504, f"no answer within {self.options.timeout:g} seconds")
        finally:
            working.cancel()
            gone.cancel()
            if not working.done():  # until its image is out of the queue
                with suppress(asyncio.CancelledError, Exception):
                    await working

    async def _compute(self, body: bytes, wanted: Wanted, kind: str) -> tuple[Detections, bytes]:
        image = await self._in_pool(lambda: open_image(body, self.options.max_pixels))
        async with self._decoded.holding(image.width * image.height):
            pixels = await self._in_pool(lambda: decode(image))
            try:
                everything = await asyncio.wrap_future(self.batcher.submit(pixels, wanted.top_k))
            except Exception as error:  # whatever a model may raise; its thread goes on
                raise Refused(500, f"the model failed on this image: {type(error).__name__}") from error
            found = as_predicted(everything, wanted.confidence, wanted.nms, self.model)
            if not bool(found.boxes.isfinite().all()):
                raise Refused(500, "the model's boxes are not numbers")
            if kind == "json":
                return found, b""
            return found, await self._in_pool(lambda: _picture(pixels, found, kind))

    async def _in_pool(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


async def _gone(request: Request) -> None:
    """Returns when the client has gone, of a request whose body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _picture(pixels: Any, found: Detections, kind: str) -> bytes:
    file = io.BytesIO()
    with_boxes(pixels, found).save(file, kind.upper(), quality=92)
    return file.getvalue()
