"""One image in one detector: a recorded forward pass, which every picture, map and number is asked of.

Used so::

    trace = AttentionTrace(model, "street.jpg")
    for seen in trace.detections():
        heat_map(trace, seen, "relevance")
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as transforms

from ...models.inference.image_size import Size
from ...models.inference.images import ImageLike, normalise, read_image
from ...models.inference.predictor import Predictor
from ...models.layers.boxes import cxcywh_to_xyxy
from ...models.layers.evaluation_mode import evaluation_mode
from ...models.layers.geometry import at_least_float32
from .attention import Shapes, share_of_levels
from .capture import Gradients, Record, Tape, capture
from .interventions import intervene
from .masks import Mask
from .sites import Site, in_range, sites

TARGETS = ("class", "x", "y", "w", "h")
"""What of a prediction is explained: the logit of its class, or a coordinate of its box, cxcywh."""


@dataclass(frozen=True)
class QueryPrediction:
    """A query and what it sees; a detection if it is sure enough."""

    query: int
    label: int
    """The class's index."""
    name: str
    score: float
    """Probability of the class, in [0, 1]."""
    box: tuple[float, float, float, float]
    """xyxy, in pixels of the image as it is displayed; not clipped to it."""
    detected_as: str = ""
    """Where another class was asked for than the query's most probable: that one and its probability, "RBC 0.93"."""

    @property
    def text(self) -> str:
        """What is written at its box: "WBC 0.93"."""
        return f"{self.name} {self.score:.2f}"

    @property
    def known_as(self) -> str:
        """Which one it is: "query 12"."""
        return f"query {self.query}"


@dataclass(frozen=True, eq=False)
class Points:
    """Where a query of one attention samples; H heads, L levels, P points."""

    xy: Tensor
    """(H, L, P, 2), in pixels of the image; NaN where a level has fewer than P."""
    weights: Tensor
    """(H, L, P)."""
    reference: Tensor
    """(2,) xy, or (4,) cxcywh, in pixels of the image."""


