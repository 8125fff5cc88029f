"""One image under several masks: which boxes remain, and what each detection's relevance becomes, layer by layer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...common.text import counted
from ...models.inference.image_size import Size
from ...models.inference.images import ImageLike
from ..core.maps import heat_map
from ..core.masks import Mask
from ..core.sites import find_sites
from ..core.trace import AttentionTrace, QueryPrediction
from . import heat
from .drawing import (
    Drawing,
    array,
    caption,
    draw_detection,
    gallery,
    headline,
    layer_in_words,
    numbers_of,
    target_in_words,
    told,
)


def cumulative_masks(model: nn.Module, pattern: str = "decoder.*.cross") -> list[tuple[str, list[Mask]]]:
    """Heads off one after the other, the same in all layers: the first, the first two, to all of them; with names."""
    heads = min(site.heads for site in find_sites(model, pattern))
    counts = range(1, heads + 1)
    return [(f"{counted(count, 'head')} off", [Mask(pattern, heads=tuple(range(count)))]) for count in counts]


def read_mask_matrix(path: Path, model: nn.Module, pattern: str = "decoder.*.cross") -> list[Mask]:
    """Masks from a file of layers x heads, 1 where a head stays and 0 where it is off: csv, npy or json.

    Raises FileNotFoundError, and ValueError for another shape or other numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"mask-matrix {path} does not exist")
    sites = find_sites(model, pattern)
    try:
        if path.suffix == ".npy":
            rows = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            rows = np.array(json.loads(path.read_text()), float)
        else:
            rows = np.loadtxt(path, delimiter=",", ndmin=2)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"mask-matrix {path} cannot be read as numbers: {error}") from error
    expected = (len(sites), sites[0].heads)
    if rows.shape != expected:
        raise ValueError(f"mask-matrix {path}: expected {expected[0]} layers x {expected[1]} heads, got {rows.shape}")
    if not np.isin(rows, (0, 1)).all():
        raise ValueError(f"mask-matrix {path}: expected 1 (the head stays) and 0 (it is off), got other numbers")
    off = [(site, tuple(np.flatnonzero(row == 0).tolist())) for site, row in zip(sites, rows, strict=True)]
    return [Mask(site.name, heads=heads) for site, heads in off if heads]


@dataclass(frozen=True, eq=False)
class Variant:
    """The image under one set of masks."""

    name: str
    trace: AttentionTrace
    found: list[QueryPrediction]
    """Detections under the masks."""


def variants(
    model: Any,
    image: ImageLike,
    masks: Sequence[tuple[str, Sequence[Mask]]],
    *,
    confidence: float = 0.5,
    size: Size | int | None = None,
) -> list[Variant]:
    """The trace without masks, called "all heads on", and under each of the named sets of masks."""
    named = [("all heads on", ()), *masks]
    made = [(name, AttentionTrace(model, image, size=size, masks=some)) for name, some in named]
    return [Variant(name, trace, trace.detections(confidence)) for name, trace in made]


def follow(before: AttentionTrace, after: AttentionTrace, prediction: QueryPrediction) -> int:
    """The query of `after` that is what `prediction` was before.

    The same, where queries are learned. In two stages, where they are chosen anew: the one of the same pixel of the
    encoder, or, where that was not chosen, the one whose box is nearest.
    """
    if before.tape.seeds is None or after.tape.seeds is None:
        return prediction.query
    same = (after.tape.seeds[0] == before.tape.seeds[0, prediction.query]).nonzero()
    return int(same[0]) if len(same) else after.nearest(prediction.box).query


def fate(before: AttentionTrace, variant: Variant, prediction: QueryPrediction, confidence: float) -> str:
    """What became of a detection: ``kept``, ``changed to NAME``, or ``lost``, with the score that says so.

    Of a class that the query did not detect, or not with this confidence, its name and its score under the masks.
    """
    query = follow(before, variant.trace, prediction)
    now, own = variant.trace.prediction(query), variant.trace.prediction(query, prediction.label)
    if prediction.detected_as or prediction.score < confidence:
        return f"{own.name} {own.score:.2f}"
    if now.score < confidence:
        return f"lost ({own.score:.2f})"
    return f"kept ({own.score:.2f})" if now.label == prediction.label else f"changed to {now.name} ({now.score:.2f})"


