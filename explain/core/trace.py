"""One image in one detector: a recorded forward pass, which every picture, map and number is asked of.

scene = Scene(model, "street.jpg")
for seen in scene.detections(): heat_map(scene, seen, "relevance")
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as transforms

from ...models.families.detector import Detector
from ...models.inference.image_size import Size
from ...models.inference.images import ImageLike, normalise, read_image
from ...models.layers.boxes import cxcywh_to_xyxy
from ...models.layers.evaluation_mode import evaluation_mode
from ...models.layers.geometry import at_least_float32, valid_ratios
from .attention import Shapes, share_of_levels
from .capture import Gradients, Record, Tape, capture
from .interventions import intervene
from .masks import Mask
from .sites import Site, sites

TARGETS = ("class", "x", "y", "w", "h")
"""What of a prediction is explained: the logit of its class, or a coordinate of its box, cxcywh."""


@dataclass(frozen=True)
class Seen:
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


@dataclass(frozen=True, eq=False)
class Points:
    """Where a query of one attention samples; H heads, L levels, P points."""

    xy: Tensor
    """(H, L, P, 2), in pixels of the image."""
    weights: Tensor
    """(H, L, P)."""
    reference: Tensor
    """(2,) xy, or (4,) cxcywh, in pixels of the image."""


class Scene:
    """The image, what the detector found in it, and the attention of every layer.

    Args:
        model: a DETR of any kind; on any device, in any dtype and mode, which stay as they are.
        image: whatever `model.predict` takes.
        size: what the image is resized to; the model's own when None.
        masks: interventions that act while it runs.

    Raises ValueError for a model without attention, and what `images.read_image` raises.
    """

    model: Detector
    image: Tensor
    """(3, H, W) uint8, as displayed."""
    outputs: dict[str, Any]
    """The model's for this image alone (B=1), with their graph down to the backbone's projected maps."""
    tape: Tape
    """Of every site; of a batch, `row` is this image's."""
    row: int
    shapes: Shapes
    """(h, w) of each level that attention looks at; DETR has one."""
    ratios: Tensor
    """The unpadded share of each level, (L, 2), xy."""
    pixels: Tensor
    """(3, h, w), resized and normalised, as the model got it."""
    masks: tuple[Mask, ...]
    _last: tuple[tuple[Any, ...], dict[str, Gradients]] | None = None

    def __init__(
        self, model: Detector, image: ImageLike, *, size: Size | int | None = None, masks: Sequence[Mask] = ()
    ) -> None:
        (other,) = scenes(model, [image], size=size, masks=masks)
        self.__dict__.update(other.__dict__)

    @classmethod
    def _of(cls, **parts: Any) -> "Scene":
        scene = cls.__new__(cls)
        scene.__dict__.update(parts)
        return scene

    @property
    def sites(self) -> dict[str, Site]:
        return sites(self.model)

    @property
    def height(self) -> int:
        return self.image.shape[1]

    @property
    def width(self) -> int:
        return self.image.shape[2]

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

    def seen(self, query: int, label: int | None = None) -> Seen:
        """What a query sees: its most probable class, or the one asked for. ValueError for one that is not there."""
        scores = self.layer_scores[-1]
        if not 0 <= query < len(scores):
            raise ValueError(f"query: expected from 0 to {len(scores) - 1}, got {query}")
        best = int(scores[query].argmax())
        label = best if label is None else self._known(label)
        x0, y0, x1, y1 = self.layer_boxes[-1, query].tolist()
        detected_as = "" if label == best else f"{self.class_name(best)} {float(scores[query, best]):.2f}"
        score = float(scores[query, label])
        return Seen(query, label, self.class_name(label), score, (x0, y0, x1, y1), detected_as)

    def _known(self, label: int) -> int:
        """The class. Raises ValueError for one that the model does not have."""
        classes = self.layer_scores.shape[-1]
        if not 0 <= label < classes:
            raise ValueError(f"label: expected from 0 to {classes - 1}, got {label}")
        return label

    def class_name(self, label: int) -> str:
        """Its number as text where the model knows no name of it."""
        names = self.model.categories
        return names[label] if names and label < len(names) else str(label)

    def detections(self, confidence: float = 0.5, label: int | None = None) -> list[Seen]:
        """What queries see with at least this probability, best first, each once.

        With `label` those that see this class with at least this probability: where classes exclude each other (a
        softmax) as their most probable one, else beside others, too, as `model.predict` has it. Raises ValueError for
        a class that is not there.
        """
        every = self.layer_scores[-1]
        scores, labels = every.max(-1)
        if label is not None:
            scores = every[:, self._known(label)]
            if not self.model.focal:
                scores = scores.where(labels == label, -1.0)
        order = scores.argsort(descending=True, stable=True)
        return [self.seen(int(query), label) for query in order if scores[query] >= max(confidence, 0)]

    def nearest(self, box: Sequence[float]) -> Seen:
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
        return self.seen(int(order[overlap[order].argmax()]))

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
        count = record.weights.shape[1]
        if not 0 <= query < count:
            raise ValueError(f"query: expected from 0 to {count - 1} at {site}, got {query}")
        scale = torch.tensor([self.width, self.height])
        # level 0's valid part is the image
        ratios = self.ratios[None, :, None]
        xy = record.locations[self.row, query].cpu() / ratios * scale
        reference = record.reference[self.row, query, 0].detach().cpu()
        twice = reference.shape[-1] // 2
        return Points(
            xy,
            record.weights[self.row, query].cpu(),
            reference / self.ratios[0].repeat(twice) * scale.repeat(twice),
        )

    @property
    def references(self) -> list[Tensor]:
        """What each decoder layer looked around, (Q, 2) xy or (Q, 4) cxcywh, in pixels; none for DETR."""
        found = []
        for record in self.tape.values():
            if record.site.stack == "decoder" and record.site.deformable:
                reference = record.reference[self.row, :, 0].detach().cpu()
                twice = reference.shape[-1] // 2
                scale = torch.tensor([self.width, self.height] * twice)
                found.append(reference / self.ratios[0].repeat(twice) * scale)
        return found

    def token_at(self, x: float, y: float, level: int = 0) -> int:
        """The encoder's pixel, of all levels, that a place of the image (in its pixels) lies in."""
        if not (0 <= x <= self.width and 0 <= y <= self.height):
            raise ValueError(f"ref: expected a place within {self.width} x {self.height}, got {x:g},{y:g}")
        if not 0 <= level < len(self.shapes):
            raise ValueError(f"level: expected from 0 to {len(self.shapes) - 1}, got {level}")
        h, w = self.shapes[level]
        ratio = self.ratios[level].tolist()
        column = min(int(x / self.width * ratio[0] * w), w - 1)
        row = min(int(y / self.height * ratio[1] * h), h - 1)
        return share_of_levels(self.shapes)[level].start + row * w + column

    def place_of(self, token: int) -> tuple[float, float, int]:
        """The centre (x, y), in pixels of the image, of one of the encoder's pixels, and its level."""
        for level, (part, (_, w)) in enumerate(zip(share_of_levels(self.shapes), self.shapes, strict=True)):
            if token < part.stop:
                row, column = divmod(token - part.start, w)
                x, y = (column + 0.5) / w, (row + 0.5) / self.shapes[level][0]
                ratio = self.ratios[level].tolist()
                return x / ratio[0] * self.width, y / ratio[1] * self.height, level
        raise ValueError(f"token: expected from 0 to {sum(h * w for h, w in self.shapes) - 1}, got {token}")

    def to_pixels(self, tokens: Tensor, level: int | None = None) -> Tensor:
        """A map over the levels' pixels (..., S), put back on the image's: (..., H, W) float32.

        Each level's numbers are shared out over the area of its pixels, bilinearly, so that levels of other sizes add
        up as densities, and what lies in the padding is cut off. With `level`, that of one level.
        """
        grid = torch.stack(
            torch.meshgrid(
                (torch.arange(self.height) + 0.5) / self.height,
                (torch.arange(self.width) + 0.5) / self.width,
                indexing="ij",
            )[::-1],
            -1,
        )  # (H, W, 2), xy
        flat = tokens.detach().cpu().reshape(1, -1, tokens.shape[-1]).float()
        image = torch.zeros(1, flat.shape[1], self.height, self.width)
        area = self.height * self.width
        for number, (part, (h, w)) in enumerate(zip(share_of_levels(self.shapes), self.shapes, strict=True)):
            if level is not None and number != level:
                continue
            ratio = self.ratios[number].float()
            density = flat[..., part].unflatten(-1, (h, w)) * (h * w * float(ratio.prod()) / area)
            place = grid * ratio * 2 - 1
            image += F.grid_sample(density, place[None], padding_mode="border", align_corners=False)
        return image.view(*tokens.shape[:-1], self.height, self.width)

    # --- what it depends on

    def y(self, seen: Seen, target: str = "class") -> Tensor:
        """What is explained, with its graph: a class's logit, or a coordinate of the box, cxcywh in [0, 1]."""
        return target_of(self.outputs, 0, seen, target)

    def gradients(
        self, seen: Seen | Sequence[Seen], target: str = "class", *, locations: bool = False, heads: bool = False
    ) -> dict[str, Gradients]:
        """Derivatives of the target, or of the sum of several detections' targets, at every site.

        With respect to weights, and to what else `Tape.gradients` is asked for. The last are kept: maps by layer, head
        and level ask for the same again.
        """
        several = [seen] if isinstance(seen, Seen) else list(seen)
        asked = (target, locations, heads, *((one.query, one.label) for one in several))
        if self._last is None or self._last[0] != asked:
            self._last = None  # before others are made, which take as much memory
            y = torch.stack([self.y(one, target) for one in several]).sum()
            self._last = (asked, self.tape.gradients(y, locations=locations, heads=heads))
        return self._last[1]

    def slopes(self, site: str, seen: Seen, target: str = "class") -> Tensor:
        """By how much the target rises when a query's sampled point moves by a pixel of the image, (H, L, P, 2), xy."""
        record = self.record(site)
        found = self.gradients(seen, target, locations=True).get(site)
        if found is None:  # behind a detach, or in a layer that the target does not depend on
            return torch.zeros_like(record.locations[self.row, seen.query]).cpu()
        if found.locations is None:
            raise ValueError(f"{site} attends to every key: it samples no points that could move")
        size = torch.tensor([self.width, self.height])
        return found.locations[self.row, seen.query].cpu() * self.ratios[None, :, None] / size

    def input_gradient(self, seen: Seen, target: str = "class") -> Tensor:
        """Derivatives of the target with respect to the resized, normalised image: (3, h, w). Runs the model anew."""
        pixels = self.pixels.detach().clone().requires_grad_()
        with frozen(self.model), torch.enable_grad(), intervene(self.model, *self.masks):
            outputs = self.model([pixels])
            return torch.autograd.grad(target_of(outputs, 0, seen, target), pixels)[0]


