"""Detections beside what is annotated, for one image."""

import numpy as np
import torch
from torch import Tensor

from ...models.layers.boxes import match_boxes
from ...train.visual.sheets import MATCHING_IOU
from ..core.trace import AttentionTrace
from .drawing import BESIDE, Drawing, array, canvas, draw_box, headline, mark, numbers_of, show_key

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
    found = trace.detections(confidence)
    numbers = numbers_of(found)
    found_boxes, found_labels = torch.from_numpy(numbers["boxes"]).float(), torch.from_numpy(numbers["labels"])
    taken = match_boxes(found_boxes, found_labels, boxes, labels, MATCHING_IOU)
    titles = [f"annotated: {len(boxes)}", f"detected with at least {confidence:.2g}: {len(found)}"]
    figure, [[left, right]] = canvas(trace, 1, titles, largest=BESIDE)
    for number, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        hit = number in taken
        draw_box(left, box, _RIGHT if hit else _MISSED, style="-" if hit else "--", name=trace.class_name(label))
    for one, match in reversed(list(zip(found, taken, strict=True))):  # the surest on top
        hit = match is not None
        draw_box(right, one.box, _RIGHT if hit else _FALSE, style="-" if hit else "--", name=one.text)
    key = [("-", _RIGHT, f"found: same class, IoU at least {MATCHING_IOU}"), ("--", _MISSED, "missed")]
    show_key(
        figure, [mark("", label, colour, linestyle=line) for line, colour, label in [*key, ("--", _FALSE, "false")]]
    )
    headline(figure, image)
    numbers |= {"true_boxes": array(boxes), "true_labels": array(labels)}
    return Drawing(figure, numbers | {"matched": np.array([-1 if one is None else one for one in taken], int)})
