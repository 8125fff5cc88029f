"""The encoder's self-attention at places of the image: where a pixel looks, and who looks at it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...common.text import counted
from ..core.maps import column_map, row_map
from ..core.trace import AttentionTrace
from . import drawing
from .drawing import MARKERS, Array, Drawing, array
from .heat import heat_colours, natural_end, overlay, share_inside

UNIT = "times uniform (square-root scale)"
RING = "#40e0ff"
_WIDE = 0.25
"""What is cut out around a place, on each side: a part of the image's longer side."""


def draw_encoder(
    trace: AttentionTrace,
    site: str,
    places: Sequence[tuple[float, float]],
    *,
    head: int | None = None,
    level: int = 0,
    most: float | None = None,
    image: str = "",
) -> Drawing:
    """For each place a line of pictures: where the encoder's token there looks (its row), and who looks at it (column).

    Of a large image the part around the places is drawn. Maps are in units of uniform attention, of which a token gives
    and receives 1 in all. Of deformable attention the points that the token sampled are drawn on its row, the larger
    the higher their weight.

    Args:
        trace: of any detector with an encoder.
        site: such as ``encoder.2.self``.
        places: x, y in pixels of the image.
        head: the mean over heads when None.
        level: that the token is of; 0 is the finest.
        most: end of the maps' colour scale; when None that of `heat.natural_end`.
        image: the image's name, for the title.

    Returns:
        The drawing; numbers ``places`` (N, 2), ``tokens`` (N,), ``rows`` and ``columns`` (N, H, W), whose sums are the
        attention given and received; of deformable attention also ``xy`` (N, heads, L, P, 2) and ``weights`` (N,
        heads, L, P) of the points.

    Raises:
        ValueError: no place, or one outside the image; a site that is not the encoder's; a head or level out of range.
    """
    if site not in trace.sites or trace.sites[site].stack != "encoder":
        known = [name for name, one in trace.sites.items() if one.stack == "encoder"]
        raise ValueError(
            f"site {site!r}: expected one of the encoder's, {', '.join(known) or 'of which there is none'}"
        )
    record = trace.record(site)
    deformable, heads = record.site.deformable, record.heads(head)
    tokens = [trace.token_at(x, y, level) for x, y in places]
    if not tokens:
        raise ValueError("places: expected at least one x, y in pixels of the image, got none")

    given = torch.stack([row_map(record, token, head=head) for token in tokens])
    received = torch.stack([column_map(record, token, head=head) for token in tokens])
    rows, columns = array(trace.to_pixels(given)), array(trace.to_pixels(received))
    numbers = {"places": np.array(places, float), "tokens": np.array(tokens), "rows": rows, "columns": columns}
    relative = np.stack([rows, columns], 1) * (trace.height * trace.width)
    norm = drawing.root_scale(natural_end(relative) if most is None else most)
    titles = ["where this place looks (row)", "which places look here (column)"]
    labels = [f"x {x:g}, y {y:g}" for x, y in places]
    window = _window(trace, places)
    figure, axes = drawing.canvas(trace, labels, titles, window=window)
    for line, place, maps in zip(axes, places, relative, strict=True):
        for one, heat in zip(line, maps, strict=True):
            overlay(one, heat, norm)
            # a ring, which leaves the place itself to be seen
            for colour, width in (("black", 4), (RING, 2.2)):
                one.scatter(*place, s=110, facecolors="none", edgecolors=colour, linewidths=width, zorder=5)
    if deformable:
        points = [trace.points(site, token) for token in tokens]
        numbers["xy"] = np.stack([array(each.xy)[heads] for each in points])
        numbers["weights"] = np.stack([array(each.weights)[heads] for each in points])
        levels = range(record.site.levels)
        for one, xy, weights in zip(axes[:, 0], numbers["xy"], numbers["weights"], strict=True):
            _draw_points(one, xy, weights, levels)
            _say_outside(one, trace, xy, window)
        place_mark = drawing.mark("o", "the place; what it samples:", RING, markerfacecolor="none")
        drawing.show_key(figure, [place_mark, *drawing.level_marks(trace, levels)])
    drawing.colour_bar(figure, axes, norm, heat_colours(), UNIT, beyond=bool(relative.max() > norm.vmax))
    which = "mean of heads" if head is None else f"head {head}"
    of_level = f", a pixel of level {level}" if len(trace.shapes) > 1 else ""
    cut = ""
    if window is not None:
        looked, looking = share_inside(rows, window), share_inside(columns, window)
        cut = f"cut out, with {looked} of the row and {looking} of the column"
    drawing.headline(figure, image, f"{drawing.in_words(site)}, {which}{of_level}", cut)
    return Drawing(figure, numbers)


def _draw_points(axes: Any, xy: Array, weights: Array, levels: Sequence[int]) -> None:
    """Points xy (heads, L, P, 2), white, the larger the higher their weights (heads, L, P)."""
    for level in levels:
        size = 6 + 60 * weights[:, level].reshape(-1).clip(0, 1) ** 0.5
        edge = {"facecolors": "white", "edgecolors": "black", "linewidths": 0.7, "zorder": 4}
        axes.scatter(*xy[:, level].reshape(-1, 2).T, s=size, marker=MARKERS[level % len(MARKERS)], **edge)


def _window(trace: AttentionTrace, places: Sequence[tuple[float, float]]) -> tuple[float, float, float, float] | None:
    """The part of the image around the places; None where that is most of it."""
    half = _WIDE * max(trace.width, trace.height)
    middle = np.array(places, float)
    return drawing.close_up(trace, np.concatenate([middle - half, middle + half]), margin=0)


def _say_outside(axes: Any, trace: AttentionTrace, xy: Array, window: Sequence[float] | None) -> None:
    """How many of the points lie outside what is shown, in a corner of it."""
    x0, y0, x1, y1 = (0, 0, trace.width, trace.height) if window is None else window
    outside = int(((xy < [x0, y0]) | (xy > [x1, y1])).any(-1).sum())
    if outside:
        drawing.note(axes, f"{counted(outside, 'point')} outside")
