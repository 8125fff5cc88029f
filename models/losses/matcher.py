"""Bipartite matching of predictions to boxes (Carion et al. 2020, equation 1), with focal or softmax class costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..layers.boxes import cxcywh_to_xyxy, generalized_iou
from .targets import Target, check_values, image_name, pack_values, pad_targets


class NonFiniteCostError(ValueError):
    """Predictions or targets contain NaN or infinity, so no matching exists; training should skip the step or stop."""


@dataclass(frozen=True)
class Matches:
    """Pairs of a query and a box, over all layers and images: four int64 vectors (M,) on the predictions' device."""

    layer: Tensor
    image: Tensor
    query: Tensor
    box: Tensor  # row of its own image's targets


@dataclass(frozen=True)
class HungarianMatcher:
    """The assignment of least cost, each box to one query, with weights of the three costs and the focal parameters.

    With `focal` the class cost is the change of the focal loss when the query takes the box's class; without, it is
    minus the class's softmax probability, the last class being no object. The others are the L1 distance of cxcywh
    boxes and minus their generalised IoU.
    """

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    focal: bool = True

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Matches:
        """Match K layers of B images in one cost matrix, one transfer to the host, and K*B calls of scipy.

        logits (K, B, Q, C) and boxes (K, B, Q, 4) cxcywh are at least float32; each of the B targets has ``labels``
        (N,) and ``boxes`` (N, 4). Of more boxes than queries, the Q cheapest to match are matched.

        Raises ValueError as `targets.check_values`, and NonFiniteCostError if a cost is not finite.
        """
        K, _, _, C = logits.shape
        C -= not self.focal  # the last of a softmax is no object
        counts = [len(target["labels"]) for target in targets]
        labels, wanted = pad_targets(targets, boxes.dtype)  # (B, T), (B, T, 4)
        costs = self.costs(logits, boxes, labels.clamp(0, C - 1), wanted)

        # labels and boxes travel with the costs: one transfer, and no check that stalls the device before it
        packed = torch.cat([costs.flatten(), pack_values(labels, wanted).to(costs.dtype)]).cpu()
        cost_host = packed[: costs.numel()].view(costs.shape)
        check_values(packed[costs.numel() :], targets, C)

        rows: list[list[int]] = [[], [], [], []]
        for layer in range(K):
            for image, count in enumerate(counts):
                cost = cost_host[layer, image, :, :count]
                if not bool(cost.isfinite().all()):
                    raise NonFiniteCostError(_describe(layer, image, logits, boxes, targets))
                queries, chosen = linear_sum_assignment(cost.numpy())
                rows[0] += [layer] * len(queries)
                rows[1] += [image] * len(queries)
                rows[2] += queries.tolist()
                rows[3] += chosen.tolist()
        return Matches(*torch.tensor(rows, dtype=torch.int64).to(logits.device).unbind(0))

    def costs(self, logits: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        """logits (K, B, Q, C), boxes (K, B, Q, 4), labels (B, T) within [0, C), wanted (B, T, 4); (K, B, Q, T)."""
        K, _, Q, _ = logits.shape
        if self.focal:
            probability = logits.sigmoid()
            taken = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
            left = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
            of_class = taken - left
        else:
            of_class = -logits.softmax(-1)
        by_class = of_class.gather(-1, labels[None, :, None].expand(K, -1, Q, -1))
        by_distance = torch.cdist(boxes, wanted.expand(K, -1, -1, -1), p=1)
        by_overlap = -generalized_iou(cxcywh_to_xyxy(boxes)[..., None, :], cxcywh_to_xyxy(wanted)[:, None])
        return self.cost_class * by_class + self.cost_bbox * by_distance + self.cost_giou * by_overlap


def _describe(layer: int, image: int, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> str:
    tensors = {"pred_logits": logits[layer, image], "pred_boxes": boxes[layer, image], **targets[image]}
    bad = [
        f"{name} has {count} of {tensor.numel()} values that are NaN or infinite"
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and (count := int((~tensor.isfinite()).sum()))
    ]
    return (
        f"matching costs: expected finite numbers, got NaN or infinity for {image_name(image, targets[image])}, "
        f"layer {layer}: {'; '.join(bad) or 'finite predictions overflow'}"
    )
