"""From a detector's outputs to detections in pixels."""

from typing import Any

import torch
from torch import Tensor

from ..layers.boxes import cxcywh_to_xyxy
from ..layers.geometry import at_least_float32
from .detections import Detections


@torch.no_grad()
def post_process(
    outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100, *, focal: bool = True
) -> list[Detections]:
    """The best `top_k` detections of each image, best first.

    With `focal`, those of all (query, class) pairs, so that a query may appear with several classes (Deformable DETR;
    100 gives the published AP, 300 about 0.2 more). Otherwise every query has one class, the most probable that is
    not the last, "no object" (DETR).

    `outputs` are the model's, `target_sizes` (B, 2) the (height, width) that boxes should refer to, usually those of
    the original images. Of each image there are `top_k` or, if fewer, as many as there are candidates; on the device
    of the outputs, without names.
    """
    logits, boxes = at_least_float32(outputs["pred_logits"]), at_least_float32(outputs["pred_boxes"])
    B = logits.shape[0]
    if target_sizes.shape != (B, 2):
        raise ValueError(f"target_sizes: expected (B={B}, 2), height and width, got {tuple(target_sizes.shape)}")
    if top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    scores, labels, query = best_of_queries(logits, top_k, focal=focal)
    height, width = target_sizes.to(boxes).unbind(1)
    scale = torch.stack([width, height, width, height], dim=1)
    found = cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4))) * scale[:, None]
    sizes = [(int(height), int(width)) for height, width in target_sizes.tolist()]
    return [Detections(*one) for one in zip(found, labels, scores, sizes, strict=True)]


def best_of_queries(logits: Tensor, top_k: int, *, focal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and queries (B, k) of the best `top_k`, best first, of logits (B, Q, C): see `post_process`."""
    _, Q, C = logits.shape
    if focal:
        scores, pair = logits.sigmoid().flatten(1).topk(min(top_k, Q * C), dim=1)
        return scores, pair % C, pair // C
    best, label = logits.softmax(-1)[..., :-1].max(-1)
    scores, query = best.topk(min(top_k, Q), dim=1)
    return scores, label.gather(1, query), query
