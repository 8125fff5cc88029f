"""Transforms that other libraries, or users, have written, as transforms of a data set."""

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..dataset import Sample, Target

Pipeline = Callable[[Tensor, Target], Sample]

# what of a target a pipeline gets; the rest is of the file, which no pipeline changes
_GIVEN = ("image_id", "boxes", "labels")


def adapt(pipeline: Any, name: str = "transform") -> Pipeline:
    """A pipeline of torchvision's ``transforms.v2`` or of Albumentations, or a function, as a transform of a data set.

    What the transform is called with, and returns, is an image, tv_tensors.Image (3, H, W) uint8, and a target with
    ``boxes``, tv_tensors.BoundingBoxes (N, 4) float32 xyxy in pixels, and ``labels`` (N,) int64. Boxes are cut to the
    image; those of which nothing is left are removed with their labels, as are those that the pipeline removes.

    Its random decisions follow from torch's generator alone, which the data set seeds for each item: Python's, numpy's
    and Albumentations' generators are seeded from it, and the first two are put back.

    Args:
        pipeline: a transform or ``Compose`` of ``torchvision.transforms.v2``; one of Albumentations, whose
            ``bbox_params`` may be absent, and whose limits on boxes count if present; or any function of
            (image, target) that returns both. It is copied, and never changed.
        name: what errors call it.

    Raises:
        TypeError: it cannot be called. When called, the transform raises ValueError where the pipeline fails, or its
            result is not an image with its boxes and labels, in one sentence.
    """
    if not callable(pipeline):
        raise TypeError(
            f"{name}: expected a transform of torchvision.transforms.v2 or Albumentations, or a function "
            f"(image, target) -> (image, target), got {type(pipeline).__name__}"
        )
    if _of_albumentations(pipeline):
        return _Adapted(_Albumentations(pipeline), name)
    if isinstance(pipeline, torch.nn.Module):
        pipeline = copy.deepcopy(pipeline)
    return _Adapted(pipeline, name)


class _Adapted:
    """A pipeline with its random numbers seeded and its result checked."""

    def __init__(self, pipeline: Callable[[Tensor, Target], Any], name: str) -> None:
        self._pipeline, self._name = pipeline, name

    def __call__(self, image: Tensor, target: Target) -> Sample:
        try:
            with _seeded():
                result = self._pipeline(image, {name: target[name] for name in _GIVEN if name in target})
            return self._checked(result, target)
        except Exception as error:
            of = f"image {target.get('image_id', '')}, {image.shape[-1]} wide and {image.shape[-2]} high"
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            raise ValueError(f"{self._name}: {of}: {reason}") from error

    def _checked(self, result: Any, target: Target) -> Sample:
        if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], dict)):
            raise _wrong("an image and its target (a dict with boxes and labels)", _described(result))
        if missing := {"boxes", "labels"} - {*result[1]}:
            raise _wrong("boxes and labels in the target", f"none called {' or '.join(sorted(missing))}")
        pixels = _image(result[0])
        boxes, labels = _boxes(result[1]["boxes"], pixels), torch.as_tensor(result[1]["labels"]).long()
        if labels.shape != (len(boxes),):
            raise _wrong(
                f"a label for each of {len(boxes)} boxes",
                f"labels of shape {tuple(labels.shape)}; SanitizeBoundingBoxes removes both together",
            )
        left = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        kept = tv_tensors.wrap(boxes[left], like=boxes)
        return pixels, {**target, "boxes": kept, "labels": labels[left]}


class _Albumentations:
    """A pipeline of Albumentations, called as those of torchvision are."""

    def __init__(self, pipeline: Any) -> None:
        import albumentations

        own = copy.deepcopy(pipeline)
        processor = getattr(own, "processors", {}).get("bboxes")
        limits = ("min_area", "min_visibility", "min_width", "min_height", "max_accept_ratio")
        theirs = {name: getattr(processor.params, name) for name in limits} if processor else {}
        how = albumentations.BboxParams(format="pascal_voc", label_fields=["labels"], clip=True, **theirs)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got processor for bboxes")  # where colours alone change
            self._compose = albumentations.Compose([own], bbox_params=how)

    def __call__(self, image: Tensor, target: Target) -> Sample:
        # one pair of generators for all steps: seeded one by one they would all draw the same numbers
        self._compose.set_random_state(np.random.default_rng(_drawn_seed()), random.Random(_drawn_seed()))
        found = self._compose(
            image=np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
            bboxes=target["boxes"].as_subclass(Tensor).numpy(),
            labels=target["labels"].numpy(),
        )
        boxes = torch.as_tensor(np.asarray(found["bboxes"], dtype=np.float32)).reshape(-1, 4)
        # without boxes their labels may come back as floats
        labels = torch.as_tensor(np.asarray(found["labels"]).astype(np.int64))
        return found["image"], {"boxes": boxes, "labels": labels}


def _of_albumentations(pipeline: Any) -> bool:
    known = sys.modules.get("albumentations")  # a pipeline of it cannot be there without it
    return known is not None and isinstance(pipeline, known.BasicTransform | known.BaseCompose)


def _drawn_seed() -> int:
    return int(torch.randint(2**32, ()))


@contextmanager
def _seeded() -> Iterator[None]:
    """Python's and numpy's generators follow from torch's inside, and are as before afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = _drawn_seed()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what pipelines of others draw from
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _image(image: Any) -> Tensor:
    """A pipeline's image as (3, H, W) uint8."""
    if isinstance(image, np.ndarray | Image.Image):
        image = F.to_image(image)
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise _wrong("an image (3, H, W)", _described(image))
    if image.dtype.is_floating_point:
        least, most = float(image.min()), float(image.max())
        if not (least >= 0 and most <= 1):
            raise _wrong(
                "an image of uint8, or of floats from 0 to 1",
                f"floats from {least:.3g} to {most:.3g}; leave Normalize out, as the model's own follows",
            )
        image = F.to_dtype(image, torch.uint8, scale=True)
    if image.dtype != torch.uint8:
        raise _wrong("an image of uint8, or of floats from 0 to 1", f"{image.dtype}")
    return tv_tensors.Image(image)


def _boxes(boxes: Any, image: Tensor) -> tv_tensors.BoundingBoxes:
    """A pipeline's boxes (N, 4) xyxy float32, cut to the image."""
    size = (image.shape[-2], image.shape[-1])
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        if tuple(boxes.canvas_size) != size:
            raise _wrong(
                f"boxes of the image, {size[1]} wide and {size[0]} high",
                f"boxes of one {boxes.canvas_size[1]} wide and {boxes.canvas_size[0]} high: each step must move both",
            )
        boxes = F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    plain = torch.as_tensor(boxes).as_subclass(Tensor).float()
    if plain.ndim != 2 or plain.shape[1] != 4:
        raise _wrong("boxes (N, 4)", _described(boxes))
    limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
    cut = torch.minimum(plain.clamp(min=0), limit)
    return tv_tensors.BoundingBoxes(cut, format="XYXY", canvas_size=size)


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"


def _wrong(expected: str, got: str) -> ValueError:
    return ValueError(f"expected {expected}, got {got}")
