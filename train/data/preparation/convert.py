"""A data set written anew in another format, with the same boxes."""

import os
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from ....common.files import atomic_folder, write_json
from ....common.progress import progress_bar
from ....common.text import counted, printable
from ....models.inference.images import SUFFIXES, orientation
from ..annotations import LISTED, Category
from ..dataset import CocoDetection
from ..layouts import FORMATS, Format
from ..voc import VocObject, voc_annotation, write_classes
from ..yolo import yolo_line
from .read import PartName

# the turn that undoes one, as EXIF numbers them; the others undo themselves
_BACK = {6: 8, 8: 6}


# control characters and halves of others, as Unicode calls them
CONTROL = {"Cc", "Cs"}


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], tag: int) -> np.ndarray:
    """(N, 4) xyxy in pixels of an image as it is stored, height and width ``size``, to the one as viewers show it.

    ``tag`` is EXIF's orientation, 1 to 8.
    """
    height, width = size
    x0, y0, x1, y1 = boxes.T
    turned = {
        2: (width - x1, y0, width - x0, y1),
        3: (width - x1, height - y1, width - x0, height - y0),
        4: (x0, height - y1, x1, height - y0),
        5: (y0, x0, y1, x1),
        6: (height - y1, x0, height - y0, x1),
        7: (height - y1, width - x1, height - y0, width - x0),
        8: (y0, width - x1, y1, width - x0),
    }
    return np.stack(turned.get(tag, (x0, y0, x1, y1)), 1)


@dataclass
class _Image:
    """An image to write: the file it is, its name anew, and its objects."""

    file: Path
    name: str
    id: int
    size: tuple[int, int]
    boxes: np.ndarray
    """(N, 4) xyxy in pixels."""
    labels: list[int]
    areas: list[float]
    crowd: list[bool]


