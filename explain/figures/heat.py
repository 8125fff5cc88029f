"""Heat maps over the image: one, or several in a grid on one colour scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from torch import Tensor

from ..core.trace import AttentionTrace, QueryPrediction
from .drawing import Array, Drawing, array, canvas, colour_bar, draw_detection, headline, root_scale, told

# end of a colour scale at the least, times the mean: what is nearly uniform does not look as if it were not
LEAST = 8.0


def draw_heat(
    trace: AttentionTrace,
    heat: Tensor,
    prediction: QueryPrediction | None = None,
    title: str = "",
    *,
    most: float | None = None,
    image: str = "",
) -> Drawing:
    """One map (H, W) over the image, as `draw_heat_grid` draws several; without ``rows`` and ``columns``."""
    drawing = draw_heat_grid(trace, [[heat]], [""], [""], prediction, title, most=most, image=image)
    numbers = {name: values for name, values in drawing.numbers.items() if name not in ("rows", "columns")}
    return Drawing(drawing.figure, numbers | {"heat": numbers["heat"][0, 0]})


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
    """Maps over the image in units of their mean: 1 where they are as high as a uniform one, on a square-root scale.

    Args:
        trace: whose image.
        heats: by row and column, (H, W) each, not negative, on the image's pixels.
        rows, columns: their titles.
        prediction: whose box is drawn, and named where there is one map alone.
        title: what the maps are, such as "relevance, all layers".
        most: the end of the colour scale, in that unit, to compare pictures by; when None that of `natural_end`.
        image: the image's name, for the title.

    Returns:
        The drawing; numbers ``heat`` (rows, columns, H, W), ``rows``, ``columns``, ``mean``, ``most`` and, with
        `prediction`, ``box``.

    Raises:
        ValueError: a map is of another size than the image, negative, or not finite; maps and titles differ in number.
    """
    if not rows or not columns or [len(line) for line in heats] != [len(columns)] * len(rows):
        counts = ", ".join(str(len(line)) for line in heats)
        raise ValueError(f"heats: expected {len(rows)} rows of {len(columns)} maps, got rows of {counts or 'none'}")
    values = np.stack([np.stack([_on_image(trace, heat) for heat in line]) for line in heats])
    mean = float(values.mean())
    relative = values / mean if mean else values
    end = natural_end(relative) if most is None else most
    alone, norm = len(rows) * len(columns) == 1, root_scale(end)
    figure, axes = canvas(trace, rows, columns)
    for one, heat in zip(axes.flat, relative.reshape(-1, *relative.shape[2:]), strict=True):
        overlay(one, heat, norm)
        if prediction is not None:
            draw_detection(one, prediction, named=alone, width=1.8 if alone else 1.0)
    unit = f"how many times the mean of {'the image' if alone else 'all pictures'} (square-root scale)"
    colour_bar(figure, axes, norm, heat_colours(), unit, beyond=bool(relative.max() > end))
    headline(figure, told(prediction, image), title if mean else f"{title}: zero everywhere".lstrip(": "))
    numbers = {"heat": values, "rows": np.array(list(rows)), "columns": np.array(list(columns))}
    numbers |= {"mean": np.array(mean), "most": np.array(end)}
    return Drawing(figure, numbers if prediction is None else numbers | {"box": array(prediction.box)})


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
