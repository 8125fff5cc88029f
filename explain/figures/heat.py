"""Heat maps over the image: one, a grid, or the strongest of many beside the share of each; on one colour scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from torch import Tensor

from ..core.trace import AttentionTrace, QueryPrediction
from . import drawing
from .drawing import Array, Drawing, array

# end of a colour scale at the least, times the mean: what is nearly uniform does not look as if it were not
LEAST = 8.0
UNIT = "times the map's mean (square-root scale)"
STRONGEST = 5
"""Maps that are drawn of more than a grid of six."""


def draw_heat(
    trace: AttentionTrace,
    heat: Tensor,
    prediction: QueryPrediction | None = None,
    title: str = "",
    *,
    most: float | None = None,
    image: str = "",
) -> Drawing:
    """One map (H, W) over the whole image, as `draw_heat_grid` draws several; without ``rows`` and ``columns``."""
    found = draw_heat_grid(trace, [[heat]], [""], [""], prediction, title, most=most, image=image)
    numbers = {name: values for name, values in found.numbers.items() if name not in ("rows", "columns")}
    return Drawing(found.figure, numbers | {name: numbers[name][0, 0] for name in ("heat", "mean")})


def draw_heat_grid(
    trace: AttentionTrace,
    heats: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    prediction: QueryPrediction | None = None,
    title: str = "",
    *,
    most: float | None = None,
    shares: bool = True,
    image: str = "",
) -> Drawing:
    """Maps over the image, each in units of its own mean: 1 where it is as high as a uniform one, by the square root.

    So maps of unlike totals are compared by their shape; the share of each in their sum stands in its corner. With
    `prediction`, several maps are cut out around it; how much of them lies there is said above.

    Args:
        trace: whose image.
        heats: by row and column, (H, W) each, not negative, on the image's pixels.
        rows, columns: their titles.
        prediction: whose box is drawn, and named where there is one map alone.
        title: what the maps are, such as "relevance, all layers".
        most: the end of the colour scale, in that unit, to compare pictures by; when None that of `natural_end`.
        shares: are maps of one unit, so that their sum means something?
        image: the image's name, for the title.

    Returns:
        The drawing; numbers ``heat`` (rows, columns, H, W), ``mean`` (rows, columns): of each map; ``rows``,
        ``columns``, ``most`` and, with `prediction`, ``box``.

    Raises:
        ValueError: a map is of another size than the image, negative, or not finite; maps and titles differ in number.
    """
    numbers, relative = measure(trace, heats, rows, columns, most)
    alone = len(rows) * len(columns) == 1
    window = None if alone or prediction is None else window_of(trace, prediction)
    line = len(rows) == 1 or len(columns) == 1
    if line:
        figure, axes = drawing.gallery(trace, len(rows) * len(columns), window=window)
        for one, text in zip(axes, _names(rows, columns), strict=True):
            drawing.caption(one, text)
    else:
        figure, axes = drawing.canvas(trace, rows, columns, window=window)
    told_shares = shares and not alone and bool(numbers["mean"].any())
    every = zip(axes.flat, relative.reshape(-1, *relative.shape[2:]), shares_of(numbers).flat, strict=True)
    for one, shown, share in every:
        draw_map(one, shown, numbers, prediction, named=alone)
        if told_shares:
            drawing.note(one, percent(share))
    explain_scale(figure, axes, relative, numbers)
    zero = "" if numbers["mean"].any() else "zero everywhere"
    told = ": ".join(part for part in (title, zero) if part)
    key = "percent: share of the sum of all maps" if told_shares else ""
    drawing.headline(
        figure,
        drawing.told(prediction, image),
        told,
        join(key, inside(numbers["heat"] if shares else relative, window)),
    )
    return Drawing(figure, numbers if prediction is None else numbers | {"box": array(prediction.box)})


def draw_strongest(
    trace: AttentionTrace,
    heats: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    prediction: QueryPrediction,
    title: str = "",
    *,
    image: str = "",
) -> Drawing:
    """Of many maps that add up to one, such as relevance by layer and head: the share of each, and the strongest drawn.

    Arguments, numbers (of all maps) and errors as of `draw_heat_grid`.
    """
    numbers, relative = measure(trace, heats, rows, columns, None)
    shares = shares_of(numbers)
    order = shares.argsort(axis=None, kind="stable")[::-1][:STRONGEST]
    drawn, names = relative.reshape(-1, *relative.shape[2:])[order], _names(rows, columns)
    numbers["most"] = np.array(max(map(natural_end, drawn)))
    window = window_of(trace, prediction)
    figure, [table, *axes] = drawing.gallery(trace, 1 + len(order), window=window)
    _draw_shares(table, shares, rows, columns)
    for one, shown, place in zip(axes, drawn, order, strict=True):
        draw_map(one, shown, numbers, prediction, named=False)
        drawing.caption(one, f"{names[place]}: {percent(shares.flat[place])}")
    explain_scale(figure, np.array(axes), drawn, numbers)
    told = drawing.told(prediction, image)
    if not numbers["mean"].any():
        title = f"{title}: zero everywhere"
    drawing.headline(figure, told, f"{title}: the {len(order)} strongest", inside(numbers["heat"], window))
    return Drawing(figure, numbers | {"box": array(prediction.box)})


def measure(
    trace: AttentionTrace,
    heats: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    most: float | None,
) -> tuple[dict[str, Array], Array]:
    """The numbers of `draw_heat_grid`, and the maps in units of their own means (rows, columns, H, W).

    Raises ValueError as `draw_heat_grid` does.
    """
    if not rows or not columns or [len(line) for line in heats] != [len(columns)] * len(rows):
        counts = ", ".join(str(len(line)) for line in heats)
        raise ValueError(f"heats: expected {len(rows)} rows of {len(columns)} maps, got rows of {counts or 'none'}")
    values = np.stack([np.stack([_on_image(trace, heat) for heat in line]) for line in heats])
    mean = values.mean((2, 3), dtype=float)
    relative = values / np.where(mean, mean, 1)[..., None, None]
    end = max(natural_end(one) for line in relative for one in line) if most is None else most
    numbers = {"heat": values, "rows": np.array(list(rows)), "columns": np.array(list(columns))}
    return numbers | {"mean": mean, "most": np.array(end)}, relative


def shares_of(numbers: dict[str, Array]) -> Array:
    """Of each map in the sum of all, (rows, columns); 0 where all are zero."""
    total = numbers["mean"].sum()
    return numbers["mean"] / total if total else numbers["mean"]


def percent(share: float) -> str:
    """ "41%", and "0.4%" below one."""
    return f"{share:.0%}" if share >= 0.0095 or share == 0 else f"{max(100 * share, 0.1):.1f}%"


def window_of(trace: AttentionTrace, prediction: QueryPrediction) -> tuple[float, float, float, float] | None:
    """The part of the image around a detection that several maps are cut out to; None where that is most of it."""
    return drawing.close_up(trace, np.array(prediction.box, float).reshape(-1, 2), margin=0.35)


def inside(heats: Array, window: Sequence[float] | None) -> str:
    """How much of maps (..., H, W) lies in a window, in words; nothing without one."""
    if window is None or not heats.any():
        return ""
    return f"cut out around the detection, where {share_inside(heats, window)} of it lies"


def share_inside(heats: Array, window: Sequence[float]) -> str:
    """Of maps (..., H, W), "41%" or "all"."""
    x0, y0, x1, y1 = (round(value) for value in window)
    share = float(heats[..., y0:y1, x0:x1].sum() / max(heats.sum(), np.finfo(heats.dtype).tiny))
    return "all" if share > 0.995 else percent(share)


def _names(rows: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Of each map, its row's and its column's title together, without what is empty."""
    return [", ".join(part for part in (row, column) if part) for row in rows for column in columns]


