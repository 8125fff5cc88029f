"""The losses of Deformable DETR: focal classification, L1 and generalised IoU, at every layer."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import cxcywh_to_xyxy, generalized_iou
from .geometry import widen
from .matcher import HungarianMatcher, Matches, Target


class SetCriterion(nn.Module):
    """Match predictions to boxes at every layer, and measure each pair (Zhu et al. 2021, section 4 and appendix A.4).

    ``weight_dict`` holds the weight of each loss in the sum to be minimised; other entries of the result
    (``class_error``, ``cardinality_error``) are for the log. Names carry the official suffixes: none for the last
    decoder layer, ``_0``, ``_1``, ... for those before, ``_enc`` for the encoder of a two-stage detector, whose targets
    are all of class 0.
    """

    def __init__(
        self,
        *,
        aux_layers: int,
        two_stage: bool,
        matcher: HungarianMatcher | None = None,
        weights: tuple[float, float, float] = (2.0, 5.0, 2.0),
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        """`weights` are those of loss_ce, loss_bbox and loss_giou; `aux_layers` counts the layers before the last."""
        super().__init__()
        self.matcher = HungarianMatcher(alpha=alpha, gamma=gamma) if matcher is None else matcher
        self.alpha, self.gamma = alpha, gamma
        names = ("loss_ce", "loss_bbox", "loss_giou")
        suffixes = ["", *(f"_{i}" for i in range(aux_layers)), *(["_enc"] if two_stage else [])]
        self.weight_dict = {
            name + suffix: weight for suffix in suffixes for name, weight in zip(names, weights, strict=True)
        }

    def forward(
        self, outputs: dict[str, Any], targets: Sequence[Target], num_boxes: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of the model's `outputs` against B targets, each a dict on the outputs' device.

        A target has ``labels`` (N,), int64, and ``boxes`` (N, 4), cxcywh normalised to the unpadded image; N may be 0.
        ``image_id`` and ``annotation_ids`` (N,), if there, appear in error messages. `num_boxes` normalises the
        losses: the batch's number of boxes, or 1 if there are none, unless given (several processes or micro-batches
        pass their average).

        Computed in at least float32, whatever autocast says. Every output takes part even without targets, so the
        backward pass reaches the same parameters on every batch. Raises ValueError for targets that don't fit, and
        `matcher.NonFiniteCostError`.
        """
        _check_targets(targets, len(outputs["pred_logits"]))
        if num_boxes is None:
            num_boxes = max(sum(len(target["labels"]) for target in targets), 1)
        layers = [*outputs.get("aux_outputs", []), outputs]
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            suffixes = [f"_{i}" for i in range(len(layers) - 1)] + [""]
            losses = self._measure(layers, targets, num_boxes, suffixes)
            if "enc_outputs" in outputs:
                binary = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
                losses |= self._measure([outputs["enc_outputs"]], binary, num_boxes, ["_enc"])
        return losses

    def _measure(
        self,
        layers: Sequence[dict[str, Tensor]],
        targets: Sequence[Target],
        num_boxes: float | Tensor,
        suffixes: Sequence[str],
    ) -> dict[str, Tensor]:
        """All layers at once: each loss is a vector (K,), one number a layer, then named by the layer's suffix."""
        logits = widen(torch.stack([layer["pred_logits"] for layer in layers]))  # (K, B, Q, C)
        boxes = widen(torch.stack([layer["pred_boxes"] for layer in layers]))  # (K, B, Q, 4)
        matches = self.matcher(logits, boxes, targets)

        counts = [len(target["labels"]) for target in targets]
        first = torch.tensor([sum(counts[:i]) for i in range(len(counts))], device=logits.device)
        box = first[matches.image] + matches.box
        labels = torch.cat([target["labels"].long() for target in targets])[box]
        wanted = torch.cat([target["boxes"].to(boxes.dtype) for target in targets])[box]
        chosen = boxes[matches.layer, matches.image, matches.query]

        distance = F.l1_loss(chosen, wanted, reduction="none").sum(-1)
        overlap = generalized_iou(cxcywh_to_xyxy(chosen), cxcywh_to_xyxy(wanted))
        per_layer = logits.new_zeros(len(layers))
        measures = {
            "loss_ce": self._focal(logits, matches, labels).sum((1, 2, 3)) / num_boxes,
            "loss_bbox": per_layer.index_add(0, matches.layer, distance) / num_boxes,
            "loss_giou": per_layer.index_add(0, matches.layer, 1 - overlap) / num_boxes,
            "cardinality_error": _cardinality_error(logits, counts),
        }
        losses = {name + suffix: values[i] for name, values in measures.items() for i, suffix in enumerate(suffixes)}
        if suffixes[-1] == "":
            losses["class_error"] = _class_error(logits, matches, labels)
        return losses

    def _focal(self, logits: Tensor, matches: Matches, labels: Tensor) -> Tensor:
        """Sigmoid focal loss (Lin et al. 2017, equation 5) of every (layer, image, query, class)."""
        wanted = torch.zeros_like(logits)
        wanted[matches.layer, matches.image, matches.query, labels] = 1.0
        probability = logits.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        miss = probability * (1 - wanted) + (1 - probability) * wanted
        balance = self.alpha * wanted + (1 - self.alpha) * (1 - wanted)
        return balance * miss**self.gamma * entropy


@torch.no_grad()
def _class_error(logits: Tensor, matches: Matches, labels: Tensor) -> Tensor:
    """Per cent of the last layer's matched queries whose best class is not their box's; 0 without any."""
    last = matches.layer == len(logits) - 1
    best = logits[matches.layer, matches.image, matches.query].argmax(-1)
    wrong = ((best != labels) & last).sum()
    return 100.0 * wrong / last.sum().clamp(min=1)


@torch.no_grad()
def _cardinality_error(logits: Tensor, counts: list[int]) -> Tensor:
    """(K,): how far the number of queries with a class over 0.5 is from that of boxes, averaged over the images.

    The official code counts queries whose best class is not the last, which means something for softmax only.
    """
    found = (logits.amax(-1) > 0).sum(-1)
    return (found - torch.tensor(counts, device=logits.device)).abs().to(logits.dtype).mean(-1)


def _check_targets(targets: Sequence[Target], batch: int) -> None:
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
