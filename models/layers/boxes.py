"""Boxes: conversions and overlap.

A box is four numbers in the last dimension, either cxcywh (centre and size) or xyxy (two corners); all functions take
any leading dimensions and keep the dtype.
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to (..., 4) corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners to (..., 4) centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019, equation 3) of xyxy boxes, elementwise.

    The leading dimensions of `a` (..., 4) and `b` (..., 4) broadcast; the result (...) lies in [-1, 1]. For all pairs
    of two sets pass ``a[:, None]`` and ``b[None]``. Two boxes of no area have an overlap of 0, not NaN.
    """
    overlap = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - overlap
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    # the smallest normal number changes no quotient except 0/0
    tiny = torch.finfo(a.dtype).tiny
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def match_boxes(
    found_boxes: Tensor, found_labels: Tensor, boxes: Tensor, labels: Tensor, minimum_iou: float = 0.5
) -> list[int | None]:
    """The index of the object that each detection is matched to; None for a false one.

    Greedy, as in COCO's evaluation: each detection takes, of the objects of its class that are left and overlap it by
    ``minimum_iou`` or more, the one that it overlaps most; the first of equals.

    Args:
        found_boxes, found_labels: (M, 4) xyxy and (M,), the best detection first.
        boxes, labels: (N, 4) xyxy and (N,), the objects.
    """
    overlap = box_iou(found_boxes.double(), boxes.double()).masked_fill(found_labels[:, None] != labels[None], -1)
    matches: list[int | None] = [None] * len(overlap)
    # most of a detector's boxes overlap no object at all
    for number in (overlap >= minimum_iou).any(1).nonzero()[:, 0].tolist():
        best = int(overlap[number].argmax())
        if overlap[number, best] >= minimum_iou:
            overlap[:, best] = -1
            matches[number] = best
    return matches


def _area(low: Tensor, high: Tensor) -> Tensor:
    size = (high - low).clamp(min=0)
    return size[..., 0] * size[..., 1]
