"""The annotations of a data set, checked on reading and packed into flat arrays."""

import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ...common.text import UNPRINTABLE, counted, printable, shown
from .layouts import FORMATS, YAML, Format, HeldOut, SplitName
from .preparation.split import keep_part
from .voc import read_voc
from .yolo import read_yolo

BadData = Literal["fatal", "skip"]

# of ids, sizes and coordinates, which float64 holds to the unit
_MOST = 2**53
# of a path, in characters
_LONGEST_NAME = 1000
# lines of a listing on the terminal; the log has all of them
LISTED = 10


@dataclass(frozen=True)
class Category:
    """A class as the annotation file names it."""

    id: int
    name: str

    def __post_init__(self) -> None:
        # names are printed, into terminals, which obey some characters
        object.__setattr__(self, "name", printable(self.name))


class ImageEntry(NamedTuple):
    """What an annotation file says of an image; the name is a path within the folder of images."""

    id: int
    name: str
    height: int
    width: int


class ImageList:
    """Image entries in one flat array.

    A list of a hundred thousand tuples would be copied into every worker process bit by bit: reading an object writes
    its reference count, and a page written is no longer shared.
    """

    def __init__(self, entries: Iterable[ImageEntry]) -> None:
        entries = list(entries)
        longest = max((len(entry.name) for entry in entries), default=1)
        kinds = [("id", np.int64), ("name", np.str_, longest), ("height", np.int64), ("width", np.int64)]
        self._table = np.array(entries, dtype=kinds)
        self.ids, self.heights, self.widths = (self._table[name] for name in ("id", "height", "width"))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> ImageEntry:
        return ImageEntry(*self._table[row].item())

    def __iter__(self) -> Iterator[ImageEntry]:
        return map(ImageEntry._make, self._table.tolist())


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
    names: dict[int, str] = field(default_factory=dict)
    """Files of images above, by id, where ids are numbers that their files do not tell."""

    def sentences(self) -> list[str]:
        """Warnings, a line for each reason that left something out, and the first few of what was wrong."""
        lines = [
            f"left out {counted(len(ids), noun)}{reason} ({self._images(sorted(set(ids)))})"
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

    def _images(self, ids: list[int]) -> str:
        known = [self.names[one] for one in ids if one in self.names]
        return f"in {_shown(known)}" if known else f"image ids {_shown(ids)}"


class OtherClassesError(ValueError):
    """Annotations that name other classes than a model has, or the same by other ids."""


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
    truth: np.ndarray = field(default_factory=lambda: np.empty((0, 8)))
    """(M, 8) float64, what evaluation compares with: image's row, label, x, y, width, height, area, and 1 for a crowd.
    As the file has them, crowds among them; of a YOLO data set the packed boxes."""
    format: Format = "coco"
    """What it was read from."""
    given: np.ndarray = field(default_factory=lambda: np.empty((0, 8)))
    """(K, 8) float64, columns as those of ``truth``: all boxes as they were read, also those without area."""

    @property
    def yolo(self) -> bool:
        """Are boxes those of the image as viewers show it, turned as its tag says? COCO's and Pascal VOC's are of the
        pixels as they are stored."""
        return self.format == "yolo"

    @classmethod
    def load(
        cls,
        path: Path,
        categories: list[Category] | None = None,
        bad_data: BadData = "fatal",
        *,
        split: SplitName = "train",
        held_out: HeldOut | None = None,
        progress: bool = True,
    ) -> "Annotations":
        """Reads and checks annotations in any of `layouts`' formats.

        Args:
            path: COCO's JSON; Pascal VOC's ``ImageSets/Main/*.txt``, or a folder of its XML files; YOLO's data.yaml or
                classes.txt.
            categories: those a model is trained with; its labels then stand for them, and the file must name them.
                The file's own when None.
            bad_data: "skip" leaves wrong annotations out, and of a YOLO data set images that cannot be read, and lists
                them in ``dropped``.
            split: of a YOLO data set, or of what ``held_out`` divides.
            held_out: how to divide one set into both splits, where it is not divided in the files.
            progress: show a bar where label files are many.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: anything in it that training would stumble over, with the annotation's and the image's id, or
                the label file and the line.
        """
        if not path.exists():
            raise FileNotFoundError(f"annotation file {path} does not exist")
        content, kind, dropped = _read(path, "train" if held_out else split, bad_data, progress)
        if held_out is not None:
            content = keep_part(content, split, held_out)
        return cls.of(content, path, kind, dropped, categories=categories, bad_data=bad_data, split=split)

    @classmethod
    def of(
        cls,
        content: dict[str, Any],
        path: Path,
        kind: Format = "coco",
        dropped: Dropped | None = None,
        *,
        categories: list[Category] | None = None,
        bad_data: BadData = "fatal",
        split: SplitName = "train",
    ) -> "Annotations":
        """Checks and packs the content of a file of COCO's; arguments and errors as of `load`.

        `path` is its name in messages, `kind` what it was read from, and `dropped` what was left out in reading.
        """
        yolo, dropped = kind == "yolo", dropped or Dropped()
        categories = _categories(path, content["categories"], categories)
        images = ImageList(_image_entry(path, entry) for entry in content["images"])
        refuse_repeats(path, "image id", images.ids.tolist())
        annotations = [one for one in content["annotations"] if isinstance(one, dict)]
        ids = [one["id"] for one in annotations if isinstance(one.get("id"), int | float | str)]
        refuse_repeats(path, "annotation id", ids)
        row_of = {image_id: row for row, image_id in enumerate(images.ids.tolist())}
        label_of = {category.id: label for label, category in enumerate(categories)}
        rows = []
        for annotation in content["annotations"]:
            try:
                rows.append(_checked(path, annotation, row_of, label_of))
            except ValueError as error:
                if bad_data == "fatal":
                    raise
                dropped.wrong.append(str(error))
        truth = np.array(rows, dtype=np.float64).reshape(-1, 8)
        crowd = truth[:, 7] == 1
        dropped.crowd += images.ids[truth[crowd, 0].astype(np.int64)].tolist()
        mine = truth[~crowd]
        row, sizes = mine[:, 0].astype(np.int64), np.stack([images.widths, images.heights], 1)
        doubt = _other_units(mine[:, 2:6], sizes[row], f"labels of {split}" if yolo else None)
        if doubt is not None:
            if bad_data == "fatal":
                raise ValueError(f"{path}: {doubt} (--bad-data skip takes them as they are)")
            dropped.warnings.append(f"{path}: {doubt}")
        # float32 from here on, as the official code adds and clips
        with np.errstate(over="ignore", invalid="ignore"):
            boxes = mine[:, 2:6].astype(np.float32)
            boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, np.tile(sizes[row], 2)).astype(np.float32)
        whole = (boxes[:, 2:] > boxes[:, :2]).all(1)
        dropped.degenerate += images.ids[row[~whole]].tolist()
        order = np.flatnonzero(whole)[np.argsort(row[whole], kind="stable")]
        boxes, labels = boxes[order], mine[order, 1].astype(np.int64)
        given = truth
        if kind != "coco":
            name_of = {image.id: image.name for image in images}
            dropped.names = {one: name_of[one] for one in (*dropped.crowd, *dropped.degenerate)}
        if kind == "voc":  # COCO's own metrics, which count what has no area, are of COCO's files alone
            truth = truth[(truth[:, 4:6] > 0).all(1)]
        if yolo:
            size = boxes[:, 2:] - boxes[:, :2]
            truth = np.column_stack([mine[order, :2], boxes[:, :2], size, size.prod(1), np.zeros(len(size))])
        first = np.cumsum([0, *np.bincount(row[order], minlength=len(images))], dtype=np.int64)
        return cls(path, images, categories, boxes, labels, first, dropped, truth, kind, given)

    def described(self, where: Path | None = None) -> str:
        """What it was read from: "Pascal VOC in FOLDER"."""
        if not self.path.exists():
            return "data sets given from Python"
        return f"{FORMATS[self.format]} in {where or self.path}"

    def ground_truth(self) -> dict[str, Any]:
        """What COCO's metrics compare detections with: ``images``, ``annotations`` and ``categories`` in COCO's format.

        Without the annotations that were left out as wrong; ``images`` has all, also those left out.
        """
        ids = self.images.ids[self.truth[:, 0].astype(np.int64)].tolist()
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
                    "category_id": self.categories[int(label)].id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for number, (image_id, (_, label, *box, area, crowd)) in enumerate(
                    zip(ids, self.truth.tolist(), strict=True), start=1
                )
            ],
        }