@dataclass
class Converted:
    """What was written, and what the format cannot hold."""

    images: int = 0
    boxes: int = 0
    """Crowds and difficult objects included, where the format has them."""
    crowds: int = 0
    """Those among them."""
    lost: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By kind, the image of each box that was left out."""

    def sentences(self) -> list[str]:
        """A line for each kind of box that was left out, with the first few images."""
        lines = []
        for kind, images in self.lost.items():
            names = list(dict.fromkeys(images))
            more = ", ..." if len(names) > LISTED else ""
            some = printable(", ".join(names[:LISTED]))
            lines.append(f"left out {counted(len(images), 'box')} {kind} (in {some}{more})")
        return lines


def convert(
    parts: dict[PartName, CocoDetection],
    to: Format,
    out: Path,
    images: Literal["copy", "link"] = "copy",
    *,
    progress: bool = True,
) -> Converted:
    """Writes a folder that ``--data`` reads, with every image and every box with area.

    Boxes come out as they were to a billionth of a pixel; YOLO's are clipped to the image. Image files are the same;
    where a camera's tag turns one, boxes are those of the upright image in YOLO's format, and of the stored pixels in
    the others. Images of one name become PATH_NAME.

    Args:
        parts: by split, with the same classes; "all" is one set that is not divided.
        to: the format.
        out: absent, or an empty folder.
        images: "link" makes hard links.
        progress: show a bar.

    Raises:
        FileExistsError: ``out`` holds something.
        ValueError: an image, or a class's name, that the format cannot have, or an image of another size than the
            annotations say.
        OSError: an image cannot be copied or linked.
    """
    names = _new_names(parts, to)
    categories = next(iter(parts.values())).annotations.categories
    if to != "coco":
        _check_names(categories, to)
    converted = Converted()
    writers: dict[Format, Callable[[Path, PartName, list[_Image], list[Category]], None]] = {
        "coco": _write_coco,
        "voc": _write_voc,
        "yolo": _write_yolo,
    }
    total = sum(len(data) for data in parts.values())
    with atomic_folder(out) as folder, progress_bar("writing images", total, shown=progress) as advance:
        for part, data in parts.items():
            place = folder / _image_folder(to, part)
            place.mkdir(parents=True, exist_ok=True)
            entries = []
            given = data.annotations.given[np.argsort(data.annotations.given[:, 0], kind="stable")]
            first = np.searchsorted(given[:, 0], np.arange(len(data.annotations.images) + 1))
            for row in data.rows.tolist():
                data.check_size(row)
                image = _image(data, row, given[first[row] : first[row + 1]], names[part, row], to, converted.lost)
                if image.file.suffix.lower() not in (*SUFFIXES, ".mpo"):
                    raise ValueError(f"image {image.file}: expected a name that ends in {', '.join(SUFFIXES)}")
                _put(image.file, place / image.name, images)
                entries.append(image)
                advance()
            writers[to](folder, part, entries, categories)
            converted.images += len(entries)
            converted.boxes += sum(len(image.boxes) for image in entries)
            converted.crowds += sum(map(sum, (image.crowd for image in entries)))
    return converted


def _check_names(categories: Sequence[Category], to: Format) -> None:
    """Raises ValueError for a name that would not be read back, as it has no line, or several."""
    for one in categories:
        if one.name.strip().splitlines() != [one.name.strip()] or not CONTROL.isdisjoint(
            map(unicodedata.category, one.name)
        ):
            raise ValueError(
                f"to: class {one.id} is named {one.name!r}, and {FORMATS[to]} has each name on a line of its own; "
                "rename it"
            )


def _image(
    data: CocoDetection, row: int, mine: np.ndarray, name: str, to: Format, lost: dict[str, list[str]]
) -> _Image:
    """The image of a row, with its rows of ``annotations.given``, as the format wants them."""
    annotations, entry = data.annotations, data.annotations.images[row]
    file = data.folder / entry.name
    size = (entry.height, entry.width)
    boxes = np.column_stack([mine[:, 2:4], mine[:, 2:4] + mine[:, 4:6]])
    if annotations.yolo != (to == "yolo"):
        tag = orientation(file)
        boxes = turn_boxes(boxes, size, _BACK.get(tag, tag) if annotations.yolo else tag)
        size = size[::-1] if tag in (5, 6, 7, 8) else size
    limits = np.array([size[1], size[0]] * 2, dtype=np.float64)
    clipped = boxes.clip(0, limits)
    crowd, whole = mine[:, 7] == 1, (clipped[:, 2:] > clipped[:, :2]).all(1)
    keep = whole.copy()

    def leave_out(which: np.ndarray, kind: str) -> None:
        if which.any():
            lost[kind] += [entry.name] * int(which.sum())

    leave_out(~whole & ~crowd, "without area inside the image")
    if to == "yolo":
        boxes = clipped
        leave_out(crowd & whole, "marked as crowd or difficult, which YOLO's format cannot say")
        keep &= ~crowd
    if to == "voc":
        pixel = (np.abs(boxes[:, 2:] - boxes[:, :2] - 1) < 1e-9).all(1)
        leave_out(pixel & keep, "of one pixel, which Pascal VOC's format does not tell from a point")
        keep &= ~pixel
    mine, boxes = mine[keep], boxes[keep]
    labels = mine[:, 1].astype(int).tolist()
    return _Image(file, name, entry.id, size, boxes, labels, mine[:, 6].tolist(), (mine[:, 7] == 1).tolist())


def _new_names(parts: dict[PartName, CocoDetection], to: Format) -> dict[tuple[PartName, int], str]:
    """A name for each image, by part and row.

    No two in a folder differ in their suffix or in upper case alone: labels go by what is before the suffix.
    """
    olds = {
        (part, row): Path(data.annotations.images[row].name)
        for part, data in parts.items()
        for row in data.rows.tolist()
    }
    # Pascal VOC has one folder for all
    places = {key: "" if to == "voc" else key[0] for key in olds}
    several = Counter((places[key], old.stem.lower()) for key, old in olds.items())
    used: set[tuple[str, str]] = set()
    names: dict[tuple[PartName, int], str] = {}
    for key, old in olds.items():
        stem = old.stem
        if several[places[key], stem.lower()] > 1:
            stem = "_".join([*(word for word in old.parent.parts if word not in ("..", "/")), stem])
        unique, number = stem, 1
        while (places[key], unique.lower()) in used:
            number += 1
            unique = f"{stem}_{number}"
        used.add((places[key], unique.lower()))
        names[key] = f"{unique}{old.suffix}"
    return names


def _put(file: Path, to: Path, how: Literal["copy", "link"]) -> None:
    if how == "copy":
        shutil.copyfile(file, to)
        return
    try:
        os.link(file.resolve(), to)
    except OSError as error:
        raise OSError(f"images: {file} cannot be linked ({error.strerror}); --images copy copies it") from error


def _image_folder(to: Format, part: PartName) -> str:
    if to == "voc":
        return "JPEGImages"
    if part == "all":
        return "images"
    return f"{part}2017" if to == "coco" else f"images/{part}"


def _write_coco(folder: Path, part: PartName, images: Sequence[_Image], categories: Sequence[Category]) -> None:
    file = "annotations.json" if part == "all" else f"annotations/instances_{part}2017.json"
    annotations: list[dict[str, Any]] = []
    for image in images:
        size = np.round(image.boxes[:, 2:] - image.boxes[:, :2], 9)
        boxes = np.column_stack([np.round(image.boxes[:, :2], 9), size]).tolist()
        for box, label, area, crowd in zip(boxes, image.labels, image.areas, image.crowd, strict=True):
            one = {"id": len(annotations) + 1, "image_id": image.id, "category_id": categories[label].id, "bbox": box}
            annotations.append({**one, "area": area, "iscrowd": int(crowd)})
    content = {
        "images": [
            {"id": image.id, "file_name": image.name, "height": image.size[0], "width": image.size[1]}
            for image in images
        ],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in categories],
    }
    write_json(folder / file, content)


def _write_voc(folder: Path, part: PartName, images: Sequence[_Image], categories: Sequence[Category]) -> None:
    (folder / "Annotations").mkdir(exist_ok=True)
    for image in images:
        objects = [
            VocObject(categories[label].name, box, crowd)
            for box, label, crowd in zip(image.boxes.tolist(), image.labels, image.crowd, strict=True)
        ]
        content = voc_annotation(image.name, image.size, objects)
        (folder / "Annotations" / f"{Path(image.name).stem}.xml").write_bytes(content)
    write_classes(folder, [category.name for category in categories])
    if part != "all":
        lists = folder / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        _write_lines(lists / f"{part}.txt", [Path(image.name).stem for image in images])


def _write_yolo(folder: Path, part: PartName, images: Sequence[_Image], categories: Sequence[Category]) -> None:
    labels = folder / "labels" if part == "all" else folder / "labels" / part
    labels.mkdir(parents=True, exist_ok=True)
    for image in images:
        lines = [
            yolo_line(label, box, image.size) for box, label in zip(image.boxes.tolist(), image.labels, strict=True)
        ]
        _write_lines(labels / f"{Path(image.name).stem}.txt", lines)
    names = [category.name for category in categories]
    if part == "all":
        _write_lines(folder / "classes.txt", names)
        return
    there = [split for split in ("train", "val") if (folder / "labels" / split).is_dir()]
    content = {**{split: f"images/{split}" for split in there}, "names": dict(enumerate(names))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
