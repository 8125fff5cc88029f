"""Another image's content put into a detector at one attention: what changes?

Activation patching (Vig et al. 2020; Meng et al. 2022): the detector runs on image A, and what chosen heads, on chosen
levels, gather is taken from its run on image B. Where a detection of A changes, what it depends on came through there;
where B's object appears, it comes through there.

Of two kinds:

``values``   A looks where it looks in A, with its own weights, and finds there what B's maps hold.
``outputs``  A gets what the same query gathered in B, at B's locations and with B's weights.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as transforms

from ...kernels.api import ms_deform_attn
from ...models.attention import DeformableCall
from ...models.inference.image_size import Size
from ...models.inference.images import ImageLike, normalise, read_image
from ..core.capture import held_seeds, same_pixel
from ..core.interventions import Edit, check_mask, intervene
from ..core.masks import Mask
from ..core.opening import Inside, opened
from ..core.sites import Site, find_sites, makes_queries
from ..core.trace import AttentionTrace, QueryPrediction, frozen
from ..quality.measures import probabilities_and_boxes

Kind = Literal["values", "outputs"]


@dataclass(frozen=True)
class Patched:
    """What a query sees with another image's content at one place."""

    site: str
    """A pattern of `find_sites`."""
    head: int | None
    """All heads for None."""
    level: int | None
    """All levels for None."""
    score: float
    """Probability of the class that was asked about, in [0, 1]."""
    change: float
    """By how much it rises."""
    name: str
    """The most probable class."""
    name_score: float
    box: tuple[float, float, float, float]
    """xyxy, in pixels of the image; not clipped to it."""
    iou: float
    """With the box before."""


class Patch:
    """A `Change`: the weights that an edit's mask selects gather from another run what that run had there.

    What they gathered themselves is left out: sums over points are sums over heads and levels, so that what the others
    gathered stays.
    """

    def __init__(self, edit: Edit, donor: Inside, kind: Kind) -> None:
        self.edit, self.donor, self.kind = edit, donor, kind
        self._taken: tuple[Tensor, Tensor | None] | None = None

    def changed(
        self, weights: Tensor, locations: Tensor | None, call: DeformableCall | None
    ) -> tuple[Tensor, Tensor | None]:
        """Weights without those selected, and the locations."""
        selected = self.edit.selected(weights.shape[2 if locations is None else 1], weights.device)
        own = (weights, locations) if self.kind == "values" else (self.donor.weights, self.donor.locations)
        self._taken = own[0].where(selected, 0), own[1]
        return weights.masked_fill(selected, 0), locations

    def output(self, out: Tensor) -> Tensor:
        """The heads' outputs (B, Q, C), before the output projection, with what was gathered elsewhere."""
        assert self._taken is not None
        (weights, locations), value = self._taken, self.donor.value
        if locations is None:
            return out + torch.einsum("bhqs,bshd->bqhd", weights.to(value.dtype), value).flatten(2).to(out)
        assert self.donor.shapes is not None
        return out + ms_deform_attn(value, self.donor.shapes, locations, weights).to(out)


