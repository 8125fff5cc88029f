"""A YOLO-format data set, as Ultralytics lays it out, as the content of a COCO annotation file.

    data.yaml                 path: ., train: images/train, val: images/val, names: [cat, dog]; or classes.txt
    images/train/one.jpg      a split names folders of images, or .txt files that list images, or several of either
    labels/train/one.txt      `class cx cy w h` a line, in parts of the image's width and height

A line of a polygon, `class x1 y1 x2 y2 x3 y3 ...`, becomes its bounding box; of a pose the box alone is read. An image
without a label file, or with an empty one, has no objects. Boxes are those of the upright image: a camera's orientation
tag is obeyed, as the tools that write these files do.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ...common.files import read_text
from ...common.parallel import in_threads
from ...models.inference.images import SUFFIXES, BadImageError, image_size
from .layouts import SUBSETS, YAML, is_yolo_label, root_of_classes

# how far outside the image a coordinate may be rounded
EXCESS = 1e-3

# decimals of a pixel that are kept, so that a third of 651 times 651 gives back 217
DIGITS = 9

_MOST_VALUES = 1_000_000  # of a data.yaml


def yolo_line(label: int, xyxy: Sequence[float], size: tuple[int, int], score: float | None = None) -> str:
    """A box as a line of a label file, `class cx cy w h`, which is read back to a billionth of a pixel.

    Args:
        label: the class, from 0 on.
        xyxy: corners in pixels of the upright image.
        size: the image's height and width.
        score: of a detection, as a sixth column.
    """
    x0, y0, x1, y1 = map(float, xyxy)
    height, width = size
    parts = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    words = [str(label), *(f"{part:.16g}" for part in parts), *([] if score is None else [f"{score:.6g}"])]
    return " ".join(words)


def read_yolo(
    path: Path, split: str, *, skip: bool = False, progress: bool = True
) -> tuple[dict[str, Any], list[str], list[str]]:
    """A split's images, annotations and categories, and a sentence for each line and each image that was left out.

    Names of images are relative to the folder of ``path``. Their ids are the files' numbers where every name is one
    (COCO's ids, for COCO's files), else 1, 2, ... in the order of the names.

    ``skip`` leaves out wrong lines and images that cannot be read. Otherwise, and for a wrong description, raises
    ValueError with the file and the line, or FileNotFoundError.
    """
    content, root = (_described(path), path.parent) if path.suffix in YAML else _undescribed(path)
    names = _class_names(path, content)
    files = _images_of(path, content, split)
    read_line = partial(_read_line, n_classes=len(names), keypoint_numbers=_keypoint_numbers(path, content))

    def read_image(numbered: tuple[int, Path]) -> tuple[dict[str, Any] | None, list[dict[str, Any]], list[str]]:
        """Its entry, or None where it cannot be read; its annotations; what was wrong."""
        image_id, file = numbered
        wrong: list[str] = []
        annotations: list[dict[str, Any]] = []
        try:
            height, width = image_size(file, oriented=True)
        except (BadImageError, FileNotFoundError) as error:
            if not skip:
                raise
            return None, [], [f"{error} (image {image_id})"]
        labels = label_file(file)
        try:
            lines = read_text(labels).splitlines() if labels.is_file() else []
        except ValueError as error:
            wrong, lines = [str(error)], []
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip():
                    label, (x, y, w, h) = read_line(line.split())
                    box = [round(number, DIGITS) for number in (x * width, y * height, w * width, h * height)]
                    annotations.append({"image_id": image_id, "category_id": label, "bbox": box})
            except ValueError as error:
                wrong.append(f"{labels}, line {number}: {error}")
        if wrong and not skip:
            raise ValueError(wrong[0])
        name = os.path.relpath(file, root)
        image = {"id": image_id, "file_name": name, "height": height, "width": width}
        return image, annotations, [f"{sentence} (image {image_id})" for sentence in wrong]

    numbered = list(zip(image_ids(files), files, strict=True))
    read = in_threads(f"reading labels of {split}", read_image, numbered, shown=progress)
    whole = {
        "images": [image for image, _, _ in read if image],
        "annotations": [annotation for _, annotations, _ in read for annotation in annotations],
        "categories": [{"id": label, "name": name} for label, name in enumerate(names)],
    }
    wrong = [sentence for image, _, sentences in read if image for sentence in sentences]
    left_out = [sentence for image, _, sentences in read if not image for sentence in sentences]
    return whole, [*wrong, *_of_absent_images(files, skip)], left_out


def _of_absent_images(files: Sequence[Path], skip: bool) -> list[str]:
    """A sentence for each label file, among those of the images, that no image belongs to."""
    labels = {label_file(file) for file in files}
    absent = [
        file
        for folder in sorted({file.parent for file in labels})
        for file in sorted({*folder.glob("*.txt")} - labels)
        if is_yolo_label(file)
    ]
    sentences = [f"{file} labels an image that does not exist" for file in absent]
    if absent and not skip:
        raise ValueError(f"{sentences[0]}; so do {len(absent) - 1} others (--bad-data skip leaves them out)")
    return sentences


def _written_out(value: Any, known: dict[int, int]) -> int:
    """How many values YAML's aliases stand for: a few lines can make billions, which str and repr would write."""
    if not isinstance(value, list | dict):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES  # of one that holds itself
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(one, known) for one in inside)
    return known[id(value)]


