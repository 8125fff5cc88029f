"""An evaluation by several processes: each looks at its share of the images, and one measures what all found."""

from typing import Any

from torch import nn

from ...models.families.detector import Detector
from ..data.dataset import CocoDetection
from ..engine.distributed import ProcessGroup
from .coco_metrics import evaluate_boxes
from .detect import detect
from .results import merge


def evaluate_distributed(
    model: Detector,
    data: CocoDetection,
    group: ProcessGroup,
    *,
    criterion: nn.Module | None,
    batch_size: int,
    workers: int,
    precision: str,
) -> dict[str, Any]:
    """COCO's numbers, AP and ``per_class``, and ``val_`` losses, as detect has them; the same in every process.

    However many processes there are, every image counts once: none is looked at twice to make shares equal.

    Raises:
        ValueError: as detect and evaluate_boxes.
        LateError: a process did not come in time.
    """
    with group.all_or_none("detecting"):
        found = detect(
            model,
            data,
            group.device,
            batch_size=batch_size,
            workers=workers,
            precision=precision,
            criterion=criterion,
            shard=(group.rank, group.size),
        )
    every = group.gather(found, patient=True)
    metrics: dict[str, Any] = {}
    with group.all_or_none("measuring"):
        if group.is_main:
            whole = merge(every)
            evaluation = evaluate_boxes(data.annotations.ground_truth(), whole, data.image_ids)
            losses = {f"val_{name}": value for name, value in whole.losses.items()}
            per_class = {kind.name: kind.AP for kind in evaluation.classes if kind.AP is not None}
            metrics = {**evaluation.metrics, **losses, "per_class": per_class}
    return group.broadcast(metrics)
