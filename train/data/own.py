"""Data sets of users: any map-style ``Dataset`` of images and boxes, in place of files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ...common.progress import progress_bar
from ...models.inference.images import BadImageError, read_image
from .annotations import Annotations, Category
from .dataset import CocoDetection
from .layouts import SplitName


@dataclass(frozen=True)
class OwnData:
    """Data sets for training and validation, of (image, target).

    An image is anything that ``read_image`` takes. A target is a dict of ``boxes`` (N, 4), xyxy in pixels of the image,
    or ``tv_tensors.BoundingBoxes`` of any format, and ``labels`` (N,), integers; or a list of COCO's annotations, with
    ``bbox`` (x, y, width, height) and ``category_id``, as ``torchvision.datasets.CocoDetection`` gives it.

    Every item is read once before training, for its boxes, and must be the same whenever it is read again: random
    transforms belong into ``transform=``.
    """

    train: Any
    val: Any
    categories: Mapping[int, str] | Sequence[str] | None = None
    """Names of the labels; those of ``dataset.categories`` or ``.classes``, or of COCO's file, when None, or else the
    labels as text."""

    def __post_init__(self) -> None:
        for name, dataset in (("training", self.train), ("validation", self.val)):
            if isinstance(dataset, str | Path) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
                raise TypeError(f"data: expected a Dataset with a length, got {type(dataset).__name__} for {name}")

    def annotations(
        self, split: SplitName, categories: list[Category] | None = None, *, progress: bool = True
    ) -> Annotations:
        """The boxes of a split, whose images are numbered in the order of the data set.

        Raises ValueError for an item that is not as described, in one sentence.
        """
        dataset, name = (self.train, "training data") if split == "train" else (self.val, "validation data")
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        with progress_bar(f"reading {name}", len(dataset), shown=progress) as advance:
            for index in range(len(dataset)):
                where = f"data: item {index} of the {name}"
                image, boxes, labels, own = _item(dataset, index, where)
                height, width = image.shape[-2:]
                images.append({"id": index, "file_name": f"item {index}", "height": height, "width": width})
                for (x0, y0, x1, y1), label, more in zip(boxes, labels, own, strict=True):
                    if x1 < x0 or y1 < y0:
                        raise ValueError(f"{where}: expected boxes xyxy, x1 <= x2 and y1 <= y2, got {[x0, y0, x1, y1]}")
                    box = [x0, y0, x1 - x0, y1 - y0]
                    annotations.append({**more, "image_id": index, "category_id": label, "bbox": box})
                advance()
        if not images:
            raise ValueError(f"data: expected at least one item in the {name}, got none")
        used = {annotation["category_id"] for annotation in annotations}
        names = self._names(dataset, used) if categories is None else {one.id: one.name for one in categories}
        if unknown := sorted(used - names.keys()):
            raise ValueError(f"data: the {name} have the label {unknown[0]}, expected one of {list(names)[:10]}")
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": label, "name": own} for label, own in names.items()],
        }
        return Annotations.of(content, Path(name), categories=categories, split=split)

    def images(self, split: SplitName, annotations: Annotations, transform: Any, **how: Any) -> "OwnImages":
        """The images of a split with its annotations; the rest as of `CocoDetection`."""
        return OwnImages(self.train if split == "train" else self.val, annotations, transform, **how)

    def _names(self, dataset: Any, used: set[int]) -> dict[int, str]:
        found = self.categories
        if found is None:
            found = getattr(dataset, "categories", None) or getattr(dataset, "classes", None)
        if found is None and (coco := getattr(dataset, "coco", None)) is not None:
            found = {number: one["name"] for number, one in coco.cats.items()}
        if found is None:
            found = {label: str(label) for label in sorted(used)}
        named = found.items() if isinstance(found, Mapping) else enumerate(found)
        return {int(label): str(name) for label, name in named}


class OwnImages(CocoDetection):
    """Images of a user's data set. They are read from it, whatever is said of files."""

    def __init__(self, dataset: Any, annotations: Annotations, transform: Any, **how: Any) -> None:
        if how.get("cache", "none") != "none":
            raise ValueError("cache-images: expected none with data sets of a script, which may keep images themselves")
        self._dataset = dataset
        super().__init__(Path(), annotations, transform, **how)

    def pixels(self, row: int) -> Tensor:
        where = f"data: item {row} of the {self.annotations.path}"
        image = _image(self._dataset[row][0], where)
        entry = self.annotations.images[row]
        if image.shape[-2:] != (entry.height, entry.width):
            raise BadImageError(
                f"{where} is {image.shape[-1]} wide and {image.shape[-2]} high, and was {entry.width} and "
                f"{entry.height} when it was read first; random transforms belong into transform="
            )
        return image

    def _leave_out_bad(self, decode: bool, progress: bool) -> None:
        """All items were read."""

    def _refuse_bad(self, progress: bool) -> None:
        """All items were read."""


def _image(image: Any, where: str) -> Tensor:
    if isinstance(image, tv_tensors.Image):
        image = image.as_subclass(Tensor)
    try:
        # boxes are of the pixels that the data set gives
        return read_image(image, name=where, oriented=False)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _item(dataset: Any, index: int, where: str) -> tuple[Tensor, list[list[float]], list[int], list[dict[str, Any]]]:
    """Image, boxes xyxy, labels, and of each box what COCO's evaluation knows beside them."""
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(f"{where}: expected an image and its target, got {type(item).__name__}")
    image, target = _image(item[0], where), item[1]
    if isinstance(target, list | tuple) and all(isinstance(one, Mapping) and "bbox" in one for one in target):
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in target)]
        own = [{name: one[name] for name in ("iscrowd", "area") if name in one} for one in target]
        return image, boxes, [int(one["category_id"]) for one in target], own
    if isinstance(target, Mapping) and target.keys() <= {"image_id"}:  # torchvision's of an image without boxes
        return image, [], [], []
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        got = ", ".join(map(str, target)) if isinstance(target, Mapping) else type(target).__name__
        raise ValueError(f"{where}: expected a target with boxes and labels, got {got or 'an empty one'}")
    given = target["boxes"]
    if isinstance(given, tv_tensors.BoundingBoxes):
        given = F.convert_bounding_box_format(given, new_format=tv_tensors.BoundingBoxFormat.XYXY).as_subclass(Tensor)
    try:
        corners = np.asarray(given, dtype=np.float64).reshape(-1, 4)
        numbers = torch.as_tensor(np.asarray(target["labels"])).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected boxes (N, 4) and labels (N,), {error}") from None
    labels = numbers.long()
    if len(labels) != len(corners) or not torch.equal(labels.double(), numbers.double()):
        raise ValueError(
            f"{where}: expected a whole number for each of {len(corners)} boxes, got labels {numbers.tolist()[:10]}"
        )
    if not np.isfinite(corners).all():
        raise ValueError(f"{where}: expected finite numbers in boxes, got {corners[~np.isfinite(corners).all(1)][0]}")
    return image, corners.tolist(), labels.tolist(), [{} for _ in labels]
