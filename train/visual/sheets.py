"""What a detector sees beside what is there: a sheet of pictures, for the demo and for every evaluation of a run."""

from collections.abc import Sequence

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ...models.inference.detections import Detections
from ...models.inference.image_size import Size
from ...models.inference.predictor import Predictor
from ...models.layers.boxes import match_boxes
from ..data.dataset import CocoDetection
from .boxes import Box, Colour, draw_boxes, side_by_side

# boxes are right long before the focal loss is sure of them: of minutes of training, 0.5 would show nothing
DRAWN_SCORE = 0.3
MATCHING_IOU = 0.5
# pixels: of a picture's longer side, its texts and its lines
SIDE, FONT, LINE = 300, 12, 2

# told apart by lightness too, and by the line: what is wrong is dashed
_RIGHT: Colour = (60, 230, 90)
_MISSED: Colour = (255, 150, 30)
_FALSE: Colour = (255, 70, 200)


@torch.no_grad()
def predictions_beside_truth(
    model: Predictor,
    categories: Sequence[str],
    data: CocoDetection,
    rows: Sequence[int],
    *,
    size: Size | None = None,
    columns: int = 2,
) -> Image.Image:
    """Each image twice: with its annotated boxes, found or missed, and with the detections, right or false.

    A detection is right that overlaps a box of its class by an IoU of 0.5 or more that no surer one has taken. Those
    with a score of 0.3 or more are drawn; where no image has any, as early in training, the best of each image, as
    many as it has objects, at least one. The title says which.

    Args:
        model: on any device.
        categories: names of the classes, by label.
        data: whose labels are the model's.
        rows: of ``data.annotations.images``, at least one.
        size: what images are resized to for the model; its own ``input_size`` when None.
        columns: pairs of pictures in a row.

    Raises:
        ValueError: no rows.
        FileNotFoundError, BadImageError: an image cannot be read.
        RuntimeError: the model's scores are not numbers.
    """
    if len(rows) == 0:
        raise ValueError("rows: expected at least one image to draw, got none")
    annotations = data.annotations
    images = [data.pixels(row) for row in rows]
    spans = [slice(int(annotations.first[row]), int(annotations.first[row + 1])) for row in rows]
    truths = [(torch.from_numpy(annotations.boxes[span]), torch.from_numpy(annotations.labels[span])) for span in spans]
    found = [model.predict(image, confidence=0.0, size=size) for image in images]
    kept, title = _sure(found, [len(labels) for _, labels in truths])
    pairs = []
    for image, (boxes, labels), detections, count in zip(images, truths, found, kept, strict=True):
        best = (detections.boxes[:count], detections.labels[:count])
        matches = match_boxes(*best, boxes, labels, MATCHING_IOU)
        there = [
            Box((*box,), label, categories[label], _RIGHT if number in matches else _MISSED, number not in matches)
            for number, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True))
        ]
        told = zip(matches, *(values.tolist() for values in best), detections.scores.tolist(), strict=False)
        seen = [
            Box((*box,), label, f"{categories[label]} {score:.2f}", _FALSE if one is None else _RIGHT, one is None)
            for one, box, label, score in told
        ]
        picture = F.to_pil_image(image)
        style = (SIDE / max(picture.size), FONT, LINE)
        # the surest last, which lies on top
        pairs.append((draw_boxes(picture, there, *style), draw_boxes(picture, seen[::-1], *style)))
    key = [
        (Box((), 0, "", _RIGHT), f"found: same class, IoU at least {MATCHING_IOU}"),
        (Box((), 0, "", _MISSED, dashed=True), "missed"),
        (Box((), 0, "", _FALSE, dashed=True), "false"),
    ]
    return side_by_side(pairs, ("ground truth", f"prediction: {title}"), columns, key)


def _sure(found: Sequence[Detections], objects: Sequence[int]) -> tuple[list[int], str]:
    """How many of each image's detections, best first, are to be drawn, and how that was decided."""
    counts = [int((detections.scores >= DRAWN_SCORE).sum()) for detections in found]
    if any(counts):
        return counts, f"score at least {DRAWN_SCORE}"
    return [max(1, count) for count in objects], f"best few, none reaches {DRAWN_SCORE}"