def _other_units(boxes: np.ndarray, sizes: np.ndarray, labels: str | None) -> str | None:
    """A sentence where boxes, xywh in pixels, look as if their file had meant corners or parts of the image.

    ``sizes`` are (N, 2), width and height of each one's image; ``labels`` names the files of a YOLO data set.
    """
    whole = (boxes[:, 2:] > 0).all(1)
    start, size, sizes = boxes[whole, :2], boxes[whole, 2:], sizes[whole]
    if not len(size):
        return None
    wanted, corners, low = "bbox is expected to be [x, y, width, height] in pixels", "[x1, y1, x2, y2]", start
    if labels is not None:  # as corners, the centre is the first and the size is the second
        wanted, corners, low = f"{labels} are expected to be class cx cy w h", "x1 y1 x2 y2", start + size / 2
    elif (start >= 0).all() and (start <= 1).all() and (size < 1).all() and (sizes > 1).all():
        return f"{wanted}; every box is under one pixel: are they normalised?"
    leaving = ((start < -1) | (start + size > sizes + 1)).any(1)
    # a rounding or two over the edge is no other format
    if leaving.sum() >= 2 and leaving.mean() >= 0.05 and ((size > low) & (low >= 0) & (size <= sizes + 1)).all():
        return (
            f"{wanted}; {leaving.mean():.0%} of the boxes leave their image when read so, and none as {corners}: are "
            "they corners?"
        )
    return None