def join(*parts: str) -> str:
    """With semicolons; what is empty is left out."""
    return "; ".join(part for part in parts if part)


def draw_map(
    axes: Any, relative: Array, numbers: dict[str, Array], prediction: QueryPrediction | None, *, named: bool
) -> None:
    """A map (H, W) of `measure` over the axes' image, and the box of what it explains."""
    overlay(axes, relative, drawing.root_scale(float(numbers["most"])))
    if prediction is not None:
        drawing.draw_detection(axes, prediction, named=named, width=1.8 if named else 1.2)


def explain_scale(figure: Any, axes: Array, relative: Array, numbers: dict[str, Array]) -> None:
    """The colour scale of maps beside their axes."""
    end = float(numbers["most"])
    beyond = bool(relative.max() > end)
    drawing.colour_bar(figure, axes, drawing.root_scale(end), heat_colours(), UNIT, beyond=beyond)


def _draw_shares(axes: Any, shares: Array, rows: Sequence[str], columns: Sequence[str]) -> None:
    """A table of percent in the axes, darker where there is more, in place of the image."""
    axes.clear()
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1.4 * max(float(shares.max()), 1e-9), aspect="auto")
    axes.set_box_aspect(0.9)
    for (row, column), share in np.ndenumerate(shares):
        ink = "white" if share > 0.75 * shares.max() else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=9.5, color=ink)
    axes.xaxis.set_visible(True)
    axes.yaxis.set_visible(True)
    short = [[name.rsplit(" ", 1)[-1] for name in names] for names in (columns, rows)]
    axes.set_xticks(range(len(columns)), short[0], fontsize=9)
    axes.set_yticks(range(len(rows)), short[1], fontsize=9)
    axes.tick_params(length=0)
    axes.set_xlabel(columns[0].rsplit(" ", 1)[0], fontsize=9)
    axes.set_ylabel(rows[0].rsplit(" ", 1)[0], fontsize=9)
    drawing.caption(axes, "share of each, in percent")


def _on_image(trace: AttentionTrace, heat: Tensor) -> Array:
    size, values = (trace.height, trace.width), array(heat)
    if values.shape != size:
        raise ValueError(f"heat: expected the image's size {size}, got {values.shape}")
    if not (values >= 0).all() or not np.isfinite(values).all():
        raise ValueError(f"heat: expected finite values of at least 0, got {values.min()} to {values.max()}")
    return values


def natural_end(relative: Array) -> float:
    """The end of a scale: the highest value, unless a lone peak would leave all else dark.

    At most three times what all but a thousandth of the pixels stay below, and at least LEAST.
    """
    return max(min(float(relative.max()), 3 * float(np.quantile(relative, 0.999))), LEAST)


def overlay(axes: Any, relative: Array, norm: Any) -> None:
    """A map over the axes' image, the more opaque the higher."""
    height, width = relative.shape
    axes.imshow(relative, cmap=heat_colours(), norm=norm, extent=(0, width, height, 0), zorder=2)


def heat_colours() -> ListedColormap:
    """From the image itself, whose colours stay where a map is low, through violet to bright yellow."""
    rising = np.linspace(0, 1, 256)
    colours = colormaps["inferno"](0.25 + 0.75 * rising)
    colours[:, 3] = 0.92 * np.sin(np.pi / 2 * rising) ** 1.5
    return ListedColormap(colours)
