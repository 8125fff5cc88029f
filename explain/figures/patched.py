"""Another image's content at one layer and head of the decoder: what becomes of a detection's score."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ...models.inference.image_size import Size
from ...models.inference.images import ImageLike, read_image
from ..ablation.patching import Kind, Patched, patch
from ..core.masks import Mask
from ..core.sites import find_sites
from ..core.trace import AttentionTrace, QueryPrediction
from .drawing import Drawing, array, caption, draw_detection, headline, layer_in_words, told

CROSS = "decoder.*.cross"
_IMAGE = 3.4
"""Inches: an image's longer side."""


def patch_grid(
    trace: AttentionTrace,
    other: ImageLike,
    prediction: QueryPrediction,
    *,
    kind: Kind = "values",
    size: Size | int | None = None,
) -> list[list[Patched]]:
    """By the decoder's layer and head, each patched alone; last in a row all heads of it, last of all all layers.

    Arguments and errors as of `patching.patch`.
    """
    layers = [site.name for site in find_sites(trace.model, CROSS)]
    heads = min(trace.sites[name].heads for name in layers)
    columns: list[tuple[int, ...] | None] = [*((head,) for head in range(heads)), None]
    places = [Mask(name, heads=some) for name in [*layers, CROSS] for some in columns]
    found = patch(trace, other, prediction, places, kind=kind, size=size)
    return [found[start : start + len(columns)] for start in range(0, len(found), len(columns))]


def draw_patched(
    trace: AttentionTrace,
    other: ImageLike,
    prediction: QueryPrediction,
    *,
    image: str = "",
    other_name: str = "",
    size: Size | int | None = None,
) -> Drawing:
    """Both images, and by layer and head by how much the score changes when what is read comes from the other one.

    Returns the drawing; numbers ``change``, ``score``, ``iou`` and ``name`` (layers + 1, heads + 1), in the order of
    `patch_grid`, ``before`` and ``box``. Errors as of `patching.patch`.
    """
    grid = patch_grid(trace, other, prediction, size=size)
    numbers = {part: np.array([[getattr(one, part) for one in row] for row in grid]) for part in _PARTS}
    numbers |= {"before": np.array(prediction.score), "box": np.array(prediction.box)}
    change = numbers["change"]
    rows, columns = change.shape
    wide = _IMAGE * trace.width / max(trace.width, trace.height)
    figure = Figure(figsize=(2 * wide + 2.4 + 0.62 * columns, max(_IMAGE, 1.4 + 0.42 * rows) + 0.9))
    figure.set_layout_engine(ConstrainedLayoutEngine())
    first, second, last = figure.subplots(1, 3, width_ratios=[wide, wide, 1.9 + 0.62 * columns])
    for axes, pixels, name in ((first, trace.image, image), (second, read_image(other), other_name)):
        # the other image is resized to the first
        axes.imshow(array(pixels).transpose(1, 2, 0), extent=(0, trace.width, trace.height, 0))
        axes.set(xlim=(0, trace.width), ylim=(trace.height, 0), xticks=[], yticks=[])
        draw_detection(axes, prediction, named=axes is first)
        caption(axes, name)
    layers = [layer_in_words(row[0].site) for row in grid[:-1]]
    _matrix(figure, last, change, [*layers, "all layers"], [*map(str, range(columns - 1)), "all"])
    what = f"change of the score of {prediction.name} when a head reads {other_name or 'the other image'} at its places"
    headline(figure, told(prediction, image), what)
    return Drawing(figure, numbers)


_PARTS = ("change", "score", "iou", "name")


def _matrix(figure: Any, axes: Any, change: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Numbers in cells; red where the score falls, blue where it rises, on a scale from -1 to 1."""
    shown = axes.imshow(change, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(change):
        ink = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xlabel("head", fontsize=8)
    figure.colorbar(shown, ax=axes).ax.tick_params(labelsize=8)
