"""Detections beside what is annotated, for one image."""

import numpy as np
import torch
from torch import Tensor

from ...models.layers.boxes import match_boxes
from ...train.visual.sheets import MATCHING_IOU
from ..core.trace import AttentionTrace
from .drawing import BESIDE, Drawing, array, canvas, draw_box, headline

# told apart by lightness too, and by the line: what is wrong is dashed; as of evaluation's pictures
_RIGHT, _MISSED, _FALSE = "#3ce65a", "#ff961e", "#ff46c8"


def draw_truth(
    trace: AttentionTrace, boxes: Tensor, labels: Tensor, confidence: float = 0.5, *, image: str = ""
) -> Drawing:
    """Annotated boxes, found or missed, beside the detections, right or false.

    Args:
        trace: whose image and detections.
        boxes, labels: (N, 4) xyxy in pixels of the image, and (N,) the model's class numbers.
        confidence: minimum score of a detection that is drawn.
        image: the image's name, for the title.

    Returns:
        The drawing; numbers ``true_boxes`` (N, 4), ``true_labels`` (N,), ``boxes`` (M, 4), ``labels``, ``scores`` and
        ``queries`` (M,), and ``matched`` (M,): which annotated box each detection found, -1 for none.
    """
    from matplotlib.lines import Line2D

    found = trace.detections(confidence)
    found_boxes = torch.tensor([one.box for one in found], dtype=torch.float32).reshape(-1, 4)
    found_labels = torch.tensor([one.label for one in found], dtype=torch.int64)
    taken = match_boxes(found_boxes, found_labels, boxes, labels, MATCHING_IOU)
    figure, [[left, right]] = canvas(trace, 1, 2, largest=BESIDE)
    for number, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        hit = number in taken
        draw_box(left, box, _RIGHT if hit else _MISSED, style="-" if hit else "--", name=trace.class_name(label))
    for prediction, one in reversed(list(zip(found, taken, strict=True))):  # the surest on top
        hit = one is not None
        name = f"{prediction.name} {prediction.score:.2f}"
        draw_box(right, prediction.box, _RIGHT if hit else _FALSE, style="-" if hit else "--", name=name)
    left.set_title(f"annotated: {len(boxes)}", fontsize=9.5, pad=4)
    right.set_title(f"detected with at least {confidence:.2g}: {len(found)}", fontsize=9.5, pad=4)
    key = [
        Line2D([], [], color=_RIGHT, linewidth=2, label=f"found: same class, IoU at least {MATCHING_IOU}"),
        Line2D([], [], color=_MISSED, linewidth=2, linestyle="--", label="missed"),
        Line2D([], [], color=_FALSE, linewidth=2, linestyle="--", label="false"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    headline(figure, image)
    numbers = {"true_boxes": array(boxes), "true_labels": array(labels), "boxes": array(found_boxes)}
    numbers |= {"labels": array(found_labels), "scores": np.array([prediction.score for prediction in found], float)}
    numbers |= {"queries": np.array([prediction.query for prediction in found], int)}
    return Drawing(figure, numbers | {"matched": np.array([-1 if one is None else one for one in taken], int)})