def _checked(path: Path, annotation: Any, row_of: Mapping[Any, int], label_of: Mapping[Any, int]) -> list[float]:
    """A row of `Annotations.truth`. Raises ValueError: what is wrong, with the ids."""
    if not isinstance(annotation, dict):
        raise ValueError(f"{path}: an annotation is expected to be an object, got {reprlib.repr(annotation)}")
    where = f"{path}: annotation {shown(annotation.get('id', '(without an id)'))}"
    absent = [key for key in ("image_id", "category_id", "bbox") if key not in annotation]
    if absent:
        raise ValueError(f"{where} lacks {', '.join(absent)}")
    image_id, category_id, box = annotation["image_id"], annotation["category_id"], annotation["bbox"]
    if not isinstance(image_id, int | float) or image_id not in row_of:
        raise ValueError(f"{where} is of image {shown(image_id)}, which the file does not list")
    where = f"{where} of image {image_id}"
    if not isinstance(category_id, int | float) or category_id not in label_of:
        raise ValueError(f"{where} has category {shown(category_id)}, expected one of {_shown(list(label_of))}")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
        got = reprlib.repr(box)
        raise ValueError(f"{where}: bbox is expected to be four finite numbers [x, y, width, height], got {got}")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: bbox is expected to be [x, y, width, height], got a negative size in {box}")
    area = annotation.get("area")
    crowd = bool(annotation.get("iscrowd", 0))
    return [row_of[image_id], label_of[category_id], *box, area if _finite(area) else box[2] * box[3], crowd]


def _finite(value: Any) -> bool:
    """Is it a number, and none that overflows when it is multiplied?"""
    return isinstance(value, int | float) and abs(value) < _MOST


def _shown(ids: Sequence[float | str]) -> str:
    """The first few of a list."""
    return ", ".join(map(shown, ids[:LISTED])) + (", ..." if len(ids) > LISTED else "")


