"""The losses of both families: classification, focal or softmax, L1 and generalised IoU, at every layer."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.boxes import cxcywh_to_xyxy, generalized_iou
from ..layers.geometry import at_least_float32
from .matcher import HungarianMatcher, Matches
from .targets import Target, check_shapes


class SetCriterion(nn.Module):
    """Match predictions to boxes at every layer, and measure each pair.

    With `focal`, classes are independent sigmoids under a focal loss (Zhu et al. 2021, section 4 and appendix A.4);
    without, they are one softmax whose last class, no object, weighs `no_object_weight` (Carion et al. 2020, section
    3.1).

    ``weight_dict`` holds the weight of each loss in the sum to be minimised; other entries of the result are for the
    log: ``class_error``, per cent of the last layer's matched queries with another best class than their box's, and
    ``cardinality_error``, the mean over images of how far the number of objects found is from that of boxes. Names
    carry the official suffixes: none for the last decoder layer, ``_0``, ``_1``, ... for those before, ``_enc`` for the
    encoder of a two-stage detector, whose targets are all of class 0.
    """

    def __init__(
        self,
        *,
        aux_layers: int,
        two_stage: bool,
        matcher: HungarianMatcher | None = None,
        weights: tuple[float, float, float] | None = None,
        focal: bool = True,
        alpha: float = 0.25,
        gamma: float = 2.0,
        no_object_weight: float = 0.1,
    ) -> None:
        """`weights` are those of loss_ce, loss_bbox and loss_giou, and the matcher's; `aux_layers` counts the layers
        before the last. The published weights are 2, 5, 2 with focal loss, and 1, 5, 2 with softmax.
        """
        super().__init__()
        weights = weights or (2.0 if focal else 1.0, 5.0, 2.0)
        self.matcher = matcher or HungarianMatcher(*weights, alpha=alpha, gamma=gamma, focal=focal)
        self.focal, self.alpha, self.gamma, self.no_object_weight = focal, alpha, gamma, no_object_weight
        names = ("loss_ce", "loss_bbox", "loss_giou")
        suffixes = ["", *(f"_{i}" for i in range(aux_layers)), *(["_enc"] if two_stage else [])]
        self.weight_dict = {
            name + suffix: weight for suffix in suffixes for name, weight in zip(names, weights, strict=True)
        }

    def forward(
        self,
        outputs: dict[str, Any],
        targets: Sequence[Target],
        *,
        box_counts: Sequence[int] | None = None,
        num_boxes: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of the model's `outputs` against B targets, each a dict on the outputs' device.

        A target has ``labels`` (N,), int64, and ``boxes`` (N, 4), cxcywh normalised to the unpadded image; N may be 0.
        ``image_id`` and ``annotation_ids`` (N,), if there, appear in error messages.

        `box_counts` are the numbers of boxes of every image of the whole batch where `targets` are a part of it, the
        others' being in another pass or process: losses then are shares of the whole's, and add up to it. Losses are
        divided by the number of boxes in the batch, at least 1, or by `num_boxes` if given; the softmax loss is a
        mean over queries, as weighted.

        Computed in at least float32, whatever autocast says. Every output takes part even without targets, so the
        backward pass reaches the same parameters on every batch. Raises ValueError for targets that don't fit, and
        `matcher.NonFiniteCostError`.
        """
        check_shapes(targets, len(outputs["pred_logits"]))
        if box_counts is None:
            box_counts = [len(target["labels"]) for target in targets]
        if num_boxes is None:
            num_boxes = max(sum(box_counts), 1)
        layers = [*outputs.get("aux_outputs", []), outputs]
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            suffixes = [f"_{i}" for i in range(len(layers) - 1)] + [""]
            losses = self._measure(layers, targets, box_counts, num_boxes, suffixes)
            if "enc_outputs" in outputs:
                binary = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
                losses |= self._measure([outputs["enc_outputs"]], binary, box_counts, num_boxes, ["_enc"])
        return losses

    def _measure(
        self,
        layers: Sequence[dict[str, Tensor]],
        targets: Sequence[Target],
        box_counts: Sequence[int],
        num_boxes: float | Tensor,
        suffixes: Sequence[str],
    ) -> dict[str, Tensor]:
        """All layers at once: each loss is a vector (K,), one number a layer, then named by the layer's suffix."""
        logits = at_least_float32(torch.stack([layer["pred_logits"] for layer in layers]))  # (K, B, Q, C)
        boxes = at_least_float32(torch.stack([layer["pred_boxes"] for layer in layers]))  # (K, B, Q, 4)
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
            "loss_ce": (
                self._focal(logits, matches, labels).sum((1, 2, 3)) / num_boxes
                if self.focal
                else self._cross_entropy(logits, matches, labels).sum((1, 2))
                / self._weight_of_queries(logits, box_counts)
            ),
            "loss_bbox": per_layer.index_add(0, matches.layer, distance) / num_boxes,
            "loss_giou": per_layer.index_add(0, matches.layer, 1 - overlap) / num_boxes,
            "cardinality_error": _cardinality_error(logits, counts, self.focal) / len(box_counts),
        }
        losses = {name + suffix: values[i] for name, values in measures.items() for i, suffix in enumerate(suffixes)}
        if suffixes[-1] == "":
            matched = sum(min(count, logits.shape[2]) for count in box_counts)
            losses["class_error"] = _class_errors(logits, matches, labels) * (100.0 / max(1, matched))
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

    def _cross_entropy(self, logits: Tensor, matches: Matches, labels: Tensor) -> Tensor:
        """Weighted cross entropy of every (layer, image, query), whose class is no object unless it is matched."""
        no_object = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:3], no_object, device=logits.device)
        wanted[matches.layer, matches.image, matches.query] = labels
        entropy = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view(wanted.shape)
        return torch.ones_like(entropy).masked_fill(wanted == no_object, self.no_object_weight) * entropy

    def _weight_of_queries(self, logits: Tensor, box_counts: Sequence[int]) -> float:
        """What the weights of all queries of the batch sum to: every box takes one, as far as there are enough."""
        queries = logits.shape[2]
        matched = sum(min(count, queries) for count in box_counts)
        return matched + self.no_object_weight * (len(box_counts) * queries - matched)


@torch.no_grad()
def _class_errors(logits: Tensor, matches: Matches, labels: Tensor) -> Tensor:
    """How many of the last layer's matched queries have another best class than their box's."""
    last = matches.layer == len(logits) - 1
    best = logits[matches.layer, matches.image, matches.query].argmax(-1)
    return ((best != labels) & last).sum().to(logits.dtype)


@torch.no_grad()
def _cardinality_error(logits: Tensor, counts: list[int], focal: bool) -> Tensor:
    """(K,): how far the number of queries that found an object is from that of boxes, summed over the images.

    Of a softmax, those whose best class is not the last. The official code counts the same of sigmoids, where the
    last means nothing; here it is those with a class over 0.5.
    """
    taken = logits.amax(-1) > 0 if focal else logits.argmax(-1) != logits.shape[-1] - 1
    found = taken.sum(-1)
    return (found - torch.tensor(counts, device=logits.device)).abs().to(logits.dtype).sum(-1)
