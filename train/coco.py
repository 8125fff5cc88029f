"""A COCO-format data set: the annotation file checked on reading, the boxes packed, the images decoded on demand."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..models.images import BadImageError
from ..models.images import read_image as read_any_image

# a target before batching: boxes are tv_tensors (N, 4) xyxy in pixels, or, after transforms, what models/ expects
Target = dict[str, Any]
Sample = tuple[Tensor, Target]


@dataclass(frozen=True)
class Category:
    """A class as the annotation file names it."""

    id: int
    name: str


@dataclass
class Dropped:
    """What was left out of training, by the ids of the images it was in."""

    crowd: list[int] = field(default_factory=list)
    degenerate: list[int] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """One line for each reason that dropped something."""
        reasons = {
            "crowd regions, which are not single objects": self.crowd,
            "boxes with no area inside their image": self.degenerate,
        }
        lines = []
        for reason, ids in reasons.items():
            if ids:
                distinct = sorted(set(ids))
                shown = ", ".join(map(str, distinct[:10])) + (", ..." if len(distinct) > 10 else "")
                lines.append(f"left out {len(ids)} {reason} (image ids {shown})")
        return lines


@dataclass
class Annotations:
    """An annotation file, checked and packed: flat arrays, because worker processes share those without copying.

    ``boxes[first[i]:first[i + 1]]`` are those of image i.
    """

    path: Path
    images: list[tuple[int, str, int, int]]
    """(image id, file name, height, width)."""
    categories: list[Category]
    """In the order of their ids; a label is an index into this list."""
    boxes: np.ndarray
    """(N, 4) float32, xyxy in pixels, clipped to the image."""
    labels: np.ndarray
    """(N,) int64."""
    first: np.ndarray
    """(images + 1,) int64."""
    dropped: Dropped

    @classmethod
    def load(cls, path: Path, categories: list[Category] | None = None) -> "Annotations":
        """Reads and checks an ``instances_*.json``.

        Args:
            path: the file.
            categories: those a model was trained with; its labels then stand for them, and the file must name them.
                The file's own when None.

        Raises:
            FileNotFoundError: no such file.
            ValueError: anything in it that training would stumble over, with the annotation's and the image's id.
        """
        content = _read_json(path)
        own = sorted((Category(int(c["id"]), str(c["name"])) for c in content["categories"]), key=lambda c: c.id)
        if not own:
            raise ValueError(f"{path}: expected at least one category, found none")
        _refuse_repeats(path, "category", [c.id for c in own])
        if categories is not None:
            _same_categories(path, own, categories)
        label_of = {category.id: label for label, category in enumerate(own if categories is None else categories)}

        images = [_image_entry(path, entry) for entry in content["images"]]
        _refuse_repeats(path, "image", [image[0] for image in images])
        row_of = {image[0]: row for row, image in enumerate(images)}
        dropped = Dropped()
        boxes: list[tuple[float, float, float, float]] = []
        labels: list[int] = []
        rows: list[int] = []
        for annotation in content["annotations"]:
            image_id, box = _check_annotation(path, annotation, row_of, label_of)
            if annotation.get("iscrowd", 0):
                dropped.crowd.append(image_id)
                continue
            row = row_of[image_id]
            _, _, height, width = images[row]
            x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
            x1, y1 = min(box[0] + box[2], float(width)), min(box[1] + box[3], float(height))
            if x1 <= x0 or y1 <= y0:
                dropped.degenerate.append(image_id)
                continue
            boxes.append((x0, y0, x1, y1))
            labels.append(label_of[annotation["category_id"]])
            rows.append(row)

        order = np.argsort(np.asarray(rows, dtype=np.int64), kind="stable")
        counts = np.bincount(np.asarray(rows, dtype=np.int64), minlength=len(images))
        return cls(
            path=path,
            images=images,
            categories=own if categories is None else list(categories),
            boxes=np.asarray(boxes, dtype=np.float32).reshape(-1, 4)[order],
            labels=np.asarray(labels, dtype=np.int64)[order],
            first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            dropped=dropped,
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"annotation file {path} is not JSON: {error}") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise ValueError(f"annotation file {path}: expected images, annotations and categories, lacks {missing}")
    return content


def _refuse_repeats(path: Path, what: str, ids: list[int]) -> None:
    if len(set(ids)) < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise ValueError(f"{path}: {what} id {values[counts > 1][0]} is given to more than one {what}")


def _same_categories(path: Path, own: list[Category], wanted: list[Category]) -> None:
    names = {category.id: category.name for category in own}
    for category in wanted:
        if names.get(category.id) != category.name:
            here = f"'{names[category.id]}'" if category.id in names else "absent"
            raise ValueError(
                f"{path}: category {category.id} is '{category.name}' in the checkpoint and {here} in this file; "
                "the model was trained on other classes"
            )


def _image_entry(path: Path, entry: dict[str, Any]) -> tuple[int, str, int, int]:
    try:
        return int(entry["id"]), str(entry["file_name"]), int(entry["height"]), int(entry["width"])
    except KeyError as error:
        raise ValueError(f"{path}: image {entry.get('id', entry)} lacks {error}") from error


def _check_annotation(
    path: Path, annotation: dict[str, Any], row_of: dict[int, int], label_of: dict[int, int]
) -> tuple[int, tuple[float, ...]]:
    """The image's id and the box, xywh."""
    absent = [key for key in ("image_id", "category_id", "bbox") if key not in annotation]
    where = f"{path}: annotation {annotation.get('id', '(without an id)')}"
    if absent:
        raise ValueError(f"{where} lacks {', '.join(absent)}")
    image_id = annotation["image_id"]
    if image_id not in row_of:
        raise ValueError(f"{where} is of image {image_id}, which the file does not list")
    where = f"{where} of image {image_id}"
    if annotation["category_id"] not in label_of:
        known = ", ".join(map(str, list(label_of)[:10])) + (", ..." if len(label_of) > 10 else "")
        raise ValueError(f"{where} has category {annotation['category_id']}, expected one of the file's: {known}")
    box = tuple(map(float, annotation["bbox"]))
    if len(box) != 4 or not np.isfinite(box).all():
        raise ValueError(f"{where}: bbox is expected to be four finite numbers [x, y, width, height], got {list(box)}")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: bbox is expected to be [x, y, width, height], got a negative size in {list(box)}")
    return image_id, box


