"""The encoder's self-attention at places of the image: where a pixel looks, and who looks at it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..core.maps import column_map, row_map
from ..core.trace import AttentionTrace
from .drawing import SMALL, Array, Drawing, array, canvas, chosen, colour_bar, headline, in_words, root_scale
from .heat import heat_colours, natural_end, overlay
from .points import WEIGHT, draw_key, point_colours, scatter

UNIT = "attention, 1 where spread evenly (square-root scale)"


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

    Maps are in units of uniform attention, of which a token gives and receives 1 in all. Of deformable attention the
    points that the token sampled stand first.

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
    one = record.site
    heads = chosen("head", None if head is None else [head], one.heads, site)
    tokens = [trace.token_at(x, y, level) for x, y in places]
    if not tokens:
        raise ValueError("places: expected at least one x, y in pixels of the image, got none")

    given = torch.stack([row_map(record, token, head=head) for token in tokens])
    received = torch.stack([column_map(record, token, head=head) for token in tokens])
    rows, columns = array(trace.to_pixels(given)), array(trace.to_pixels(received))
    numbers = {"places": np.array(places, float), "tokens": np.array(tokens), "rows": rows, "columns": columns}
    if one.deformable:
        points = [trace.points(site, token) for token in tokens]
        numbers["xy"] = np.stack([array(each.xy)[heads] for each in points])
        numbers["weights"] = np.stack([array(each.weights)[heads] for each in points])

    relative = np.stack([rows, columns], 1) * (rows.shape[-1] * rows.shape[-2])
    end = natural_end(relative) if most is None else most
    norm, of_points = root_scale(end), root_scale(1.0)
    figure, axes = canvas(trace, len(tokens), 3 if one.deformable else 2, largest=3.2 if len(tokens) < 4 else SMALL)
    titles = ["where this place looks (row)", "which places look here (column)"]
    for line, (number, place) in zip(axes, enumerate(places), strict=True):
        for each, heat in zip(line[-2:], relative[number], strict=True):
            overlay(each, heat, norm)
        if one.deformable:
            _say_outside(line[0], trace, numbers["xy"][number])
            scatter(
                line[0], numbers["xy"][number], numbers["weights"][number], of_points, range(one.levels), largest=60
            )
        for each in line:
            _mark(each, place)
        line[0].set_ylabel(f"x {place[0]:g}, y {place[1]:g}", fontsize=8.5)
    for each, title in zip(axes[0], ["points that it samples"] * one.deformable + titles, strict=True):
        each.set_title(title, fontsize=9, pad=4)
    if one.deformable:
        draw_key(figure, trace, range(one.levels), place="")
        beyond = bool((numbers["weights"] > 1).any())
        colour_bar(figure, axes[:, :1], of_points, point_colours(), WEIGHT, beyond=beyond, left=True)
    colour_bar(figure, axes[:, -2:], norm, heat_colours(), UNIT, beyond=bool(relative.max() > norm.vmax))
    which = "mean of heads" if head is None else f"head {head}"
    of_level = f", a pixel of level {level}" if len(trace.shapes) > 1 else ""
    headline(figure, image, f"{in_words(site)}, {which}{of_level}")
    return Drawing(figure, numbers)


def _say_outside(axes: Any, trace: AttentionTrace, xy: Array) -> None:
    """How many of the points lie outside the image, in a corner of it."""
    height, width = trace.image.shape[-2:]
    outside = int(((xy < 0) | (xy > [width, height])).any(-1).sum())
    if outside:
        from matplotlib.patheffects import Normal, Stroke

        axes.annotate(
            f"{outside} outside",
            (1, 0),
            (-3, 3),
            "axes fraction",
            "offset points",
            ha="right",
            fontsize=7.5,
            color="white",
            path_effects=[Stroke(linewidth=2, foreground="black"), Normal()],
        )


def _mark(axes: Any, place: tuple[float, float]) -> None:
    """A ring, which leaves the place itself to be seen."""
    for colour, width in (("black", 3.2), ("#40e0ff", 1.6)):
        axes.scatter(*place, s=75, facecolors="none", edgecolors=colour, linewidths=width, zorder=5)