def _read(path: Path, split: SplitName, bad_data: BadData, progress: bool) -> tuple[dict[str, Any], Format, Dropped]:
    """The content of a COCO file, whatever it was read from, and what was left out of it."""
    skip = bad_data == "skip"
    voc = path.is_dir() or (path.suffix == ".txt" and path.parent.parent.name == "ImageSets")
    if not voc and path.suffix not in (*YAML, ".txt", ".names"):
        return _read_json(path), "coco", Dropped()
    content, wrong, images = read_voc(path, skip=skip) if voc else read_yolo(path, split, skip=skip, progress=progress)
    return content, "voc" if voc else "yolo", Dropped(wrong=wrong, images=images)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():  # reading a pipe would wait, and a device may have no end
        raise FileNotFoundError(f"annotation file {path} {'is no file' if path.exists() else 'does not exist'}")
    with open(path, "rb") as file:
        if not file.read(4).strip(b"\0"):  # such as one that a disk that was full left; it may be of any size
            raise ValueError(f"annotation file {path} is not JSON: it is empty, or begins with zeros")
    try:
        content = json.loads(path.read_bytes())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"annotation file {path} is not JSON: {shown(error)}") from error
    needed = ("images", "annotations", "categories")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"annotation file {path}: expected images, annotations and categories, lacks {missing}")
    for key in needed:
        if not isinstance(content[key], list):
            raise ValueError(f"annotation file {path}: {key}: expected a list, got {reprlib.repr(content[key])}")
    for image in content["images"]:
        if not isinstance(image, dict) or isinstance(image.get("id"), list | dict):
            raise ValueError(f"annotation file {path}: an image is expected to have an id, got {reprlib.repr(image)}")
    return content


def refuse_repeats(path: Path, what: str, values: Sequence[Any]) -> None:
    """Raises ValueError: one of ``values`` comes twice."""
    if len(set(values)) < len(values):
        twice = Counter(values).most_common(1)[0][0]
        raise ValueError(f"{path}: {what} {reprlib.repr(twice)} is given {values.count(twice)} times, expected once")


def _categories(path: Path, entries: list[dict[str, Any]], wanted: list[Category] | None) -> list[Category]:
    """The file's own in the order of their ids, or those wanted, which it must have."""
    try:
        own = sorted((Category(int(entry["id"]), str(entry["name"])) for entry in entries), key=lambda c: c.id)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        why = shown(error)
        raise ValueError(f"{path}: a category is expected to have an id and a name; one has not: {why}") from error
    if not own:
        raise ValueError(f"{path}: expected at least one category, found none")
    refuse_repeats(path, "category id", [category.id for category in own])
    refuse_repeats(path, "category name", [category.name for category in own])
    names = {category.id: category.name for category in own}
    for category in wanted or ():
        if names.get(category.id) != category.name:
            here = f"'{shown(names[category.id])}'" if category.id in names else "absent"
            raise OtherClassesError(
                f"{path}: category {category.id} is {here} here, but '{shown(category.name)}' in what the model is "
                "trained on; both must name the same classes by the same ids"
            )
    return own if wanted is None else list(wanted)


def _image_entry(path: Path, entry: Any) -> ImageEntry:
    try:
        image = ImageEntry(int(entry["id"]), str(entry["file_name"]), int(entry["height"]), int(entry["width"]))
    except KeyError as error:
        raise ValueError(f"{path}: image {shown(entry.get('id', entry))} lacks {error.args[0]}") from error
    except (OverflowError, TypeError, ValueError) as error:
        image_of = reprlib.repr(entry)
        raise ValueError(f"{path}: image {image_of}: id, height and width are expected to be numbers") from error
    if max(abs(image.id), image.height, image.width) >= _MOST:
        raise ValueError(f"{path}: image {image.id}: id, height and width are expected to be numbers below 2**53")
    if UNPRINTABLE.search(image.name) or len(image.name) > _LONGEST_NAME:
        raise ValueError(f"{path}: image {image.id}: expected the path of a file, got '{shown(image.name)}'")
    if image.height < 1 or image.width < 1:
        raise ValueError(
            f"{path}: image {image.id}: expected at least one pixel, got {image.width} wide and {image.height} high"
        )
    return image