def draw_remaining(made: Sequence[Variant], confidence: float, *, image: str = "") -> Drawing:
    """The boxes under every mask, side by side.

    Returns the drawing; numbers ``names`` (N,), ``queries``, ``labels``, ``scores`` (M,) and ``boxes`` (M, 4) of all
    detections, and which variant each is of, ``variant`` (M,).
    """
    figure, axes = gallery(made[0].trace, len(made))
    for one, variant in zip(axes, made, strict=True):
        for prediction in reversed(variant.found):
            draw_detection(one, prediction)
        caption(one, f"{variant.name}: {counted(len(variant.found), 'box')}")
    headline(figure, image, f"detections of at least {confidence:.2g}, by what is switched off")
    numbers = numbers_of([prediction for variant in made for prediction in variant.found])
    numbers["variant"] = np.repeat(np.arange(len(made)), [len(variant.found) for variant in made])
    return Drawing(figure, numbers | {"names": np.array([variant.name for variant in made])})


def draw_masked_relevance(
    made: Sequence[Variant], prediction: QueryPrediction, confidence: float, *, image: str = "", **how: Any
) -> Drawing:
    """A detection's relevance under every mask, all layers together, a picture each. What is lost is drawn too.

    Each map is in units of its own mean, so that shapes compare; its total, over that of all heads on, stands above.
    `how` is of `maps.token_map`: target, by, parity. Numbers as of `heat.draw_heat_grid`: masks in rows, and in columns
    each decoder layer and all; a map of nothing, where every head is off, is zero.
    """
    trace = made[0].trace
    heats = _heats(made, prediction, "relevance", [*range(len(trace.cross_sites)), None], **how)
    fates = [fate(trace, variant, prediction, confidence) for variant in made]
    rows = [f"{variant.name}\n{became}" for variant, became in zip(made, fates, strict=True)]
    columns = [*map(layer_in_words, trace.cross_sites), "all layers"]
    numbers, relative = heat.measure(trace, heats, rows, columns, None)
    whole, totals = relative[:, -1], numbers["mean"][:, -1]
    numbers["most"] = np.array(max(map(heat.natural_end, whole)))
    window = heat.window_of(trace, prediction)
    figure, axes = gallery(trace, len(made), window=window)
    for one, shown, variant, became, total in zip(axes, whole, made, fates, totals, strict=True):
        heat.draw_map(one, shown, numbers, prediction, named=False)
        times = f", total x {total / totals[0]:.2g}" if variant is not made[0] and totals[0] else ""
        caption(one, f"{variant.name}\n{became}{times}")
    heat.explain_scale(figure, axes, whole, numbers)
    what = f"relevance for {target_in_words(how.get('target', 'class'), prediction)}, by what is switched off"
    headline(figure, told(prediction, image), what, heat.inside(numbers["heat"][:, -1], window))
    return Drawing(figure, numbers | {"box": array(prediction.box)})


def draw_masked_attention(made: Sequence[Variant], place: tuple[float, float], *, image: str = "") -> Drawing:
    """Attention of the query nearest to a place of the image, under every mask, layer by layer: needs no detection.

    Nearest is the query whose first reference is, or, of DETR, whose box's centre.
    """
    trace = made[0].trace
    boxes = trace.layer_boxes[-1]
    centres = trace.references[0][:, :2] if trace.references else (boxes[:, :2] + boxes[:, 2:]) / 2
    prediction = trace.prediction(int(((centres - torch.tensor(place)) ** 2).sum(-1).argmin()))
    heats = _heats(made, prediction, "raw", range(len(trace.cross_sites)))
    near = f"the nearest to x {place[0]:g}, y {place[1]:g}"
    title = f"raw attention of query {prediction.query}, {near}, by what is switched off"
    names, columns = [variant.name for variant in made], [*map(layer_in_words, trace.cross_sites)]
    return heat.draw_heat_grid(trace, heats, names, columns, None, title, image=image)


def _heats(
    made: Sequence[Variant], prediction: QueryPrediction, method: str, layers: Sequence[int | None], **how: Any
) -> list[list[Tensor]]:
    """Maps under every mask, of each of the decoder's layers."""
    own = [one.trace.prediction(follow(made[0].trace, one.trace, prediction), prediction.label) for one in made]
    pairs = zip(made, own, strict=True)
    return [[heat_map(one.trace, now, method, layer=layer, **how) for layer in layers] for one, now in pairs]


def summary(made: Sequence[Variant], prediction: Sequence[QueryPrediction], confidence: float) -> list[dict[str, Any]]:
    """What every mask did, ready for json: detections that remain, and what became of those asked about."""
    return [
        {
            "name": variant.name,
            "masks": [str(mask) for mask in variant.trace.masks],
            "detections": [vars(one) for one in variant.found],
            "became": {str(one.query): fate(made[0].trace, variant, one, confidence) for one in prediction},
        }
        for variant in made
    ]
