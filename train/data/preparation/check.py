"""Everything in a data set that looks like a mistake."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....common.parallel import in_threads
from ....common.text import counted, printable, shown
from ....models.inference.images import SUFFIXES
from ..dataset import CocoDetection
from .options import CheckOptions
from .read import PartName, parts_of, read_part

# kind: its title, in the order in which they are told
KINDS = {
    "unreadable": "annotations that cannot be read",
    "wrong": "wrong annotations, which end a run, or are left out with --bad-data skip",
    "image": "images that are missing, unreadable or of another size than stated; as above",
    "units": "boxes that seem to be in other units",
    "no area": "boxes without area, which are left out of training",
    "outside": "boxes that reach out of their image, where they are cut",
    "duplicate": "boxes that are there twice",
    "coinciding": "boxes that nearly coincide with another",
    "tiny": "tiny boxes",
    "giant": "boxes as large as their image",
    "train and val": "images that are in train and in val, so that val is no test",
    "same image": "images that are there twice in a split",
    "listed twice": "image files that are listed twice",
    "classes": "classes that are not the same in all splits",
    "alike": "classes whose names differ in upper case, spaces or hyphens alone",
    "few": "classes with few boxes to learn from",
    "one class": "one class alone",
    "no boxes": "images without boxes, from which a model learns that nothing is there",
    "not listed": "image files that no annotation lists, and that are not used",
}
# of a pixel or two over the edge, rounding is the reason
OUTSIDE = 2.0
# corners that differ by less are the same; boxes that overlap by more nearly coincide
SAME_PIXELS, COINCIDING_IOU = 1.0, 0.85
# of the image
GIANT = 0.95


@dataclass(frozen=True)
class Finding:
    """Something suspicious."""

    kind: str
    """Of `KINDS`."""
    split: PartName | None
    sentence: str
    """What it is, without the image and the class."""
    image: str | None = None
    """Its file, within the folder of images."""
    label: str | None = None
    """The name of its class."""
    box: tuple[float, ...] | None = None
    """xyxy in pixels."""
    other: tuple[float, ...] | None = None
    """The box that it coincides with."""
    row: int | None = None
    """Of the image, in its split's ``annotations.images``."""

    def line(self) -> str:
        """Where it is, and what it is."""
        where = " ".join(filter(None, (self.split, self.image, self.label)))
        return printable(": ".join(filter(None, (where, self.sentence))))

    def as_json(self) -> dict[str, Any]:
        """For a file: boxes as [x, y, width, height]."""
        boxes = {
            name: None if box is None else [*box[:2], round(box[2] - box[0], 9), round(box[3] - box[1], 9)]
            for name, box in (("box", self.box), ("other_box", self.other))
        }
        return {
            "kind": self.kind,
            "split": self.split,
            "image": self.image,
            "class": self.label,
            **boxes,
            "sentence": self.sentence,
        }


def check(options: CheckOptions) -> tuple[dict[PartName, CocoDetection], list[Finding]]:
    """What could be read, by split, and everything suspicious in it, by kind.

    Every image is decoded. A split that cannot be read at all is one finding.

    Raises:
        FileNotFoundError, ValueError: there is no data set, or none that is recognised.
    """
    parts: dict[PartName, CocoDetection] = {}
    findings: list[Finding] = []
    for part in parts_of(options):
        try:
            parts[part] = read_part(options, part, "skip", decode=True)
        except (ValueError, OSError) as error:
            findings.append(Finding("unreadable", part, str(error)))
    for part, data in parts.items():
        dropped = data.annotations.dropped
        for kind, sentences in (("wrong", dropped.wrong), ("image", dropped.images), ("units", dropped.warnings)):
            findings += [Finding(kind, part, sentence) for sentence in sentences]
        findings += _boxes(part, data, options)
        findings += _images(part, data)
    findings += _same_files(parts, options.progress)
    findings += _classes(parts, options)
    findings += _not_listed(parts)
    order = list(KINDS)
    return parts, sorted(findings, key=lambda finding: order.index(finding.kind))


