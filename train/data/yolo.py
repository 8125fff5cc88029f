"""A YOLO-format data set, as Ultralytics lays it out, read into the same packed annotations as COCO's.

    data.yaml                 path: ., train: images/train, val: images/val, names: [cat, dog]
    images/train/one.jpg      a split names folders of images, or .txt files that list images, or several of either
    labels/train/one.txt      `class cx cy w h` a line, in parts of the image's width and height

A line of a polygon, `class x1 y1 x2 y2 x3 y3 ...`, becomes its bounding box; of a pose the box alone is read. An image
without a label file, or with an empty one, has no objects. Boxes are those of the upright image: a camera's orientation
tag is obeyed, as the tools that write these files do.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...common.parallel import in_threads
from ...models.inference.images import BadImageError
from .annotations import Annotations, BadData, Category, Dropped, ImageEntry, refuse_repeats, require_categories
from .image_header import image_size

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}

# how far outside the image a coordinate may be rounded
EXCESS = 1e-3


@dataclass(frozen=True)
class _Rules:
    """What a label file may hold."""

    n_classes: int
    keypoint_numbers: int | None
    """Of a pose data set, the numbers after the box; None otherwise."""


@dataclass
class _Labelled:
    """An image's size, and its boxes: label and xywh in pixels of each."""

    height: int
    width: int
    labels: list[int]
    boxes: list[list[float]]
    wrong: list[str]


def read_yolo(
    path: Path,
    split: str,
    categories: list[Category] | None = None,
    bad_data: BadData = "fatal",
    *,
    progress: bool = True,
) -> Annotations:
    """Reads and checks a split of a data set; names of images are relative to the folder of ``path``.

    Image ids are the files' numbers where every name is one (COCO's ids, for COCO's files), else 1, 2, ... in the
    order of the names.

    Args:
        path: the data.yaml.
        split: "train" or "val".
        categories: those a model is trained with, which must be the file's; the file's own when None.
        bad_data: "skip" leaves out wrong lines and images that cannot be read, and lists them in ``dropped``.
        progress: show a bar where images are many.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: anything in it that training would stumble over, with the file and the line.
    """
    content = _read_yaml(path)
    own = [Category(label, name) for label, name in enumerate(_class_names(path, content))]
    if categories is not None:
        require_categories(path, own, categories)
    files = _images_of(path, content, split)
    ids = _image_ids(files)
    keypoints = content.get("kpt_shape")
    rules = _Rules(len(own), keypoints[0] * keypoints[1] if keypoints else None)
    read = in_threads(
        f"reading labels of {split}",
        partial(_read_image, rules=rules, bad_data=bad_data),
        list(zip(ids, files, strict=True)),
        shown=progress,
    )
    dropped = Dropped()
    images: list[ImageEntry] = []
    rows: list[int] = []
    labels: list[int] = []
    boxes: list[Sequence[float]] = []
    for image_id, file, found in zip(ids, files, read, strict=True):
        if isinstance(found, str):
            dropped.images.append(found)
            continue
        dropped.wrong += found.wrong
        rows += [len(images)] * len(found.labels)
        labels += found.labels
        boxes += found.boxes
        images.append(ImageEntry(image_id, os.path.relpath(file, path.parent), found.height, found.width))
    doubt = _corners(path, split, images, rows, boxes)
    if doubt is not None:
        if bad_data == "fatal":
            raise ValueError(f"{doubt} (--bad-data skip takes them as they are)")
        dropped.warnings.append(doubt)
    # labels are places among the file's own classes, but stand for those of the model
    label_of = {category.id: label for label, category in enumerate(categories or own)}
    return Annotations.pack(
        path, images, categories or own, rows, [label_of[label] for label in labels], boxes, dropped, yolo=True
    )


