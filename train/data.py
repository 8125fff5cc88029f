"""From a run's settings to batches of images and targets."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..models.images import Size, normalise
from .coco import Annotations, Category, CocoDetection, Sample
from .config import Input, Loading, Source
from .transforms import evaluation_transform, training_transform

# an epoch of so few images is over in a step; evaluation and checkpoints come once an epoch
OVERFIT_PASSES = 20


class EpochOrder(Sampler[list[int]]):
    """Batches of one epoch, from ``start`` on; the order is a function of (seed, epoch), so any place can be resumed.

    A last batch that is not full is left out, unless it is the only one.
    """

    def __init__(self, n_images: int, batch_size: int, seed: int, epoch: int, start: int = 0) -> None:
        order = np.random.default_rng([seed, epoch]).permutation(n_images)
        count = batches_per_epoch(n_images, batch_size)
        self._batches = [order[i * batch_size : (i + 1) * batch_size].tolist() for i in range(start, count)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def batches_per_epoch(n_images: int, batch_size: int) -> int:
    """Optimizer steps in an epoch."""
    return max(1, n_images // batch_size)


def training_data(source: Source, options: Input, loading: Loading, seed: int) -> CocoDetection:
    """The training images; with ``overfit``, the first so many that have boxes, OVERFIT_PASSES times an epoch."""
    images, annotations = source.split("train")
    packed = Annotations.load(annotations)
    subset = _overfit_rows(packed, options.overfit) * OVERFIT_PASSES if options.overfit else None
    transform = training_transform("none" if options.overfit else options.augment, options.size)
    data = CocoDetection(images, packed, transform, seed=seed, cache=loading.cache_images != "none", subset=subset)
    if len(data) == 0:
        raise ValueError(f"{annotations} lists no images")
    return data


def validation_data(
    source: Source, options: Input, categories: list[Category] | None, size: Size | None = None
) -> CocoDetection:
    """The validation images (with ``overfit``, the very images trained on), whose classes must be the model's.

    Without ``categories``, they are the file's own; ``size``, when given, stands instead of the options'.
    """
    images, annotations = source.split("train" if options.overfit else "val")
    packed = Annotations.load(annotations, categories)
    subset = _overfit_rows(packed, options.overfit) if options.overfit else None
    transform = evaluation_transform(size or options.size)
    return CocoDetection(images, packed, transform, subset=subset)


def _overfit_rows(annotations: Annotations, count: int) -> list[int]:
    with_boxes = np.flatnonzero(np.diff(annotations.first))[:count].tolist()
    if len(with_boxes) < count:
        raise ValueError(f"overfit: expected {count} images with boxes, {annotations.path} has {len(with_boxes)}")
    return with_boxes


def _as_list(samples: list[Sample]) -> list[Sample]:
    return samples


def training_loader(data: CocoDetection, batch_size: int, workers: int, epoch: int, start: int) -> DataLoader[Any]:
    """Batches of an epoch, each a list of samples."""
    data.epoch = epoch
    order = EpochOrder(len(data), batch_size, data.seed, epoch, start)
    # a generator of its own: a loader draws from the global one, which would shift dropout after resuming
    return DataLoader(data, batch_sampler=order, num_workers=workers, collate_fn=_as_list, generator=torch.Generator())


def evaluation_loader(data: CocoDetection, batch_size: int, workers: int) -> DataLoader[Any]:
    """All images in their order."""
    return DataLoader(
        data, batch_size=batch_size, num_workers=workers, collate_fn=_as_list, generator=torch.Generator()
    )


def to_device(
    samples: list[Sample], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Images, normalised, in ``dtype``, and targets, all on ``device``; bytes travel, floats are made there."""
    images = [normalise(image.to(device, non_blocking=True)).to(dtype) for image, _ in samples]
    targets = [
        {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}
        for _, target in samples
    ]
    return images, targets
