"""The annotations of a data set, checked on reading and packed into flat arrays; here those of COCO's files."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from ...common.text import counted
from .voc import read_voc

BadData = Literal["fatal", "skip"]

# lines of a listing on the terminal; the log has all of them
LISTED = 10


@dataclass(frozen=True)
class Category:
    """A class as the annotation file names it."""

    id: int
    name: str


class ImageEntry(NamedTuple):
    """What an annotation file says of an image; the name is a path within the folder of images."""

    id: int
    name: str
    height: int
    width: int


class ImageList(Sequence[ImageEntry]):
    """Image entries in four flat buffers.

    A list of a hundred thousand tuples would be copied into every worker process bit by bit: reading an object writes
    its reference count, and a page written is no longer shared.
    """

    def __init__(self, entries: Iterable[ImageEntry]) -> None:
        entries = list(entries)
        names = [entry.name.encode("utf-8", "surrogateescape") for entry in entries]
        self.ids = np.array([entry.id for entry in entries], dtype=np.int64)
        self.heights = np.array([entry.height for entry in entries], dtype=np.int64)
        self.widths = np.array([entry.width for entry in entries], dtype=np.int64)
        self._names = b"".join(names)
        self._first = np.cumsum([0, *map(len, names)])

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, row: int) -> ImageEntry: ...
    @overload
    def __getitem__(self, row: slice) -> list[ImageEntry]: ...
    def __getitem__(self, row: int | slice) -> ImageEntry | list[ImageEntry]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        name = self._names[self._first[row] : self._first[row + 1]].decode("utf-8", "surrogateescape")
        return ImageEntry(int(self.ids[row]), name, int(self.heights[row]), int(self.widths[row]))

    def __iter__(self) -> Iterator[ImageEntry]:
        return (self[row] for row in range(len(self)))


@dataclass
class Dropped:
    """What was left out."""

    crowd: list[int] = field(default_factory=list)
    """Images, by id, of each region that is a crowd; evaluation still knows of these."""
    degenerate: list[int] = field(default_factory=list)
    """Images, by id, of each box without area."""
    wrong: list[str] = field(default_factory=list)
    """With bad data skipped, a sentence for each wrong annotation, naming it and its image."""
    images: list[str] = field(default_factory=list)
    """With bad data skipped, a sentence for each image that is missing, unreadable or of another size than stated."""

    warnings: list[str] = field(default_factory=list)
    """With bad data skipped, what looks like a mistake in all annotations, which are kept."""

    def sentences(self) -> list[str]:
        """Warnings, a line for each reason that left something out, and the first few of what was wrong."""
        lines = [
            f"left out {counted(len(ids), noun)}{reason} (image ids {_shown(sorted(set(ids)))})"
            for noun, reason, ids in (
                ("region", " marked as crowd or difficult, which evaluation ignores", self.crowd),
                ("box", " with no area inside the image", self.degenerate),
            )
            if ids
        ]
        for reason, sentences in (("wrong annotation", self.wrong), ("image", self.images)):
            if sentences:
                lines += [f"left out {counted(len(sentences), reason)}:", *(f"  {line}" for line in sentences[:LISTED])]
            if len(sentences) > LISTED:
                lines.append(f"  and {len(sentences) - LISTED} more")
        return [*(f"warning: {line}" for line in self.warnings), *lines]


@dataclass
class Annotations:
    """Annotations, checked and packed: flat arrays, because worker processes share those without copying.

    ``boxes[first[i]:first[i + 1]]`` are those of image i.
    """

    path: Path
    """The annotation file, or the data.yaml."""
    images: ImageList
    categories: list[Category]
    """In the order of their ids; a label is an index into this list."""
    boxes: np.ndarray
    """(N, 4) float32, xyxy in pixels, clipped to the image."""
    labels: np.ndarray
    """(N,) int64."""
    first: np.ndarray
    """(images + 1,) int64."""
    dropped: Dropped
    yolo: bool = False
    """Read from a YOLO data set, whose boxes are those of the image as viewers show it, turned as its tag says; COCO's
    are of the pixels as they are stored."""

    @classmethod
    def load(cls, path: Path, categories: list[Category] | None = None, bad_data: BadData = "fatal") -> "Annotations":
        """Reads and checks an ``instances_*.json``, or a split of a Pascal VOC data set, ``ImageSets/Main/*.txt``.

        Args:
            path: the file.
            categories: those a model is trained with; its labels then stand for them, and the file must name them.
                The file's own when None.
            bad_data: "skip" leaves wrong annotations out, and lists them in ``dropped``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: anything in it that training would stumble over, with the annotation's and the image's id.
        """
        content = _read_json(path)
        categories = _categories(path, content["categories"], categories)
        images = [_image_entry(path, entry) for entry in content["images"]]
        refuse_repeats(path, "image id", [image.id for image in images])
        refuse_repeats(path, "annotation id", [a["id"] for a in content["annotations"] if "id" in a])
        checked = _Checked(path, [image.id for image in images], categories)
        dropped = Dropped()
        boxes: list[Sequence[float]] = []
        labels: list[int] = []
        rows: list[int] = []
        for annotation in content["annotations"]:
            try:
                row, label, box = checked(annotation)
            except ValueError as error:
                if bad_data == "fatal":
                    raise
                dropped.wrong.append(str(error))
                continue
            if annotation.get("iscrowd", 0):
                dropped.crowd.append(images[row].id)
                continue
            boxes.append(box)
            labels.append(label)
            rows.append(row)
        doubt = _other_units(path, images, rows, boxes)
        if doubt is not None:
            if bad_data == "fatal":
                raise ValueError(f"{doubt} (--bad-data skip takes them as they are)")
            dropped.warnings.append(doubt)
        return cls.pack(path, images, categories, rows, labels, boxes, dropped)

    @classmethod
    def pack(
        cls,
        path: Path,
        images: Sequence[ImageEntry],
        categories: list[Category],
        rows: Sequence[int],
        labels: Sequence[int],
        boxes: Sequence[Sequence[float]],
        dropped: Dropped,
        *,
        yolo: bool = False,
    ) -> "Annotations":
        """Clips boxes, xywh in pixels, to their images, drops those without area, and sorts them by image."""
        packed = ImageList(images)
        row = np.asarray(rows, dtype=np.int64)
        # float32 from here on, as the official code adds and clips
        with np.errstate(over="ignore", invalid="ignore"):
            xyxy = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).astype(np.float32)
            xyxy[:, 2:] += xyxy[:, :2]
        xyxy[:, 0::2] = xyxy[:, 0::2].clip(0, packed.widths[row, None])
        xyxy[:, 1::2] = xyxy[:, 1::2].clip(0, packed.heights[row, None])
        whole = (xyxy[:, 2:] > xyxy[:, :2]).all(1)
        dropped.degenerate += packed.ids[row[~whole]].tolist()
        order = np.flatnonzero(whole)[np.argsort(row[whole], kind="stable")]
        counts = np.bincount(row[order], minlength=len(packed))
        return cls(
            path=path,
            images=packed,
            categories=categories,
            boxes=xyxy[order],
            labels=np.asarray(labels, dtype=np.int64)[order],
            first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            dropped=dropped,
            yolo=yolo,
        )

    def ground_truth(self) -> dict[str, Any]:
        """What COCO's metrics compare detections with: ``images``, ``annotations`` and ``categories`` in COCO's format.

        Of a COCO file its own content, crowd regions included, without the annotations that were left out as wrong;
        missing areas are those of the boxes, and where an id is missing, or 0, which COCO's code takes for no match,
        annotations are numbered anew. Of a YOLO data set the packed boxes. ``images`` has all, also those left out.
        """
        if self.yolo:
            return self._packed_truth()
        content = _read_json(self.path)
        checked = _Checked(self.path, self.images.ids.tolist(), self.categories)
        annotations = [annotation for annotation in content["annotations"] if checked.is_right(annotation)]
        renumber = not all(annotation.get("id") for annotation in annotations)
        for number, annotation in enumerate(annotations, start=1):
            if renumber:
                annotation["id"] = number
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        return {**content, "annotations": annotations}

    def _packed_truth(self) -> dict[str, Any]:
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        image_ids = np.repeat(self.images.ids, np.diff(self.first))
        return {
            "images": [
                {"id": image.id, "file_name": image.name, "height": image.height, "width": image.width}
                for image in self.images
            ],
            "categories": [{"id": category.id, "name": category.name} for category in self.categories],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": self.categories[label].id,
                    "bbox": [*corner, *size],
                    "area": size[0] * size[1],
                    "iscrowd": 0,
                }
                for number, (image_id, label, corner, size) in enumerate(
                    zip(
                        image_ids.tolist(),
                        self.labels.tolist(),
                        self.boxes[:, :2].tolist(),
                        sizes.tolist(),
                        strict=True,
                    ),
                    start=1,
                )
            ],
        }


def _other_units(
    path: Path, images: Sequence[ImageEntry], rows: Sequence[int], boxes: Sequence[Sequence[float]]
) -> str | None:
    """A sentence where boxes, read as x, y, width, height in pixels, look like corners or like parts of the image."""
    values = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sizes = np.array([(images[row].width, images[row].height) for row in rows], dtype=np.float64).reshape(-1, 2)
    whole = (values[:, 2:] > 0).all(1)
    values, sizes = values[whole], sizes[whole]
    if not len(values):
        return None
    start, end = values[:, :2], values[:, 2:]
    wanted = f"{path}: bbox is expected to be [x, y, width, height] in pixels"
    if (values >= 0).all() and (values <= 1).all() and (end < 1).all() and (sizes > 1).all():
        return f"{wanted}; every box is under one pixel: are they normalised?"
    leaving = (start + end > sizes + 1).any(1)
    # a rounding or two over the edge is no other format
    if leaving.sum() >= 2 and leaving.mean() >= 0.05 and ((end > start) & (start >= 0) & (end <= sizes + 1)).all():
        return (
            f"{wanted}; {leaving.mean():.0%} of the boxes leave their image when read so, and none as "
            "[x1, y1, x2, y2]: are they corners?"
        )
    return None


class _Checked:
    """Checks annotations of one file: called with one, it gives (row of the image, label, box xywh)."""

    def __init__(self, path: Path, image_ids: Sequence[int], categories: Sequence[Category]) -> None:
        self.path = path
        self.row_of: dict[float, int] = {image_id: row for row, image_id in enumerate(image_ids)}
        self.label_of: dict[float, int] = {category.id: label for label, category in enumerate(categories)}

    def is_right(self, annotation: Any) -> bool:
        try:
            self(annotation)
        except ValueError:
            return False
        return True

    def __call__(self, annotation: Any) -> tuple[int, int, list[float]]:
        """Raises ValueError: what is wrong, with the ids."""
        if not isinstance(annotation, dict):
            raise ValueError(f"{self.path}: an annotation is expected to be an object, got {annotation!r}")
        where = f"{self.path}: annotation {annotation.get('id', '(without an id)')}"
        absent = [key for key in ("image_id", "category_id", "bbox") if key not in annotation]
        if absent:
            raise ValueError(f"{where} lacks {', '.join(absent)}")
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if not isinstance(image_id, int | float) or image_id not in self.row_of:
            raise ValueError(f"{where} is of image {image_id}, which the file does not list")
        where = f"{where} of image {image_id}"
        if not isinstance(category_id, int | float) or category_id not in self.label_of:
            raise ValueError(f"{where} has category {category_id}, expected one of {_shown(list(self.label_of))}")
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
            raise ValueError(f"{where}: bbox is expected to be four finite numbers [x, y, width, height], got {box}")
        if box[2] < 0 or box[3] < 0:
            raise ValueError(f"{where}: bbox is expected to be [x, y, width, height], got a negative size in {box}")
        return self.row_of[image_id], self.label_of[category_id], box


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _shown(ids: Sequence[float]) -> str:
    """The first few of a list."""
    return ", ".join(map(str, ids[:LISTED])) + (", ..." if len(ids) > LISTED else "")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    if path.suffix == ".txt":
        return read_voc(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"annotation file {path} is not JSON: {error}") from error
    lists = [key for key in ("images", "annotations", "categories") if isinstance(content, dict) and key in content]
    missing = [key for key in ("images", "annotations", "categories") if key not in lists]
    if missing:
        raise ValueError(f"annotation file {path}: expected images, annotations and categories, lacks {missing}")
    return content


def refuse_repeats(path: Path, what: str, values: Sequence[Any]) -> None:
    """Raises ValueError: one of ``values`` comes twice."""
    if len(set(values)) < len(values):
        twice = Counter(values).most_common(1)[0][0]
        raise ValueError(f"{path}: {what} {twice!r} is given {values.count(twice)} times, expected once")


def _categories(path: Path, entries: list[dict[str, Any]], wanted: list[Category] | None) -> list[Category]:
    """The file's own in the order of their ids, or those wanted, which it must have."""
    try:
        own = sorted((Category(int(entry["id"]), str(entry["name"])) for entry in entries), key=lambda c: c.id)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: a category is expected to have an id and a name; one has not: {error}") from error
    if not own:
        raise ValueError(f"{path}: expected at least one category, found none")
    refuse_repeats(path, "category id", [category.id for category in own])
    refuse_repeats(path, "category name", [category.name for category in own])
    if wanted is not None:
        require_categories(path, own, wanted)
    return own if wanted is None else list(wanted)


def require_categories(path: Path, own: list[Category], wanted: list[Category]) -> None:
    """Raises ValueError: the classes of the file at ``path`` are not those that a model is trained on."""
    names = {category.id: category.name for category in own}
    for category in wanted:
        if names.get(category.id) != category.name:
            here = f"'{names[category.id]}'" if category.id in names else "absent"
            raise ValueError(
                f"{path}: category {category.id} is {here} here, but '{category.name}' in what the model is trained "
                "on; both must name the same classes by the same ids"
            )


def _image_entry(path: Path, entry: Any) -> ImageEntry:
    absent = [key for key in ("id", "file_name", "height", "width") if not isinstance(entry, dict) or key not in entry]
    if absent:
        name = entry.get("id", entry) if isinstance(entry, dict) else entry
        raise ValueError(f"{path}: image {name} lacks {', '.join(absent)}")
    try:
        image = ImageEntry(int(entry["id"]), str(entry["file_name"]), int(entry["height"]), int(entry["width"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: image {entry['id']}: id, height and width are expected to be numbers") from error
    if image.height < 1 or image.width < 1:
        raise ValueError(
            f"{path}: image {image.id}: expected at least one pixel, got {image.width} wide and {image.height} high"
        )
    return image