@torch.no_grad()
def patch(
    trace: AttentionTrace,
    other: ImageLike,
    prediction: QueryPrediction,
    places: Sequence[Mask],
    *,
    kind: Kind = "values",
    size: Size | int | None = None,
) -> list[Patched]:
    """What becomes of a query of the trace's image at each of the places, patched alone with the other image's content.

    Args:
        trace: of image A; its masks act on both images.
        other: image B, whatever `model.predict` takes; of a shape that is resized to that of image A.
        prediction: the query and class that is followed.
        places: sites, heads, levels, points and queries, as of masks; the mode means nothing here. `each_head` makes
            them.
        kind: see above.
        size: what images are resized to, as it was given to the trace.

    Returns:
        One a place, in their order; each costs a forward pass.

    Raises ValueError for images that are resized to other sizes, a place that is not there, a kind that is not one of
    the two, and the kind ``outputs`` in two stages, where the same query is of another pixel in the other image; and
    where a patched encoder makes a detector of transformers choose another pixel for the query.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected {' or '.join(get_args(Kind))}, got {kind!r}")
    seeds = trace.tape.seeds
    if kind == "outputs" and makes_queries(trace.model):
        raise ValueError(
            "kind: queries of a two-stage detector differ from image to image; expected values, got outputs"
        )
    pairs = [(place, find_sites(trace.model, place.sites)) for place in places]
    for place, sites in pairs:
        for site in sites:
            check_mask(site, place)
    pixels = resized_like(trace, other, size)
    donors: dict[str, Inside] = {}

    def keep(site: Site, inside: Inside) -> None:
        donors[site.name] = inside

    every = {site.name: site for _, sites in pairs for site in sites}.values()
    with frozen(trace.model), intervene(trace.model, *trace.masks), ExitStack() as stack:
        with opened([(site, partial(keep, site)) for site in every]):
            trace.model([pixels])
        stack.enter_context(held_seeds(trace.model, seeds))
        found = []
        for place, sites in pairs:
            acts = [(site, Patch(Edit(place, site), donors[site.name], kind)) for site in sites]
            with opened(acts):
                outputs = trace.model([trace.pixels])
            if not same_pixel(trace.outputs, outputs, prediction.query):
                raise ValueError(
                    f"places: with {place} patched, query {prediction.query} is made of another pixel, so that nothing "
                    "can be compared; expected places in the decoder alone"
                )
            probabilities, boxes = probabilities_and_boxes(trace.model, outputs)
            found.append(_seen(trace, prediction, place, probabilities[0].cpu(), boxes[0].cpu()))
    return found


def each_head(trace: AttentionTrace, pattern: str = "decoder.*.cross", *, by_level: bool = False) -> list[Mask]:
    """Every head of every site alone, each on all levels or on each level by itself."""
    return [
        Mask(site.name, heads=(head,), levels=None if level is None else (level,))
        for site in find_sites(trace.model, pattern)
        for head in range(site.heads)
        for level in (range(site.levels) if by_level and site.deformable else [None])
    ]


def resized_like(trace: AttentionTrace, other: ImageLike, size: Size | int | None, *, name: str = "other") -> Tensor:
    """The other image (3, h, w), resized and normalised as the trace's is.

    Raises ValueError, which begins with its `name`, for one of another shape.
    """
    image = read_image(other).cpu()
    fit = tuple(trace.model.resized_to(size).fit(*image.shape[1:]))
    expected = tuple(trace.pixels.shape[1:])
    if fit != expected:
        raise ValueError(
            f"{name}: expected an image that is resized to "
            f"{expected[1]}x{expected[0]} as the first, got {fit[1]}x{fit[0]}; crop it to {trace.width}x{trace.height}"
        )
    resized = transforms.resize(image, list(expected), antialias=True)
    return normalise(resized.to(trace.pixels.device)).to(trace.pixels.dtype)


def _seen(
    trace: AttentionTrace, prediction: QueryPrediction, place: Mask, probabilities: Tensor, boxes: Tensor
) -> Patched:
    """Of probabilities (Q, classes) and boxes (Q, 4), xyxy as shares of the image."""
    scores = probabilities[prediction.query]
    box = boxes[prediction.query].double() * torch.tensor([trace.width, trace.height] * 2)
    best, score = int(scores.argmax()), float(scores[prediction.label])
    overlap = box_iou(box[None], torch.tensor([prediction.box], dtype=box.dtype))
    x0, y0, x1, y1 = box.tolist()
    head, level = (
        numbers[0] if numbers is not None and len(numbers) == 1 else None for numbers in (place.heads, place.levels)
    )
    change, name = score - prediction.score, trace.class_name(best)
    return Patched(place.sites, head, level, score, change, name, float(scores[best]), (x0, y0, x1, y1), float(overlap))
