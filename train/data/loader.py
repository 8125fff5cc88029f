"""From a run's settings to batches of images and targets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...models.inference.image_size import Size
from ...models.inference.images import normalise
from ..config.options import Input, Loading, Source
from ..engine.signals import leave_to_parent
from .annotations import Annotations, Category
from .augmentation.steps import augmentation, own_augmentation
from .dataset import CocoDetection, Key, Sample, Target
from .layouts import SplitName
from .own import OwnData
from .transforms import evaluation_transform

# an epoch of so few images is over in a step; evaluation and checkpoints come once an epoch
OVERFIT_PASSES = 20


@dataclass(frozen=True)
class Order:
    """Which images each step of a run takes, and which of them this process: a function of seed, epoch and step alone.

    So any step can be entered again, and the images of a step are the same for any number of processes. The last
    images of an epoch, fewer than a batch, are left out, unless they are all there are.
    """

    n_images: int
    total: int
    """Images to a step, over all processes."""
    seed: int
    rank: int = 0
    size: int = 1
    share: tuple[int, int] = (0, 1)
    """(r, n): take only images i with i % n == r, which is what this process has in memory."""
    shapes: np.ndarray | None = None
    """(images,) height over width, by which a step's images are dealt out, so that those on a device are alike."""

    def __post_init__(self) -> None:
        if self.total < self.size:
            raise ValueError(
                f"total-batch-size: expected at least one image for each of {self.size} processes, got {self.total}"
            )
        if self.n_images < self.size:
            raise ValueError(f"{self.n_images} training images are fewer than the {self.size} processes")
        if self.share[1] > 1 and self.total % self.size:
            raise ValueError(
                f"total-batch-size: expected a multiple of the {self.size} processes, which draw from the images that "
                f"each keeps, got {self.total}"
            )

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.n_images // self.total)

    def batches(self, epoch: int) -> list[list[int]]:
        """This process's part of every batch of an epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.n_images)
        index, parts = self.share
        if parts > 1:
            # processes of several machines with equal shares take turns, each what is its part of a batch
            group, part = self.size // parts, self.total // self.size
            mine = order[order % parts == index][self.rank // parts :: group]
            return [mine[step * part : (step + 1) * part].tolist() for step in range(self.steps_per_epoch)]
        whole = [order[step * self.total : (step + 1) * self.total] for step in range(self.steps_per_epoch)]
        if self.shapes is not None:
            whole = [batch[np.argsort(self.shapes[batch], kind="stable")] for batch in whole]
        return [np.array_split(batch, self.size)[self.rank].tolist() for batch in whole]

    def keys(self, start: int, end: int) -> Iterator[list[Key]]:
        """The batches of steps `start` to `end`, through epochs."""
        first = start // self.steps_per_epoch
        endless = ([(epoch, index) for index in batch] for epoch in count(first) for batch in self.batches(epoch))
        return islice(endless, start - first * self.steps_per_epoch, max(start, end) - first * self.steps_per_epoch)


class LoadedBatch(NamedTuple):
    """One process's part of a step's images."""

    samples: list[Sample]
    replaced: list[str]
    """A sentence for each image that could not be read, and that another stands in for."""


class _BatchesByKeys(Dataset[LoadedBatch]):
    """A data set of batches, each asked for by the keys of its images."""

    def __init__(self, data: CocoDetection) -> None:
        self._data = data

    def __getitem__(self, keys: list[Key]) -> LoadedBatch:
        items = [self._data.item(key) for key in keys]
        return LoadedBatch([sample for sample, _ in items], [sentence for _, sentence in items if sentence is not None])


def training_data(
    source: Source | OwnData,
    options: Input,
    loading: Loading,
    seed: int,
    *,
    pipeline: Any = None,
    share: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> CocoDetection:
    """The training images; with ``overfit``, the first so many that have boxes, OVERFIT_PASSES times an epoch.

    ``pipeline`` stands in place of ``augment``, as `adapt` takes it. ``share`` is this process's of those on the
    machine, for what it keeps in memory.

    Raises:
        FileNotFoundError: a file that was named, or that the annotations list, does not exist.
        ValueError: wrong annotations, no image with a box, or images that do not fit into memory.
    """
    if pipeline is None or options.overfit:
        mix, transform = augmentation("none" if options.overfit else options.augment, options.size)
    else:
        mix, transform = None, own_augmentation(pipeline, options.size)
    kept = {"mix": mix, "seed": seed, "cache": loading.cache_images, "share": share}
    return _data(source, "train", options, None, transform, OVERFIT_PASSES, progress=progress, **kept)


def validation_data(
    source: Source | OwnData,
    options: Input,
    categories: list[Category] | None,
    size: Size | None = None,
    *,
    progress: bool = True,
) -> CocoDetection:
    """The validation images (with ``overfit``, the very images trained on), whose classes must be the model's.

    Without ``categories``, they are the file's own; ``size``, when given, stands instead of the options'. With bad data
    skipped, every image is decoded once here, so that metrics count only those that can be read.

    Raises:
        FileNotFoundError, ValueError: as training_data.
    """
    split: SplitName = "train" if options.overfit else "val"
    transform = evaluation_transform(size or options.size)
    return _data(source, split, options, categories, transform, decode=True, progress=progress)


def _data(
    source: Source | OwnData,
    split: SplitName,
    options: Input,
    categories: list[Category] | None,
    transform: Callable[[Tensor, Target], Sample],
    passes: int = 1,
    **more: Any,
) -> CocoDetection:
    if isinstance(source, OwnData):
        annotations = source.annotations(split, categories, progress=more["progress"])
    else:
        folder, file = source.split(split)
        annotations = Annotations.load(
            file, categories, options.bad_data, split=split, held_out=source.held_out(), progress=more["progress"]
        )
    file, boxes = annotations.path, np.diff(annotations.first)
    subset = None
    if options.overfit:
        with_boxes = np.flatnonzero(boxes)[: options.overfit]
        if len(with_boxes) < options.overfit:
            raise ValueError(f"overfit: expected {options.overfit} images with boxes, {file} has {len(with_boxes)}")
        subset = np.tile(with_boxes, passes)
    more |= {"subset": subset, "bad_data": options.bad_data}
    if isinstance(source, OwnData):
        data: CocoDetection = source.images(split, annotations, transform, **more)
    else:
        data = CocoDetection(folder, annotations, transform, **more)
    if len(data) == 0:
        raise ValueError(f"{file}: {split} has no images; {len(boxes)} are listed")
    if not boxes[data.rows].any():
        hint = "; labels are expected in labels/ beside images/" if annotations.yolo else ""
        raise ValueError(f"{file}: no annotated images: none of {len(data)} images of {split} has a box{hint}")
    return data


def _as_is(batch: Any) -> Any:
    return batch


def _in_worker(number: int) -> None:
    leave_to_parent()


def training_loader(
    data: CocoDetection, order: Order, loading: Loading, *, start: int, end: int, pin: bool = False
) -> DataLoader[Any]:
    """The `LoadedBatch` of each of the steps `start` to `end`, once; workers live, and load ahead, through epochs.

    `pin` makes tensors that travel to a CUDA device while it computes.
    """
    keys, prefetch = order.keys(start, end), loading.prefetch if loading.workers else None
    return _loader(
        _BatchesByKeys(data), loading.workers, batch_size=None, sampler=keys, pin_memory=pin, prefetch_factor=prefetch
    )


def evaluation_loader(data: CocoDetection, batch_size: int, workers: int) -> DataLoader[Any]:
    """All images in their order."""
    return _loader(data, workers, batch_size=batch_size)


def _loader(data: Dataset[Any], workers: int, **how: Any) -> DataLoader[Any]:
    # a generator of its own: a loader draws from the global one, which would shift dropout after resuming
    own = torch.Generator()
    return DataLoader(data, num_workers=workers, collate_fn=_as_is, generator=own, worker_init_fn=_in_worker, **how)


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