def target_of(outputs: dict[str, Any], row: int, seen: Seen, target: str) -> Tensor:
    """The number of a model's outputs that is explained. ValueError for a target that is not one of TARGETS."""
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    if target == "class":
        return outputs["pred_logits"][row, seen.query, seen.label]
    return outputs["pred_boxes"][row, seen.query, TARGETS.index(target) - 1]


def scenes(
    model: Detector,
    images: Sequence[ImageLike],
    *,
    size: Size | int | None = None,
    masks: Sequence[Mask] = (),
) -> list[Scene]:
    """A `Scene` of each image, from one forward pass of all of them, padded to one size."""
    if not sites(model):
        raise ValueError(f"{type(model).__name__} has no attention to explain; expected a DETR of any kind")
    read = [read_image(image, name="image" if len(images) == 1 else f"images[{n}]") for n, image in enumerate(images)]
    to = Size(size, size) if isinstance(size, int) else size or model.input_size or Size()
    like = next(model.parameters())
    resized = [transforms.resize(image, list(to.fit(*image.shape[1:])), antialias=True) for image in read]
    inputs = [normalise(image.to(like.device)).to(like.dtype) for image in resized]
    with (
        frozen(model),
        _every_layer(model),
        leaves(model) as shapes,
        torch.enable_grad(),
        intervene(model, *masks),
        capture(model, "*", gradients=True) as tape,
    ):
        outputs = model(inputs)
    if at_least_float32(outputs["pred_logits"]).isnan().any():
        raise RuntimeError(f"the model's scores are not numbers (NaN), in {like.dtype}")
    ratios = _ratios(tape, shapes, len(inputs))
    return [
        Scene._of(
            model=model,
            image=image.cpu(),
            outputs=_one(outputs, row),
            tape=tape,
            row=row,
            shapes=tuple(shapes),
            ratios=ratios[row],
            pixels=pixels,
            masks=tuple(masks),
        )
        for row, (image, pixels) in enumerate(zip(read, inputs, strict=True))
    ]


