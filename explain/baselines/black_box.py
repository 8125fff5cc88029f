"""A detector seen from outside: images go in, boxes and scores come out, and nothing inside is looked at.

What D-RISE and occlusion ask, of any detector; and the trace of an image in a detector without attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.inference.image_size import Size
from ...models.inference.images import ImageLike
from ...models.inference.predictor import Predictor
from ...models.layers.evaluation_mode import evaluation_mode
from ...models.layers.geometry import at_least_float32
from ..core.capture import Tape
from ..core.interventions import intervene
from ..core.sites import sites
from ..core.trace import AttentionTrace, QueryPrediction
from ..quality.measures import detection_score, probabilities_and_boxes

# pixels in one forward pass: images of 640 x 640 by fives, larger than 1448 x 1448 one by one
_AT_ONCE = 2**21


def images_at_once(trace: AttentionTrace) -> int:
    """How many changed images go into one forward pass."""
    return max(1, min(16, _AT_ONCE // trace.pixels[0].numel()))


@torch.no_grad()
def ask(trace: AttentionTrace, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What the trace's detector answers to other images in place of its own, its masks at work.

    Args:
        trace: of a detector of any kind.
        pixels: (B, 3, h, w), resized and normalised, of any content.

    Returns:
        Probabilities of the classes, (B, Q, classes), and boxes, (B, Q, 4) xyxy as shares of the image; at least
        float32. Of a detector that finds its own detections Q is the most that it found in an image, and at least 1;
        rows that are none are zero.
    """
    model = trace.model
    with evaluation_mode(model), intervene(model, *trace.masks):
        outputs = model(list(pixels))
    if "detections" not in outputs:
        return probabilities_and_boxes(model, outputs)
    found = outputs["detections"]
    most = max(1, *(len(one["scores"]) for one in found))
    own: Any = model
    classes = int(own.num_classes)
    rows: list[Tensor] = []
    boxes: list[Tensor] = []
    for one in found:
        missing = (0, 0, 0, most - len(one["scores"]))
        scores = at_least_float32(one["scores"])
        rows.append(F.pad(F.one_hot(one["labels"], classes).to(scores) * scores[:, None], missing))
        boxes.append(F.pad(at_least_float32(one["boxes"]), missing))
    return torch.stack(rows), torch.stack(boxes)


def score_of(trace: AttentionTrace, prediction: QueryPrediction, probabilities: Tensor, boxes: Tensor) -> Tensor:
    """What is left of a detection in what `ask` answers, (B,) from 0 to 1: see `measures.detection_score`."""
    box = [side / length for side, length in zip(prediction.box, (trace.width, trace.height) * 2, strict=True)]
    return detection_score(probabilities, boxes, box, prediction.label)


@dataclass(frozen=True)
class OwnDetection(QueryPrediction):
    """What a detector without queries found; its `query` is its place among all that was found, the surest first."""

    @property
    def known_as(self) -> str:
        return f"detection {self.query}"


class DetectionTrace(AttentionTrace):
    """The image, and what a detector without attention found in it: enough for methods that look from outside.

    Its "queries" are the detections that the detector itself chose, the surest first. What a trace tells beyond those,
    of layers, attention and gradients, it has none of: no layer but the last, no site, no level.

    Args and errors are those of `AttentionTrace`, but any detector will do.
    """

    def __init__(self, model: Predictor, image: ImageLike, *, size: Size | int | None = None) -> None:
        if not isinstance(model, Predictor):
            raise TypeError(f"model: expected a detector, got {type(model).__name__}")
        self.masks, self.begins, self.tape, self.shapes, self._last = (), [], Tape([]), (), None
        self._read(model, image, size)
        probabilities, boxes = ask(self, self.pixels[None])
        found = probabilities[0].amax(-1)
        if found.isnan().any():
            raise RuntimeError(f"the model's scores are not numbers (NaN), in {self.pixels.dtype}")
        order = found.argsort(descending=True, stable=True)
        order = order[found[order] > 0]
        self._scores, self._boxes = probabilities[0, order].cpu(), boxes[0, order].cpu()
        self.outputs = {}

    @property
    def layer_boxes(self) -> Tensor:
        """(1, N, 4) xyxy in pixels of the image, of one layer."""
        return self._boxes[None] * torch.tensor([self.width, self.height] * 2)

    @property
    def layer_scores(self) -> Tensor:
        """(1, N, classes), of one layer: a detection has one class, and no probability of another."""
        return self._scores[None]

    @property
    def queries(self) -> int:
        return len(self._scores)

    def prediction(self, query: int, label: int | None = None) -> OwnDetection:
        """The detection of this place. ValueError for one that is not there."""
        return OwnDetection(**vars(super().prediction(query, label)))

    def nearest(self, box: Sequence[float]) -> QueryPrediction:
        """As of `AttentionTrace`; ValueError where nothing was found."""
        if not self.queries:
            raise ValueError(f"box: {self.model.kind} found nothing in the image that could be near it")
        return super().nearest(box)

    def detections(self, confidence: float = 0.5, label: int | None = None) -> list[QueryPrediction]:
        """As of `AttentionTrace`; a detection is of its own class alone."""
        return [one for one in super().detections(confidence, label) if one.score > 0]


def trace_of(model: Predictor, image: ImageLike, *, size: Size | int | None = None) -> AttentionTrace:
    """An `AttentionTrace`, and a `DetectionTrace` where the model has no attention. Errors are theirs."""
    if isinstance(model, Predictor) and not sites(model):
        return DetectionTrace(model, image, size=size)
    return AttentionTrace(model, image, size=size)
