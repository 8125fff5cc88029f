"""Pictures and videos with the detections drawn in, made by a thread while the next images are detected."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from torch import Tensor

from ...models.inference.detections import Detections
from ..visual.boxes import Box, draw_boxes, save_picture
from .sources import Frame, Source
from .video import VideoWriter

# pictures that wait for the thread; more would be held in memory where drawing is slower than detecting
WAITING = 4


def with_boxes(pixels: Tensor, found: Detections, tracks: Sequence[int | None] | None = None) -> Image.Image:
    """An image (3, H, W) uint8 with its detections, each with its class, its score, and the number of its track."""
    texts = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores.tolist(), strict=True)]
    if tracks is not None:
        numbers = ["" if number is None else f"#{number} " for number in tracks]
        texts = [number + text for number, text in zip(numbers, texts, strict=True)]
    boxes = list(map(Box, map(tuple, found.boxes.tolist()), found.labels.tolist(), texts))
    # the most certain last, which lies on top
    return draw_boxes(Image.fromarray(pixels.permute(1, 2, 0).numpy()), boxes[::-1])


class Pictures(AbstractContextManager["Pictures"]):
    """Writes the picture of each image, and a video of the pictures of each video's frames.

    On leaving the block all that was given to `add` is written, and the video plays, whatever ends the block.
    """

    def __init__(self, places: dict[Source, Path | None]) -> None:
        """``places``: the file of each source's pictures, or None to make none."""
        self._places = places
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._waiting: deque[Future[None]] = deque()
        self._video: tuple[Source, VideoWriter] | None = None

    def add(self, frame: Frame, found: Detections, tracks: Sequence[int | None] | None) -> None:
        path = self._places[frame.source]
        if path is not None:
            self._submit(lambda: self._draw(path, frame, found, tracks))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._submit(self._close_video)
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown()

    def _submit(self, work: Callable[[], None]) -> None:
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(work))

    def _draw(self, path: Path, frame: Frame, found: Detections, tracks: Sequence[int | None] | None) -> None:
        picture = with_boxes(frame.pixels, found, tracks)
        if not frame.source.moving:
            save_picture(picture, path)
            return
        if self._video is None or self._video[0] is not frame.source:
            self._close_video()
            self._video = (frame.source, VideoWriter(path, frame.rate))
        self._video[1].write(np.asarray(picture), frame.time)

    def _close_video(self) -> None:
        if self._video is not None:
            _, writer = self._video
            self._video = None
            writer.close()
