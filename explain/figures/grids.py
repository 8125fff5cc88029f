"""Small pictures in a grid: layers against heads, layers against levels, heads against levels."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from ..core.maps import heat_map
from ..core.trace import AttentionTrace, QueryPrediction
from ..options import METHOD_TITLES
from .drawing import (
    Drawing,
    around,
    array,
    canvas,
    colour_bar,
    colour_of,
    draw_box,
    headline,
    in_words,
    layer_in_words,
    root_scale,
    show_outside,
    told,
    zoom,
)
from .heat import UNIT, heat_colours, on_image, overlay, scaled
from .points import (
    WEIGHT,
    draw_key,
    draw_reference,
    point_colours,
    reference_corners,
    sampled,
    scatter,
    stack_references,
)

By = Literal["layers x heads", "layers x levels", "heads x levels"]


def draw_grid(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    sites: Sequence[str],
    *,
    by: By = "layers x heads",
    kind: Literal["points", "heat"] = "points",
    method: str = "raw",
    target: str = "class",
    most: float | None = None,
    image: str = "",
) -> Drawing:
    """One detection's points, or its heat maps by a method, in a grid of cross-attentions of the decoder.

    Args:
        trace, seen, image: as of `draw_points`.
        sites: the layers, in rows; "heads x levels" takes one.
        by: rows x columns.
        kind: points are drawn by `draw_point_grid`, heat maps by `draw_heat_grid`.
        method, target: of the heat maps, as of `maps.heat_map`.
        most: end of the colour scale; the default is that of the kind.

    Raises:
        ValueError: as of those functions.
    """
    if kind == "points":
        return draw_point_grid(trace, prediction, sites, by=by, most=1.0 if most is None else most, image=image)
    layers = [trace.record(site).site for site in check_grid(sites, by)]
    rows, columns = titles(sites, by, layers[0].heads, len(trace.shapes))

    def heat(row: int, column: int) -> Tensor:
        layer = layers[0 if by == "heads x levels" else row].layer
        head = {"layers x heads": column, "heads x levels": row}.get(by)
        level = None if by == "layers x heads" else column
        return heat_map(trace, prediction, method, layer=layer, head=head, level=level, target=target)

    heats = [[heat(row, column) for column in range(len(columns))] for row in range(len(rows))]
    what = f"{METHOD_TITLES[method]} by {by.replace(' x ', ' and ')}"
    what += f", {in_words(sites[0])}" if by == "heads x levels" else ""
    return draw_heat_grid(trace, heats, rows, columns, prediction, what, most=most, image=image)


def check_grid(sites: Sequence[str], by: str) -> Sequence[str]:
    """The sites. Raises ValueError for another `by`, no site, or several where one is expected."""
    if by not in get_args(By):
        raise ValueError(f"by: expected {', '.join(get_args(By))}, got {by!r}")
    if not sites or (by == "heads x levels" and len(sites) > 1):
        expected = "one site" if by == "heads x levels" else "at least one site"
        raise ValueError(f"sites: expected {expected} for {by}, got {', '.join(sites) or 'none'}")
    return sites


def titles(sites: Sequence[str], by: By, heads: int, levels: int) -> tuple[list[str], list[str]]:
    """Of rows and columns."""
    head_names, level_names = [f"head {head}" for head in range(heads)], [f"level {level}" for level in range(levels)]
    rows = head_names if by == "heads x levels" else [layer_in_words(site) for site in sites]
    return rows, head_names if by == "layers x heads" else level_names


def draw_point_grid(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    sites: Sequence[str],
    *,
    by: By = "layers x heads",
    most: float = 1.0,
    image: str = "",
) -> Drawing:
    """The points that one query sampled, as of `draw_points`, split up into a grid on one colour scale.

    Args:
        trace, seen, most, image: as of `draw_points`.
        sites: the layers, in rows; "heads x levels" takes one.
        by: rows x columns.

    Returns:
        The drawing; numbers ``xy`` (N, H, L, P, 2), ``weights`` (N, H, L, P), ``reference`` (N, 2 or 4), as of
        `stack_references`, ``sites`` (N,), ``box`` (4,).

    Raises:
        ValueError: as of `draw_points`; no site, or too many; another `by`.
    """
    check_grid(sites, by)
    each = [sampled(trace, prediction, site) for site in sites]
    numbers = {name: np.stack([one[name] for one in each]) for name in ("xy", "weights")}
    numbers["reference"] = stack_references([one["reference"] for one in each])
    heads, levels = numbers["weights"].shape[1:3]
    rows, columns = titles(sites, by, heads, levels)

    figure, axes = canvas(trace, len(rows), len(columns))
    norm = root_scale(most)
    for row, line in enumerate(axes):
        for column, one in enumerate(line):
            layer = 0 if by == "heads x levels" else row
            some_heads = slice(None) if by == "layers x levels" else [column if by == "layers x heads" else row]
            some_levels = list(range(levels)) if by == "layers x heads" else [column]
            draw_box(one, prediction.box, colour_of(prediction.label), width=1.0)
            xy, weights = numbers["xy"][layer][some_heads], numbers["weights"][layer][some_heads]
            scatter(one, xy[:, some_levels], weights[:, some_levels], norm, some_levels, largest=40)
            draw_reference(one, numbers["reference"][layer], size=7)
    x, y = numbers["xy"][..., 0], numbers["xy"][..., 1]
    corners = [each[0]["box"].reshape(-1, 2), *map(reference_corners, numbers["reference"])]
    window = around(trace, np.concatenate(corners), margin=0.4)
    for one in axes.flat:
        far = show_outside(one, trace, x, y) if window is None else zoom(one, window, x, y)
    _name(axes, rows, columns)
    colour_bar(figure, axes, norm, point_colours(), WEIGHT, beyond=bool((numbers["weights"] > most).any()))
    draw_key(figure, trace, range(levels), boxed=numbers["reference"].shape[-1] == 4)
    part = "" if window is None else ", around the detection"
    part += f"; {far} of {x.size} lie outside" if far else ""
    where = f"{in_words(sites[0])}: " if by == "heads x levels" else ""
    headline(figure, told(prediction, image), f"{where}sampled points by {by.replace(' x ', ' and ')}" + part)
    return Drawing(figure, numbers | {"sites": np.array(list(sites)), "box": array(prediction.box)})


def draw_heat_grid(
    trace: AttentionTrace,
    heats: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    prediction: QueryPrediction | None = None,
    title: str = "",
    *,
    most: float | None = None,
    image: str = "",
) -> Drawing:
    """Maps over the image in a grid on one colour scale, in units of the mean of all.

    Args:
        trace, seen, title, most, image: as of `draw_heat`.
        heats: by row and column, (H, W) each.
        rows, columns: their titles.

    Returns:
        The drawing; numbers ``heat`` (rows, columns, H, W), ``rows``, ``columns``, ``mean``, ``most`` and, with
        `seen`, ``box``.

    Raises:
        ValueError: as of `draw_heat`; maps and titles differ in number.
    """
    if not rows or not columns or [len(line) for line in heats] != [len(columns)] * len(rows):
        counts = ", ".join(str(len(line)) for line in heats)
        raise ValueError(f"heats: expected {len(rows)} rows of {len(columns)} maps, got rows of {counts or 'none'}")
    values = np.stack([np.stack([on_image(trace, heat) for heat in line]) for line in heats])
    relative, mean, end = scaled(values, most)
    figure, axes = canvas(trace, len(rows), len(columns))
    norm = root_scale(end)
    for one, heat in zip(axes.flat, relative.reshape(-1, *relative.shape[2:]), strict=True):
        overlay(one, heat, norm)
        if prediction is not None:
            draw_box(one, prediction.box, colour_of(prediction.label), width=1.0)
    _name(axes, rows, columns)
    colour_bar(
        figure, axes, norm, heat_colours(), UNIT.replace("of the image", "of all pictures"), beyond=relative.max() > end
    )
    headline(figure, told(prediction, image), title)
    numbers = {"heat": values, "rows": np.array(list(rows)), "columns": np.array(list(columns))}
    numbers |= {"mean": np.array(mean), "most": np.array(end)}
    return Drawing(figure, numbers if prediction is None else numbers | {"box": array(prediction.box)})


def _name(axes: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    for one, name in zip(axes[:, 0], rows, strict=True):
        one.set_ylabel(name, fontsize=8.5)
    for one, name in zip(axes[0], columns, strict=True):
        one.set_title(name, fontsize=8.5, pad=3)
