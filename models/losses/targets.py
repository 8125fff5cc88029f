"""What detectors are trained towards, and what it may hold: labels of the classes, boxes as shares of the image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Target = dict[str, Tensor]
"""Of one image: ``labels`` (N,) int64 and ``boxes`` (N, 4), cxcywh, normalised; see `criterion.SetCriterion`."""

# a box may reach over the image's border, as one that was not clipped does, but no coordinate farther than its size
LEAST, MOST = -1.0, 2.0


def check_shapes(targets: Sequence[Target], batch: int) -> None:
    """Raises ValueError unless each of the `batch` images has a target, with labels (N,) and boxes (N, 4)."""
    if len(targets) != batch:
        raise ValueError(f"targets: expected {batch}, one an image, got {len(targets)}")
    for i, target in enumerate(targets):
        missing = {"labels", "boxes"} - target.keys()
        if missing:
            raise ValueError(f"targets[{i}]: expected labels and boxes, got no {' and no '.join(sorted(missing))}")
        labels, boxes = target["labels"], target["boxes"]
        if labels.dim() != 1 or labels.dtype.is_floating_point:
            raise ValueError(f"targets[{i}]: expected integer labels (N,), got {labels.dtype} {tuple(labels.shape)}")
        if boxes.shape != (len(labels), 4):
            raise ValueError(f"targets[{i}]: expected boxes (N={len(labels)}, 4), got {tuple(boxes.shape)}")


def pad_targets(targets: Sequence[Target], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Labels (B, T) and boxes (B, T, 4) of `dtype`, zero beyond the boxes of each image."""
    most = max((len(target["labels"]) for target in targets), default=0)
    labels = _pad([target["labels"].long() for target in targets], most)
    return labels, _pad([target["boxes"].to(dtype) for target in targets], most)


def pack_values(labels: Tensor, boxes: Tensor) -> Tensor:
    """`pad_targets`'s two in one vector, which may travel to the host with something else."""
    return torch.cat([labels.flatten().to(boxes.dtype), boxes.flatten()])


def check_values(packed: Tensor, targets: Sequence[Target], classes: int, *, flat: bool = True) -> None:
    """Check what `pack_values` made of the `targets`, on the host.

    Raises ValueError for a label that is not one of the `classes`, and for a box that is not cxcywh in shares of the
    image, or unless `flat` has no width or no height; each names the image and the annotation. A box that is not
    finite passes: the costs tell of it.
    """
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    split = len(targets) * most
    labels = packed[:split].view(len(targets), most).tolist()
    boxes = packed[split:].view(len(targets), most, 4).tolist()
    for image, count in enumerate(counts):
        for i in range(count):
            if not 0 <= labels[image][i] < classes:
                raise ValueError(
                    f"labels: expected classes 0 to {classes - 1}, got {int(labels[image][i])} in "
                    f"{_annotation(targets, image, i)}"
                )
            box = boxes[image][i]
            if not all(map(math.isfinite, box)):
                continue
            came = f"got ({', '.join(f'{x:g}' for x in box)}) in {_annotation(targets, image, i)}"
            if not _is_normalised(box):
                raise ValueError(
                    f"boxes: expected centre, width and height as shares of the image, from 0 to 1, {came}"
                )
            if not flat and min(box[2:]) == 0:
                raise ValueError(f"boxes: expected a width and a height above 0, {came}")


def image_name(image: int, target: Target) -> str:
    """An image of the batch, as errors call it."""
    known = f" (image_id {int(target['image_id'])})" if "image_id" in target else ""
    return f"image {image} of the batch{known}"


def _annotation(targets: Sequence[Target], image: int, i: int) -> str:
    ids = targets[image].get("annotation_ids")
    which = f"index {i}" if ids is None else f"id {int(ids[i])}"
    return f"{image_name(image, targets[image])}, annotation {which}"


def _is_normalised(box: Sequence[float]) -> bool:
    return all(LEAST <= x <= MOST for x in box) and min(box[2:]) >= 0


def _pad(rows: Sequence[Tensor], length: int) -> Tensor:
    """Tensors (n_i, ...) as one (len(rows), length, ...), zero beyond each."""
    padded = rows[0].new_zeros(len(rows), length, *rows[0].shape[1:])
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