def _corners(
    path: Path, split: str, images: Sequence[ImageEntry], rows: Sequence[int], boxes: Sequence[Sequence[float]]
) -> str | None:
    """A sentence where boxes that were read as cx, cy, w, h look like corners; they are x, y, width, height here."""
    if not boxes:
        return None
    start, size = np.hsplit(np.asarray(boxes, dtype=np.float64), 2)
    sides = np.array([(images[row].width, images[row].height) for row in rows], dtype=np.float64)
    leaving = ((start < -1) | (start + size > sides + 1)).any(1)
    # as corners, the centre is the first and the size is the second
    if leaving.sum() < 2 or leaving.mean() < 0.05 or not (size > start + size / 2).all():
        return None
    return (
        f"{path}: labels of {split} are expected to be class cx cy w h; {leaving.mean():.0%} of the boxes leave their "
        "image when read so, and none as x1 y1 x2 y2: are they corners?"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected train, val and names, as in a YOLO data set's data.yaml")
    return content


def _class_names(path: Path, content: dict[str, Any]) -> list[str]:
    names, count = content.get("names"), content.get("nc")
    if names is None:
        raise ValueError(f"{path}: expected the classes under names, found only {', '.join(map(str, content))}")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise ValueError(f"{path}: names: expected the classes 0 to {len(names) - 1}, got {list(names)}")
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: names: expected a list of classes, got {names!r}")
    if count is not None and count != len(names):
        raise ValueError(f"{path}: nc is {count}, but names has {len(names)} classes")
    names = list(map(str, names))
    refuse_repeats(path, "class name", names)
    return names


def _images_of(path: Path, content: dict[str, Any], split: str) -> list[Path]:
    """The image files of a split, in the order of their names."""
    places = content.get(split) or (content.get("validation") if split == "val" else None)
    if not places:
        raise ValueError(f"{path}: no {split}: expected a folder of images, or a .txt file that lists them, there")
    root = _root(path, content)
    files: set[Path] = set()
    for place in places if isinstance(places, list) else [places]:
        where = _place(path, root, split, str(place))
        files.update(_listed(where, root) if where.is_file() else _within(where))
    if not files:
        raise ValueError(f"{path}: {split}: found no images in {places}")
    return sorted(files)


def _root(path: Path, content: dict[str, Any]) -> Path:
    """Where the splits are: beside the data.yaml, or what it names as path."""
    if not content.get("path"):
        return path.parent
    named = str(content["path"])
    for root in (path.parent / named, Path(named)):  # the first is the second where that is absolute
        if root.is_dir():
            return root
    raise FileNotFoundError(f"{path}: path: folder {named} does not exist, neither from {path.parent} nor from here")


def _place(path: Path, root: Path, split: str, place: str) -> Path:
    # some exports write ../train/images for what lies beside the data.yaml
    for where in (root / place, root / place.removeprefix("../")):
        if where.is_dir() or (where.is_file() and where.suffix == ".txt"):
            return where
    raise FileNotFoundError(f"{path}: {split}: expected a folder or a .txt file, and {root / place} is neither")


def _listed(file: Path, root: Path) -> list[Path]:
    """The images of a list; a relative path counts from the list itself if it starts with ./, else from the root."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [Path(os.path.abspath((file.parent if line.startswith("./") else root) / line)) for line in lines if line]


def _within(folder: Path) -> list[Path]:
    return [
        Path(parent, name).absolute()
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
    ]


def _image_ids(files: list[Path]) -> list[int]:
    numbers = [int(file.stem) for file in files if re.fullmatch(r"[0-9]{1,18}", file.stem)]
    return numbers if len(set(numbers)) == len(files) else list(range(1, len(files) + 1))


def label_file(image: Path) -> Path:
    """Where an image's labels are: the last folder called images in its path becomes labels."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


def _read_image(numbered: tuple[int, Path], rules: _Rules, bad_data: BadData) -> _Labelled | str:
    """An image's labels, or why the image is left out."""
    image_id, file = numbered
    try:
        height, width = image_size(file, oriented=True)
    except (BadImageError, FileNotFoundError) as error:
        if bad_data == "fatal":
            raise
        return f"{error} (image {image_id})"
    found = _Labelled(height, width, [], [], [])
    labels = label_file(file)
    try:
        lines = labels.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return found
    except UnicodeDecodeError as error:
        if bad_data == "fatal":
            raise ValueError(f"{labels} is not text: {error}") from error
        found.wrong.append(f"{labels} is not text: {error} (image {image_id})")
        return found
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label, box = _read_line(line.split(), rules)
        except ValueError as error:
            sentence = f"{labels}, line {number}: {error}"
            if bad_data == "fatal":
                raise ValueError(sentence) from error
            found.wrong.append(f"{sentence} (image {image_id})")
            continue
        found.labels.append(label)
        found.boxes.append([box[0] * width, box[1] * height, box[2] * width, box[3] * height])
    return found


def _read_line(words: list[str], rules: _Rules) -> tuple[int, list[float]]:
    """Label and box, xywh in parts of the image."""
    try:
        numbers = list(map(float, words))
    except ValueError as error:
        raise ValueError(f"expected numbers, got {' '.join(words)!r}") from error
    label, *values = numbers
    if rules.keypoint_numbers is not None:
        if len(values) != 4 + rules.keypoint_numbers:
            raise ValueError(
                f"expected {5 + rules.keypoint_numbers} columns, a box and its keypoints, got {len(words)}"
            )
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            f"expected 5 columns, class cx cy w h, or a polygon, class x1 y1 x2 y2 x3 y3 ..., got {len(words)}"
        )
    if not (label.is_integer() and 0 <= label < rules.n_classes):
        raise ValueError(f"expected a class from 0 to {rules.n_classes - 1}, got {words[0]}")
    outside = [word for word, value in zip(words[1:], values, strict=False) if not -EXCESS <= value <= 1 + EXCESS]
    if outside:
        raise ValueError(f"expected coordinates in parts of the image, from 0 to 1, got {outside[0]}")
    if len(values) == 4:
        x, y, width, height = values
        if min(width, height) < 0:
            raise ValueError(f"expected a box, class cx cy w h, got a negative size in {' '.join(words)!r}")
        return int(label), [x - width / 2, y - height / 2, width, height]
    left, top = min(values[0::2]), min(values[1::2])
    return int(label), [left, top, max(values[0::2]) - left, max(values[1::2]) - top]