def _one(outputs: dict[str, Any], row: int) -> dict[str, Any]:
    """One image's part of a batch of outputs, B=1."""
    found: dict[str, Any] = {}
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            found[name] = value[row : row + 1]
        elif isinstance(value, list):
            found[name] = [_one(layer, row) for layer in value]
        elif isinstance(value, dict):
            found[name] = _one(value, row)
    return found


def _ratios(tape: Tape, shapes: Sequence[tuple[int, int]], count: int) -> Tensor:
    """The unpadded share of each level of `count` images, (B, L, 2), xy."""
    mask = next(record.mask for record in reversed(list(tape.values())) if record.site.kind == "cross")
    if mask is None:
        return torch.ones(count, len(shapes), 2)
    parts = [mask[:, part].unflatten(1, shape) for part, shape in zip(share_of_levels(shapes), shapes, strict=True)]
    return valid_ratios(parts).cpu()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and parameters without gradients; then as everything was."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)


@contextmanager
def _every_layer(model: nn.Module) -> Iterator[None]:
    """The model tells what each decoder layer predicts, whether its losses ask for that or not."""
    before: Any = getattr(model, "aux_loss", None)
    if before is None:
        yield
        return
    model.__dict__["aux_loss"] = True
    try:
        yield
    finally:
        model.__dict__["aux_loss"] = before


@contextmanager
def leaves(model: nn.Module, begins: list[Tensor] | None = None) -> Iterator[list[tuple[int, int]]]:
    """The projected maps of the backbone begin the graph: its own is not needed for what attention depends on.

    Yields a list that their sizes (h, w) come into, level by level; the maps themselves come into `begins`.
    """
    projections = getattr(model, "input_proj", None) or model.get_submodule("conv")
    modules = projections if isinstance(projections, nn.ModuleList) else [projections]
    shapes: list[tuple[int, int]] = []

    def leaf(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        shapes.append((output.shape[2], output.shape[3]))
        begin = output.detach().requires_grad_()
        if begins is not None:
            begins.append(begin)
        return begin

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(leaf).remove)
        yield shapes