class AttentionTrace:
    """The image, what the detector found in it, and the attention of every layer.

    Args:
        model: a DETR of any kind, ours or a `TransformersDetector`; on any device, in any dtype and mode, which stay
            as they are.
        image: whatever `model.predict` takes.
        size: what the image is resized to; the model's own when None.
        masks: interventions that act while it runs, recorded by `tape`.

    Raises TypeError for a model that is no such detector, ValueError for one without attention, what
    `images.read_image` raises, and RuntimeError where the model answers NaN.
    """

    def __init__(
        self, model: Predictor, image: ImageLike, *, size: Size | int | None = None, masks: Sequence[Mask] = ()
    ) -> None:
        if not isinstance(model, Predictor):
            raise TypeError(
                f"model: expected a detector of ours or a TransformersDetector around one, got {type(model).__name__}"
            )
        if not sites(model):
            raise ValueError(f"{model.kind} has no attention to explain; expected a DETR of any kind")
        self.masks = tuple(masks)
        self._read(model, image, size)
        self.begins: list[Tensor] = []
        """The maps that attention begins with, leaves of the outputs' graph: as `leaves` gives them."""
        self.tape: Tape
        """Of every site."""
        self.outputs: dict[str, Any]
        """The model's for the image, B=1, with their graph down to the maps that attention begins with."""
        with (
            frozen(model),
            model.every_layer(),
            leaves(model, self.begins) as shapes,
            torch.enable_grad(),
            intervene(model, *self.masks),
            capture(model, "*", gradients=True) as self.tape,
        ):
            self.outputs = model([self.pixels])
        if at_least_float32(self.outputs["pred_logits"]).isnan().any():
            raise RuntimeError(f"the model's scores are not numbers (NaN), in {self.pixels.dtype}")
        self.shapes: Shapes = tuple(shapes)
        """(h, w) of each level that attention looks at; DETR has one."""
        self._last: tuple[tuple[Any, ...], dict[str, Gradients]] | None = None

    def _read(self, model: Predictor, image: ImageLike, size: Size | int | None) -> None:
        """Sets the model, the image and what the model gets of it."""
        self.model, self._size = model, size
        self.image = read_image(image).cpu()
        """(3, H, W) uint8, as displayed."""
        self.height, self.width = self.image.shape[1:]
        to = model.resized_to(size)
        like = next(model.parameters())
        resized = transforms.resize(self.image, list(to.fit(self.height, self.width)), antialias=True)
        self.pixels = normalise(resized.to(like.device)).to(like.dtype)
        """(3, h, w), resized and normalised, as the model got it."""

    @property
    def sites(self) -> dict[str, Site]:
        return sites(self.model)

    @property
    def cross_sites(self) -> list[str]:
        """The decoder's cross-attentions, layer by layer."""
        return [name for name, record in self.tape.items() if record.site.kind == "cross"]

    # --- what was found

    @property
    def layer_boxes(self) -> Tensor:
        """Boxes after every decoder layer, (N, Q, 4) xyxy in pixels of the image."""
        boxes = torch.stack([at_least_float32(one["pred_boxes"][0]).detach().cpu() for one in self._layers])
        return cxcywh_to_xyxy(boxes) * torch.tensor([self.width, self.height] * 2)

    @property
    def layer_scores(self) -> Tensor:
        """Probabilities of the classes after every decoder layer, (N, Q, classes), without "no object"."""
        logits = torch.stack([at_least_float32(one["pred_logits"][0]).detach().cpu() for one in self._layers])
        return logits.sigmoid() if self.model.focal else logits.softmax(-1)[..., :-1]

    @property
    def _layers(self) -> list[dict[str, Tensor]]:
        return [*self.outputs.get("aux_outputs", []), self.outputs]

    @property
    def queries(self) -> int:
        return self.outputs["pred_logits"].shape[1]

    def prediction(self, query: int, label: int | None = None) -> QueryPrediction:
        """What a query sees: its most probable class, or the one asked for. ValueError for one that is not there."""
        scores = self.layer_scores[-1]
        best = int(scores[in_range(query, len(scores), "query")].argmax())
        label = best if label is None else in_range(label, scores.shape[1], "label")
        x0, y0, x1, y1 = self.layer_boxes[-1, query].tolist()
        detected_as = "" if label == best else f"{self.class_name(best)} {float(scores[query, best]):.2f}"
        score = float(scores[query, label])
        return QueryPrediction(query, label, self.class_name(label), score, (x0, y0, x1, y1), detected_as)

    def class_name(self, label: int) -> str:
        """Its number as text where the model knows no name of it."""
        names = self.model.categories
        return names[label] if names and label < len(names) else str(label)

    def detections(self, confidence: float = 0.5, label: int | None = None) -> list[QueryPrediction]:
        """What queries see with at least this probability, best first, each once.

        With `label` those that see this class with at least this probability: where classes exclude each other (a
        softmax) as their most probable one, else beside others, too, as `model.predict` has it. Raises ValueError for
        a class that is not there.
        """
        every = self.layer_scores[-1]
        scores, labels = every.max(-1)
        if label is not None:
            scores = every[:, in_range(label, every.shape[1], "label")]
            if not self.model.focal:
                scores = scores.where(labels == label, -1.0)
        order = scores.argsort(descending=True, stable=True)
        return [self.prediction(int(query), label) for query in order if scores[query] >= max(confidence, 0)]

    def nearest(self, box: Sequence[float]) -> QueryPrediction:
        """The query whose box overlaps this one (xyxy, pixels) most, sure of it or not; of several the surest.

        What the detector came closest to where it missed something. Where none overlaps, the one whose centre is
        closest. Raises ValueError for a box without area.
        """
        wanted = torch.tensor([list(box)], dtype=torch.float32)
        if wanted.shape != (1, 4) or not (wanted[0, 2:] > wanted[0, :2]).all():
            raise ValueError(
                f"box: expected x1,y1,x2,y2 with x1 < x2 and y1 < y2, got {','.join(f'{v:g}' for v in box)}"
            )
        boxes = self.layer_boxes[-1].float()
        overlap = box_iou(boxes, wanted)[:, 0]
        if not overlap.any():
            overlap = -(((boxes[:, :2] + boxes[:, 2:]) - (wanted[:, :2] + wanted[:, 2:])) ** 2).sum(-1)
        surest = self.layer_scores[-1].amax(-1)
        order = surest.argsort(descending=True, stable=True)
        return self.prediction(int(order[overlap[order].argmax()]))

    # --- where it looked

    def record(self, site: str) -> Record:
        """Of one site; ValueError, listing the sites, for one that is not there."""
        if site not in self.tape:
            raise ValueError(f"site {site!r}: expected one of {', '.join(self.tape)}")
        return self.tape[site]

    def points(self, site: str, query: int) -> Points:
        """Where a query (or, in the encoder, a pixel of all levels) samples. ValueError for attention to every key."""
        record = self.record(site)
        if not record.site.deformable:
            raise ValueError(f"{site} attends to every key: it samples no points; draw its heat map")
        in_range(query, record.weights.shape[1], "query", f" at {site}")
        reference = self._in_pixels(record.reference[0, query, 0])
        xy = self._in_pixels(record.locations[0, query])
        xy = xy.masked_fill(~record.site.sampled(xy.device)[..., None], torch.nan)
        return Points(xy, record.weights[0, query].cpu(), reference)

    def _in_pixels(self, places: Tensor) -> Tensor:
        """Places (..., 2) xy or (..., 4) cxcywh, normalised, on the CPU and in pixels of the image."""
        return places.cpu() * torch.tensor([self.width, self.height]).repeat(places.shape[-1] // 2)

    @property
    def references(self) -> list[Tensor]:
        """What each decoder layer looked around, (Q, 2) xy or (Q, 4) cxcywh, in pixels; none for DETR."""
        looked = [self.tape[name] for name in self.cross_sites]
        return [self._in_pixels(record.reference[0, :, 0]) for record in looked if record.site.deformable]

    def token_at(self, x: float, y: float, level: int = 0) -> int:
        """The encoder's pixel, of all levels, that a place of the image (in its pixels) lies in."""
        if not (0 <= x <= self.width and 0 <= y <= self.height):
            raise ValueError(f"ref: expected a place within {self.width} x {self.height}, got {x:g},{y:g}")
        h, w = self.shapes[in_range(level, len(self.shapes), "level")]
        column, row = min(int(x / self.width * w), w - 1), min(int(y / self.height * h), h - 1)
        return share_of_levels(self.shapes)[level].start + row * w + column

    def place_of(self, token: int) -> tuple[float, float, int]:
        """The centre (x, y), in pixels of the image, of one of the encoder's pixels, and its level."""
        parts = share_of_levels(self.shapes)
        in_range(token, parts[-1].stop, "token")
        level = next(number for number, part in enumerate(parts) if token < part.stop)
        h, w = self.shapes[level]
        row, column = divmod(token - parts[level].start, w)
        return (column + 0.5) / w * self.width, (row + 0.5) / h * self.height, level

    def to_pixels(self, tokens: Tensor, level: int | None = None) -> Tensor:
        """A map over the levels' pixels (..., S), put back on the image's: (..., H, W) float32.

        Each level's numbers are shared out over the area of its pixels, bilinearly, so that levels of other sizes add
        up as densities. With `level`, that of one level.
        """
        size = (self.height, self.width)
        flat = tokens.detach().cpu().reshape(1, -1, tokens.shape[-1]).float()
        image = torch.zeros(1, flat.shape[1], *size)
        for number, (part, (h, w)) in enumerate(zip(share_of_levels(self.shapes), self.shapes, strict=True)):
            if level in (None, number):
                density = flat[..., part].unflatten(-1, (h, w)) * (h * w / (self.height * self.width))
                image += F.interpolate(density, size, mode="bilinear", align_corners=False)
        return image.view(*tokens.shape[:-1], *size)

    @cached_property
    def mirrored(self) -> "AttentionTrace":
        """Of the image with left and right exchanged, under the same masks; kept, as large as this one."""
        return AttentionTrace(self.model, self.image.flip(-1), size=self._size, masks=self.masks)

    def in_mirror(self, prediction: QueryPrediction) -> QueryPrediction:
        """What `mirrored` has of a prediction: of its class, the query of the highest IoU x probability."""
        other, (x0, y0, x1, y1) = self.mirrored, prediction.box
        box = torch.tensor([[self.width - x1, y0, self.width - x0, y1]])
        overlap = box_iou(other.layer_boxes[-1].float(), box)[:, 0]
        best = (overlap * other.layer_scores[-1][:, prediction.label]).argmax()
        return other.prediction(int(best), prediction.label)

    # --- what it depends on

    def y(self, prediction: QueryPrediction, target: str = "class", outputs: dict[str, Any] | None = None) -> Tensor:
        """What is explained, with its graph: a class's logit, or a coordinate of the box, cxcywh in [0, 1].

        Of the recorded pass, or of other `outputs` for the image. ValueError for a target that is not one of TARGETS.
        """
        if target not in TARGETS:
            raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
        found = self.outputs if outputs is None else outputs
        if target == "class":
            return found["pred_logits"][0, prediction.query, prediction.label]
        return found["pred_boxes"][0, prediction.query, TARGETS.index(target) - 1]

    def gradients(
        self,
        prediction: QueryPrediction | Sequence[QueryPrediction],
        target: str = "class",
        *,
        locations: bool = False,
        heads: bool = False,
    ) -> dict[str, Gradients]:
        """Derivatives of the target, or of the sum of several detections' targets, at every site.

        With respect to weights, and to what else `Tape.gradients` is asked for. The last are kept: maps by layer, head
        and level ask for the same again.
        """
        several = [prediction] if isinstance(prediction, QueryPrediction) else list(prediction)
        asked = (target, locations, heads, *((one.query, one.label) for one in several))
        if self._last is None or self._last[0] != asked:
            self._last = None  # before others are made, which take as much memory
            y = torch.stack([self.y(one, target) for one in several]).sum()
            self._last = (asked, self.tape.gradients(y, locations=locations, heads=heads))
        return self._last[1]

    def slopes(self, site: str, prediction: QueryPrediction, target: str = "class") -> Tensor:
        """By how much the target rises when a query's sampled point moves by a pixel of the image, (H, L, P, 2), xy."""
        record = self.record(site)
        found = self.gradients(prediction, target, locations=True).get(site)
        if found is None:  # behind a detach, or in a layer that the target does not depend on
            return torch.zeros_like(record.locations[0, prediction.query]).cpu()
        if found.locations is None:
            raise ValueError(f"{site} attends to every key: it samples no points that could move")
        return found.locations[0, prediction.query].cpu() / torch.tensor([self.width, self.height])

    def input_gradient(self, prediction: QueryPrediction, target: str = "class") -> Tensor:
        """Derivatives of the target with respect to the resized, normalised image: (3, h, w). Runs the model anew."""
        pixels = self.pixels.detach().clone().requires_grad_()
        with frozen(self.model), torch.enable_grad(), intervene(self.model, *self.masks):
            return torch.autograd.grad(self.y(prediction, target, self.model([pixels])), pixels)[0]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and parameters without gradients; then as everything was."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluation_mode(model):
        model.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)


@contextmanager
def leaves(model: Predictor, begins: list[Tensor] | None = None) -> Iterator[list[tuple[int, int]]]:
    """The maps that attention begins with begin the graph: what made them is not needed for what attention depends on.

    Yields a list that their sizes (h, w) come into, level by level; the maps themselves come into `begins`.
    """

    def leaf(maps: Tensor) -> Tensor:
        begin = maps.detach().requires_grad_()
        if begins is not None:
            begins.append(begin)
        return begin

    with model.levels_from(leaf) as shapes:
        yield shapes
