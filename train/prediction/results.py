"""Files of detections: COCO's results format, YOLO's and Pascal VOC's labels, CSV; and the list of all images.

Each writer is a context manager, whose file is whole whatever ends the block; `images.json` says whether all is in it.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TextIO

from ...common.files import atomic_file
from ...models.inference.detections import Detections
from ..data.annotations import Category
from ..data.voc import VocObject, voc_annotation
from ..data.yolo import yolo_line
from ..evaluation.results import coco_results
from .sources import Frame

COLUMNS = (
    *("file_name", "frame", "time", "category_id", "category_name", "score"),
    *("x0", "y0", "x1", "y1", "track_id"),
)
"""Of predictions.csv."""


class ResultWriter:
    """Writes detections frame by frame; `written` says where to, in words."""

    written: str

    def __init__(self, out: Path, categories: Sequence[Category]) -> None:
        self.out, self.categories = out, categories
        self._files = ExitStack()

    def add(self, frame: Frame, found: Detections, tracks: Sequence[int | None] | None) -> None:
        """``tracks`` are the numbers of the detections' tracks, where they are followed."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()


class CocoWriter(ResultWriter):
    """predictions.json: a list of results, with names beside the ids; of a video also frame, time and track."""

    written = "predictions.json"

    def __enter__(self) -> Self:
        self._list = self._files.enter_context(_json_list(self.out / self.written))
        return self

    def add(self, frame: Frame, found: Detections, tracks: Sequence[int | None] | None) -> None:
        results = coco_results(frame.image_id, found, [category.id for category in self.categories])
        for place, (result, name) in enumerate(zip(results, found.names, strict=True)):
            more = {"category_name": name, "file_name": frame.name, "image_size": list(found.image_size)}
            self._list.add(
                {**result, **more, **_of_video(frame), **({} if tracks is None else {"track_id": tracks[place]})}
            )


class YoloWriter(ResultWriter):
    """labels/NAME.txt, `class cx cy w h score`, and after them the number of the track; and classes.txt."""

    written = "labels"

    def __enter__(self) -> Self:
        _write(self.out / "classes.txt", "".join(f"{category.name}\n" for category in self.categories).encode())
        return self

    def add(self, frame: Frame, found: Detections, tracks: Sequence[int | None] | None) -> None:
        lines = [
            yolo_line(label, box, found.image_size, score)
            + ("" if tracks is None or tracks[place] is None else f" {tracks[place]}")
            for place, label, box, score in _inside(found)
        ]
        path = self.out / "labels" / f"{frame.stem}.txt"
        _write(path, "".join(f"{line}\n" for line in lines).encode())


class VocWriter(ResultWriter):
    """annotations/NAME.xml, with the score of each object."""

    written = "annotations"

    def add(self, frame: Frame, found: Detections, tracks: Sequence[int | None] | None) -> None:
        objects = [VocObject(found.names[place], box, score=score) for place, _, box, score in _inside(found)]
        path = self.out / "annotations" / f"{frame.stem}.xml"
        _write(path, voc_annotation(Path(frame.name).name, found.image_size, objects))


class CsvWriter(ResultWriter):
    """predictions.csv: a row for each detection, corners in pixels; it grows while it is written."""

    written = "predictions.csv"

    def __enter__(self) -> Self:
        self.out.mkdir(parents=True, exist_ok=True)
        # line by line, so that it can be followed
        file: TextIO = open(self.out / self.written, "w", newline="", encoding="utf-8", buffering=1)
        self._files.enter_context(file)
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(COLUMNS)
        return self

    def add(self, frame: Frame, found: Detections, tracks: Sequence[int | None] | None) -> None:
        of_frame = (frame.source.name, *(_of_video(frame).get(key, "") for key in ("frame", "time")))
        columns = (found.names, found.labels.tolist(), found.scores.tolist(), found.boxes.tolist())
        for place, (name, label, score, box) in enumerate(zip(*columns, strict=True)):
            numbers = [f"{score:.6g}", *(f"{corner:.2f}" for corner in box)]
            track = "" if tracks is None or tracks[place] is None else tracks[place]
            self._rows.writerow([*of_frame, self.categories[label].id, name, *numbers, track])


class ImagesWriter(ResultWriter):
    """images.json: every image and frame, also without detections; what could not be read; whether that was all."""

    written = "images.json"

    def __enter__(self) -> Self:
        self.unreadable: list[dict[str, str]] = []
        self._complete = False
        self._list = self._files.enter_context(
            _json_list(
                self.out / self.written,
                '{"images": [',
                lambda: (
                    f'], "categories": {json.dumps([{"id": one.id, "name": one.name} for one in self.categories])}'
                    f', "unreadable": {json.dumps(self.unreadable)}, "complete": {json.dumps(self._complete)}}}'
                ),
            )
        )
        return self

    def add(self, frame: Frame, found: Detections, tracks: Sequence[int | None] | None) -> None:
        height, width = found.image_size
        size = {"height": height, "width": width, "detections": len(found)}
        self._list.add({"id": frame.image_id, "file_name": frame.name, **size, **_of_video(frame)})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._complete = kind is None
        super().__exit__(kind, error, traceback)


WRITERS: dict[str, type[ResultWriter]] = {
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "voc": VocWriter,
    "csv": CsvWriter,
}


def _of_video(frame: Frame) -> dict[str, Any]:
    if frame.number is None:
        return {}
    return {"video": frame.source.name, "frame": frame.number, "time": round(float(frame.time), 6)}


def _inside(found: Detections) -> Iterator[tuple[int, int, list[float], float]]:
    """Place, label, box cut to the image, and score, of those with an area: readers refuse what leaves the image."""
    height, width = found.image_size
    boxes = found.boxes.double()
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    rows = zip(boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    for place, (box, label, score) in enumerate(rows):
        if box[2] > box[0] and box[3] > box[1]:
            yield place, label, box, score


class _JsonList:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._separator = ""

    def add(self, element: Any) -> None:
        self._file.write(f"{self._separator}{json.dumps(element)}".encode())
        self._separator = ", "


@contextmanager
def _json_list(path: Path, head: str = "[", tail: Any = lambda: "]") -> Iterator[_JsonList]:
    """A list that is written element by element, none of which is kept; whole whatever ends the block."""
    with atomic_file(path) as file:
        file.write(head.encode())
        yield _JsonList(file)
        file.write(tail().encode())


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)
