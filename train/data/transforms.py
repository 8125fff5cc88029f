"""From a decoded image and its boxes in pixels to what a model trains on, on torchvision's ``transforms.v2``.

The published recipe (DETR, Deformable DETR): a horizontal flip half the time; then half the time a resize of the
shorter side to one of 480, 512, ..., 800, else a resize to 400, 500 or 600, a crop of 384 to 600 each way and that
resize; the longer side at most 1333. Evaluation resizes to 800 and 1333. Other sizes scale all of these alike.

Under the same random decisions sizes, crops, labels and boxes are the official code's to the bit. Of the pixels some
differ, because the official code resizes with Pillow: 0.10% of their values in augmented images of COCO, by 1 of 255.
Pillow takes several times as long for a resize (tests/train/data/test_recipe.py prints both).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import Compose
from torchvision.transforms.v2 import functional as F

from ...models.inference.image_size import ExactSize, Size
from ...models.layers.boxes import xyxy_to_cxcywh
from .dataset import Sample, Target


def resize(image: Tensor, target: Target, size: Size) -> Sample:
    """The image and its boxes, resized."""
    new = list(size.fit(*image.shape[-2:]))
    if new != list(image.shape[-2:]):
        image = F.resize(image, new, antialias=True)
        target = {**target, "boxes": F.resize(target["boxes"], new)}
    return image, target


class RandomSizes:
    """The published multi-scale resize and crop, scaled to ``size``."""

    def __init__(self, size: Size) -> None:
        self.direct = [Size(size.scaled(short), size.longest) for short in range(480, 801, 32)]
        if isinstance(size, ExactSize):  # whatever was cropped ends at the size that the model takes
            self.direct = [size]
        # the resize before the crop has no limit on the longer side
        self.before_crop = [Size(size.scaled(short), 10**9) for short in (400, 500, 600)]
        self.crop = (size.scaled(384), size.scaled(600))

    def __call__(self, image: Tensor, target: Target) -> Sample:
        if _draw(2):
            return resize(image, target, self.direct[_draw(len(self.direct))])
        image, target = resize(image, target, self.before_crop[_draw(len(self.before_crop))])
        height, width = (self._crop_side(side) for side in image.shape[-2:])
        top, left = _draw(image.shape[-2] - height + 1), _draw(image.shape[-1] - width + 1)
        image = F.crop(image, top, left, height, width)
        boxes = F.clamp_bounding_boxes(F.crop(target["boxes"], top, left, height, width))
        # what the crop cut away keeps no box, as published; one that it only cut keeps what is left
        left_over = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = tv_tensors.wrap(boxes[left_over], like=boxes)
        target = {**target, "labels": target["labels"][left_over], "boxes": boxes}
        return resize(image, target, self.direct[_draw(len(self.direct))])

    def _crop_side(self, side: int) -> int:
        low, high = self.crop
        return side if side <= low else low + _draw(min(side, high) - low + 1)


def flip(image: Tensor, target: Target) -> Sample:
    """Mirrors left and right half the time."""
    if _draw(2):
        return F.horizontal_flip(image), {**target, "boxes": F.horizontal_flip(target["boxes"])}
    return image, target


def to_model(image: Tensor, target: Target) -> Sample:
    """Boxes in cxcywh, normalised to the image; all as plain tensors. The image stays uint8 for the way."""
    height, width = image.shape[-2:]
    # rounded as the official code rounds; torchvision's own conversion differs in the last bit
    boxes = xyxy_to_cxcywh(target["boxes"].as_subclass(Tensor).float())
    plain = {**target, "boxes": boxes / torch.tensor([width, height, width, height], dtype=torch.float32)}
    return image.as_subclass(Tensor), plain


def training_transform(augment: str, size: Size) -> Compose:
    """``official``: flip, random sizes and crops. ``flip``: flip, one size. ``none``: one size."""
    one_size = partial(resize, size=size)
    steps: dict[str, list[Any]] = {"official": [flip, RandomSizes(size)], "flip": [flip, one_size], "none": [one_size]}
    return Compose([*steps[augment], to_model])


def evaluation_transform(size: Size) -> Compose:
    """One size, nothing random."""
    return training_transform("none", size)


def _draw(n: int) -> int:
    """A random integer below n, from torch's generator (seeded for each item by the data set)."""
    return int(torch.randint(n, ()))
