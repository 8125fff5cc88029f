"""One image under several masks: which boxes remain, and what each detection's relevance becomes, layer by layer."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models.inference.image_size import Size
from ...models.inference.images import ImageLike
from ..core.maps import heat_map
from ..core.masks import Mask
from ..core.relevance import By
from ..core.sites import find_sites
from ..core.trace import AttentionTrace, QueryPrediction
from .drawing import Drawing, canvas, colour_of, draw_box, headline, layer_in_words, target_in_words
from .grids import draw_heat_grid


def cumulative_masks(model: nn.Module, pattern: str = "decoder.*.cross") -> list[tuple[str, list[Mask]]]:
    """Heads off one after the other, the same in all layers: the first, the first two, to all of them; with names."""
    heads = min(site.heads for site in find_sites(model, pattern))
    counts = range(1, heads + 1)
    return [(f"{count} head{'s' * (count > 1)} off", [Mask(pattern, heads=tuple(range(count)))]) for count in counts]


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
            rows = np.array([[float(word) for word in row] for row in csv.reader(path.open()) if row])
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
    made = []
    for name, some in [("all heads on", []), *masks]:
        trace = AttentionTrace(model, image, size=size, masks=some)
        made.append(Variant(name, trace, trace.detections(confidence)))
    return made


def follow(before: AttentionTrace, after: AttentionTrace, prediction: QueryPrediction) -> int:
    """The query of `after` that is what `seen` was before.

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
    columns = min(len(made), 3 if len(made) > 4 else 4)
    rows = -(-len(made) // columns)
    figure, axes = canvas(made[0].trace, rows, columns)
    flat = list(axes.flat)
    for place, variant in zip(flat, made, strict=False):
        for prediction in reversed(variant.found):
            draw_box(
                place, prediction.box, colour_of(prediction.label), name=f"{prediction.name} {prediction.score:.2f}"
            )
        count = len(variant.found)
        place.set_title(f"{variant.name}: {count} box{'es' * (count != 1)}", fontsize=9, pad=4)
    for place in flat[len(made) :]:
        place.axis("off")
        place.clear()
        place.axis("off")
    headline(figure, image, f"detections of at least {confidence:.2g}, by what is switched off")
    every = [(number, prediction) for number, variant in enumerate(made) for prediction in variant.found]
    numbers = {
        "names": np.array([variant.name for variant in made]),
        "variant": np.array([number for number, _ in every], int),
        "queries": np.array([prediction.query for _, prediction in every], int),
        "labels": np.array([prediction.label for _, prediction in every], int),
        "scores": np.array([prediction.score for _, prediction in every], float),
        "boxes": np.array([prediction.box for _, prediction in every], float).reshape(-1, 4),
    }
    return Drawing(figure, numbers)


def draw_masked_relevance(
    made: Sequence[Variant],
    prediction: QueryPrediction,
    confidence: float,
    *,
    target: str = "class",
    by: By = "point",
    parity: bool = False,
    image: str = "",
) -> Drawing:
    """A detection's relevance under every mask, in rows: of each decoder layer, and of all. What is lost is drawn too.

    Numbers as of `grids.draw_heat_grid`; a map of nothing, where every head is off, is zero.
    """
    trace = made[0].trace
    layers = trace.cross_sites
    heats: list[list[Tensor]] = []
    for variant in made:
        own = variant.trace.prediction(follow(trace, variant.trace, prediction), prediction.label)
        row = [
            heat_map(variant.trace, own, "relevance", layer=layer, target=target, by=by, parity=parity)
            for layer in [*range(len(layers)), None]
        ]
        heats.append(row)
    names = [f"{variant.name}\n{fate(trace, variant, prediction, confidence)}" for variant in made]
    title = f"relevance for {target_in_words(target, prediction)}, by layer and by what is switched off"
    columns = [*map(layer_in_words, layers), "all layers"]
    return draw_heat_grid(trace, heats, names, columns, prediction, title, image=image)


def draw_masked_attention(made: Sequence[Variant], place: tuple[float, float], *, image: str = "") -> Drawing:
    """Attention of the query nearest to a place of the image, under every mask, layer by layer: needs no detection.

    Nearest is the query whose first reference is, or, of DETR, whose box's centre.
    """
    trace = made[0].trace
    boxes = trace.layer_boxes[-1]
    centres = trace.references[0][:, :2] if trace.references else (boxes[:, :2] + boxes[:, 2:]) / 2
    prediction = trace.prediction(int(((centres - torch.tensor(place)) ** 2).sum(-1).argmin()))
    layers = trace.cross_sites
    heats = []
    for variant in made:
        own = variant.trace.prediction(follow(trace, variant.trace, prediction))
        heats.append([heat_map(variant.trace, own, "raw", layer=layer) for layer in range(len(layers))])
    near = f"the nearest to x {place[0]:g}, y {place[1]:g}"
    title = f"raw attention of query {prediction.query}, {near}, by what is switched off"
    names = [variant.name for variant in made]
    columns = [*map(layer_in_words, layers)]
    return draw_heat_grid(trace, heats, names, columns, None, title, image=image)


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