def _boxes(part: PartName, data: CocoDetection, options: CheckOptions) -> Iterator[Finding]:
    annotations = data.annotations
    given = annotations.given[annotations.given[:, 7] == 0]
    given = given[np.argsort(given[:, 0], kind="stable")]
    first = np.searchsorted(given[:, 0], np.arange(len(annotations.images) + 1))
    names = [category.name for category in annotations.categories]
    for row, image in enumerate(annotations.images):
        mine = given[first[row] : first[row + 1]]
        boxes = np.column_stack([mine[:, 2:4], mine[:, 2:4] + mine[:, 4:6]])
        corners = [tuple(box) for box in boxes.tolist()]
        labels = [names[int(label)] for label in mine[:, 1]]
        for kind, number, other, sentence in _of_image(boxes, labels, (image.height, image.width), options.tiny):
            second = None if other is None else corners[other]
            yield Finding(kind, part, sentence, image.name, labels[number], corners[number], second, row)


def _of_image(
    boxes: np.ndarray, labels: Sequence[str], image: tuple[int, int], tiny: float
) -> Iterator[tuple[str, int, int | None, str]]:
    """Kind, box, the box that it is compared with, and a sentence, of everything suspicious.

    Args:
        boxes: (N, 4) xyxy in pixels, of one image.
        labels: their classes' names.
        image: its height and width.
        tiny: below this width or height a box is tiny.
    """
    height, width = image
    limits = np.array([width, height] * 2, dtype=np.float64)
    inside = boxes.clip(0, limits)
    sizes = (boxes[:, 2:] - boxes[:, :2]).round(9)
    whole: np.ndarray = np.all(inside[:, 2:] > inside[:, :2], axis=1)
    share = (inside[:, 2:] - inside[:, :2]).prod(1) / (width * height)
    beyond = np.maximum(-boxes, boxes - limits).max(1, initial=0)
    for number, ((x, y), (wide, high)) in enumerate(zip(boxes[:, :2].tolist(), sizes.tolist(), strict=True)):
        where = f"{wide:g} x {high:g} pixels at {x:g}, {y:g}"
        if not whole[number]:
            yield "no area", number, None, where + f", outside {width} x {height}" * (min(wide, high) > 0)
            continue
        if beyond[number] > OUTSIDE:
            yield "outside", number, None, f"{where}, {beyond[number]:g} pixels over the edge of {width} x {height}"
        if min(wide, high) < tiny:
            yield "tiny", number, None, where
        elif share[number] >= GIANT:
            yield "giant", number, None, f"{where}, {share[number]:.0%} of the image"
    for number, other, overlap in _pairs(boxes, whole):
        same = labels[number] == labels[other]
        if same and (np.abs(boxes[number] - boxes[other]) < SAME_PIXELS).all():
            yield "duplicate", other, number, f"at {boxes[other, 0]:g}, {boxes[other, 1]:g}"
        elif overlap >= COINCIDING_IOU:
            with_what = "another of its class" if same else shown(labels[number])
            yield "coinciding", other, number, f"with {with_what}, IoU {overlap:.2f}"


def _pairs(boxes: np.ndarray, whole: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Pairs of an image's boxes with area that overlap much or are the same, and their IoU."""
    x0, y0, x1, y1 = boxes.T
    areas = (x1 - x0) * (y1 - y0)
    across = np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0)
    down = np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0)
    common = across.clip(0) * down.clip(0)
    union = areas[:, None] + areas - common
    overlap = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    apart = np.max([np.abs(side[:, None] - side) for side in (x0, y0, x1, y1)], 0)
    pairs = ((apart < SAME_PIXELS) | (overlap >= COINCIDING_IOU)) & whole[:, None] & whole
    for number, other in np.argwhere(np.triu(pairs, 1)).tolist():
        yield number, other, float(overlap[number, other])