class CocoDetection(Dataset[Sample]):
    """Images and their boxes.

    An item is an image (3, H, W) uint8 and a target: ``image_id`` int, ``size`` (h, w) of the file, ``labels`` (N,)
    int64, ``boxes`` (N, 4); what ``transform`` makes of them.

    Args:
        images: folder of the images.
        annotations: read by Annotations.load.
        transform: called with (image, target, generator seed of this item).
        seed: augmentation of an item depends on (seed, epoch, item) alone, so that neither the number of worker
            processes nor stopping and resuming changes it.
        cache: keep decoded images in memory.
        subset: rows of ``annotations.images`` to offer; all when None.

    Raises:
        FileNotFoundError: the folder, or an image that the annotations list, does not exist.
    """

    def __init__(
        self,
        images: Path,
        annotations: Annotations,
        transform: Callable[[Tensor, Target], Sample],
        *,
        seed: int = 0,
        cache: bool = False,
        subset: list[int] | None = None,
    ) -> None:
        self.folder = images
        self.annotations = annotations
        self.transform = transform
        self.seed = seed
        self.epoch = 0
        self.rows = list(range(len(annotations.images))) if subset is None else subset
        self._cache: dict[int, Tensor] | None = {} if cache else None
        self._refuse_missing()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        image_id, _, height, width = self.annotations.images[row]
        start, stop = self.annotations.first[row], self.annotations.first[row + 1]
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(self.annotations.boxes[start:stop].copy()), format="XYXY", canvas_size=(height, width)
        )
        target: Target = {
            "image_id": image_id,
            "size": (height, width),
            "labels": torch.from_numpy(self.annotations.labels[start:stop].copy()),
            "boxes": boxes,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.seed, self.epoch, index))
            return self.transform(tv_tensors.Image(self._pixels(row)), target)

    @property
    def image_ids(self) -> list[int]:
        """COCO's ids of the images on offer."""
        return [self.annotations.images[row][0] for row in self.rows]

    def _pixels(self, row: int) -> Tensor:
        if self._cache is not None and row in self._cache:
            return self._cache[row]
        image_id, name, height, width = self.annotations.images[row]
        image = read_image(self.folder / name)
        if image.shape[1:] != (height, width):
            raise BadImageError(
                f"{self.folder / name} is {image.shape[2]} wide and {image.shape[1]} high, "
                f"but {self.annotations.path} says {width} and {height} (image {image_id})"
            )
        if self._cache is not None:
            self._cache[row] = image
        return image

    def _refuse_missing(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"image folder {self.folder} does not exist")
        present = {entry.name for entry in self.folder.iterdir()}
        absent = [
            (image_id, name)
            for image_id, name, _, _ in (self.annotations.images[row] for row in self.rows)
            if name not in present and not (self.folder / name).is_file()  # the name may hold a subfolder
        ]
        if absent:
            image_id, name = absent[0]
            raise FileNotFoundError(
                f"{self.folder / name} does not exist, but {self.annotations.path} lists it (image {image_id}); "
                f"{len(absent)} of {len(self.rows)} images are missing"
            )


def _mix(seed: int, epoch: int, index: int) -> int:
    """One 63-bit seed from three numbers."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def read_image(path: Path) -> Tensor:
    """Decodes an image file to (3, H, W) uint8 RGB, as `models.images.read_image` does but for its orientation tag.

    Raises:
        FileNotFoundError: no such file.
        BadImageError: not an image, or a truncated one.
    """
    # COCO's boxes, widths and heights are those of the file's own pixels, whatever way up a viewer shows them
    return read_any_image(path, oriented=False)
