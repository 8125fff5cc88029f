"""From a detector's outputs to detections in pixels."""

from typing import Any

import torch
from torch import Tensor

from .boxes import cxcywh_to_xyxy
from .geometry import widen


@torch.no_grad()
def post_process(outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[dict[str, Tensor]]:
    """The `top_k` best of all (query, class) pairs of each image, best first.

    `outputs` are the model's, `target_sizes` (B, 2) the (height, width) that boxes should refer to, usually those of
    the original images. Returns B dicts of ``scores`` (k,), ``labels`` (k,) int64, and ``boxes`` (k, 4) xyxy in
    pixels, not clipped to the image; k is `top_k` or, if smaller, the number of pairs. A query may appear with several
    classes. 100 gives the published AP, 300 about 0.2 more.
    """
    logits, boxes = widen(outputs["pred_logits"]), widen(outputs["pred_boxes"])
    B, Q, C = logits.shape
    if target_sizes.shape != (B, 2):
        raise ValueError(f"target_sizes: expected (B={B}, 2), height and width, got {tuple(target_sizes.shape)}")
    if top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    scores, pair = logits.sigmoid().flatten(1).topk(min(top_k, Q * C), dim=1)
    query = (pair // C)[..., None].expand(-1, -1, 4)
    height, width = target_sizes.to(boxes).unbind(1)
    scale = torch.stack([width, height, width, height], dim=1)
    found = cxcywh_to_xyxy(boxes.gather(1, query)) * scale[:, None]
    return [{"scores": s, "labels": label, "boxes": box} for s, label, box in zip(scores, pair % C, found, strict=True)]