def _images(part: PartName, data: CocoDetection) -> Iterator[Finding]:
    annotations = data.annotations
    counts = np.bincount(annotations.given[:, 0].astype(np.int64), minlength=len(annotations.images))
    names = Counter(os.path.normpath(image.name) for image in annotations.images)
    for row, image in enumerate(annotations.images):
        if counts[row] == 0:
            yield Finding("no boxes", part, "", image.name, row=row)
    for name, times in names.items():
        if times > 1:
            yield Finding("listed twice", part, f"{times} times", name)


def _same_files(parts: Mapping[PartName, CocoDetection], progress: bool) -> Iterator[Finding]:
    """Images of the same content, by their files' SHA-256."""
    files = {
        (data.folder / image.name).resolve(): (part, image.name, row)
        for part, data in parts.items()
        for row, image in enumerate(data.annotations.images)
    }
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        if file.is_file():
            by_size[file.stat().st_size].append(file)
    alike = [file for same in by_size.values() if len(same) > 1 for file in same]
    by_content: dict[str, list[Path]] = defaultdict(list)
    for file, digest in zip(alike, in_threads("comparing images", _digest, alike, shown=progress), strict=True):
        by_content[digest].append(file)
    groups = [[files[file] for file in group] for group in by_content.values() if len(group) > 1]
    # one file that is listed in both splits is in both as well
    for listed in _in_several(parts):
        groups.append(listed)
    for group in groups:
        (first, name, _), *others = group
        for part, other, row in others:
            kind = "same image" if part == first else "train and val"
            yield Finding(kind, part, f"the same as {first} {name}", other, row=row)


def _in_several(parts: Mapping[PartName, CocoDetection]) -> Iterator[list[tuple[PartName, str, int]]]:
    places: dict[Path, dict[PartName, tuple[PartName, str, int]]] = defaultdict(dict)
    for part, data in parts.items():
        for row, image in enumerate(data.annotations.images):
            places[(data.folder / image.name).resolve()].setdefault(part, (part, image.name, row))
    for found in places.values():
        if len(found) > 1:
            yield list(found.values())


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _classes(parts: Mapping[PartName, CocoDetection], options: CheckOptions) -> Iterator[Finding]:
    names_of = {part: {c.id: c.name for c in data.annotations.categories} for part, data in parts.items()}
    if len(names_of) == 2:
        train, val = names_of["train"], names_of["val"]
        for number in sorted(train.keys() | val.keys()):
            one, other = train.get(number), val.get(number)
            if one != other:
                told = [
                    f"{part} has {f'{name!r}' if name else 'none'}" for part, name in (("train", one), ("val", other))
                ]
                yield Finding("classes", None, f"of id {number}, {' and '.join(told)}")
    names = list(dict.fromkeys(name for found in names_of.values() for name in found.values()))
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"[\s_-]+", "", name).casefold()].append(name)
    for group in groups.values():
        if len(group) > 1:
            yield Finding("alike", None, " and ".join(repr(name) for name in group))
    learnt: PartName | None = next((part for part in ("train", "all") if part in parts), None)
    if learnt is None:
        return
    annotations = parts[learnt].annotations
    counts = np.bincount(annotations.labels, minlength=len(annotations.categories))
    for category, count in zip(annotations.categories, counts.tolist(), strict=True):
        if count < options.few:
            yield Finding("few", learnt, counted(count, "box"), label=category.name)
    with_boxes = [category.name for category, count in zip(annotations.categories, counts, strict=True) if count]
    if len(with_boxes) == 1:
        yield Finding("one class", learnt, "a detector of one class is trained", label=with_boxes[0])


def _not_listed(parts: Mapping[PartName, CocoDetection]) -> Iterator[Finding]:
    if not parts or any(data.annotations.yolo for data in parts.values()):
        return  # its images are those in the folder
    listed = {(data.folder / image.name).resolve() for data in parts.values() for image in data.annotations.images}
    for folder in dict.fromkeys(data.folder for data in parts.values()):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.resolve() not in listed:
                yield Finding("not listed", None, "", file.name)