def _described(path: Path) -> dict[str, Any]:
    """What a data.yaml says."""
    try:
        content = yaml.safe_load(read_text(path))
        count = _written_out(content, {})
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ValueError(f"{path}: its values are nested too deep") from None
    if count > _MOST_VALUES:
        raise ValueError(f"{path}: expected at most {_MOST_VALUES} values, got {count} with its aliases written out")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected train, val and names, as in a YOLO data set's data.yaml")
    return content


def _undescribed(path: Path) -> tuple[dict[str, Any], Path]:
    """What a data.yaml would say beside a file of classes, a name a line; and the data set's folder."""
    root = root_of_classes(path)
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    whole = "images" if (root / "images").is_dir() else "."
    folders: dict[str, str | None] = {
        split: next((f"images/{one}" for one in subsets if (root / "images" / one).is_dir()), None)
        for split, subsets in SUBSETS.items()
    }
    return {
        "path": str(root.absolute()),
        "names": names,
        **(folders if all(folders.values()) else {"train": whole}),
    }, root


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
    if odd := [name for name in names if name is None or isinstance(name, list | dict | bool)]:  # YAML's no is False
        expected = "the name of each class, in quotes if it has a colon or is a word such as yes or no"
        raise ValueError(f"{path}: names: expected {expected}, got {odd[0]!r}")
    return list(map(str, names))


def _keypoint_numbers(path: Path, content: dict[str, Any]) -> int | None:
    """How many numbers follow the box in a pose data set; None in others."""
    shape = content.get("kpt_shape")
    if not shape:
        return None
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(one, int) for one in shape)):
        raise ValueError(f"{path}: kpt_shape: expected keypoints and numbers of each, [17, 3], got {shape!r}")
    return int(shape[0] * shape[1])


def _images_of(path: Path, content: dict[str, Any], split: str) -> list[Path]:
    """The image files of a split, in the order of their names."""
    places = content.get(split) or (content.get("validation") if split == "val" else None)
    if not places:
        raise ValueError(f"{path}: no {split}: expected a folder of images, or a .txt file that lists them, there")
    named = str(content.get("path") or "")
    # the first is the second where that is absolute
    root = next((root for root in (path.parent / named, Path(named)) if root.is_dir()), None)
    if root is None:
        raise FileNotFoundError(
            f"{path}: path: folder {named} does not exist, neither from {path.parent} nor from here"
        )
    files: set[Path] = set()
    for place in map(str, places if isinstance(places, list) else [places]):
        # some exports write ../train/images for what lies beside the data.yaml
        for where in (root / place, root / place.removeprefix("../")):
            if where.is_dir() or (where.is_file() and where.suffix == ".txt"):
                files.update(_within(where) if where.is_dir() else _listed(where, root))
                break
        else:
            raise FileNotFoundError(f"{path}: {split}: expected a folder or a .txt file, and {root / place} is neither")
    if not files:
        raise ValueError(f"{path}: {split}: found no images in {places}")
    return sorted(files)


def _listed(file: Path, root: Path) -> list[Path]:
    """The images of a list; a relative path counts from the list itself if it starts with ./, else from the root."""
    lines = [line.strip() for line in read_text(file).splitlines()]
    return [Path(os.path.abspath((file.parent if line.startswith("./") else root) / line)) for line in lines if line]


def _within(folder: Path) -> list[Path]:
    return [
        Path(parent, name).absolute()
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in (*SUFFIXES, ".mpo") and not name.startswith(".")
    ]


def image_ids(files: Sequence[Path]) -> list[int]:
    """COCO's id where every file is named by it (000000000139.jpg), else 1, 2, ..."""
    numbers = [int(file.stem) for file in files if re.fullmatch(r"[0-9]{1,18}", file.stem)]
    return numbers if len(set(numbers)) == len(files) else list(range(1, len(files) + 1))


def label_file(image: Path) -> Path:
    """Where an image's labels are: the last folder called images in its path becomes labels; or they are beside it."""
    folders, images, below = (image.parent / "_").as_posix().rpartition("/images/")
    beside = image.with_name(f"{image.stem}.txt")
    elsewhere = Path(f"{folders}/labels/{below}" if images else image).with_name(beside.name)
    return elsewhere if elsewhere.is_file() or not beside.is_file() else beside


def _read_line(words: list[str], n_classes: int, keypoint_numbers: int | None) -> tuple[int, list[float]]:
    """Label and box, xywh in parts of the image; ``keypoint_numbers`` follow the box in a pose data set."""
    try:
        label, *values = map(float, words)
    except ValueError as error:
        raise ValueError(f"expected numbers, got {' '.join(words)!r}") from error
    if keypoint_numbers is not None:
        if len(values) != 4 + keypoint_numbers:
            raise ValueError(f"expected {5 + keypoint_numbers} columns, a box and its keypoints, got {len(words)}")
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            f"expected 5 columns, class cx cy w h, or a polygon, class x1 y1 x2 y2 x3 y3 ..., got {len(words)}"
        )
    if not (label.is_integer() and 0 <= label < n_classes):
        raise ValueError(f"expected a class from 0 to {n_classes - 1}, got {words[0]}")
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
