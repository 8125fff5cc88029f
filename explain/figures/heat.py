"""Heat maps over the image."""

from typing import Any

import numpy as np
from torch import Tensor

from ..core.trace import AttentionTrace, QueryPrediction
from .drawing import Array, Drawing, array, canvas, colour_bar, colour_of, draw_box, headline, root_scale, told

# end of a colour scale at the least, times the mean: what is nearly uniform does not look as if it were not
LEAST = 8.0
UNIT = "how many times the mean of the image (square-root scale)"


def draw_heat(
    trace: AttentionTrace,
    heat: Tensor,
    prediction: QueryPrediction | None = None,
    title: str = "",
    *,
    most: float | None = None,
    image: str = "",
) -> Drawing:
    """A map over the image, in units of its mean: 1 where it is as high as a uniform one, on a square-root scale.

    Args:
        trace: whose image.
        heat: (H, W), not negative, on the image's pixels.
        seen: whose box is drawn and named.
        title: what the map is, such as "relevance, all layers".
        most: the end of the colour scale, in that unit, to compare pictures by; when None that of
            `natural_end`.
        image: the image's name, for the title.

    Returns:
        The drawing; numbers ``heat`` (H, W) as given, its ``mean``, ``most`` and, with `seen`, ``box``.

    Raises:
        ValueError: the map is of another size than the image, negative, or not finite.
    """
    values = on_image(trace, heat)
    relative, mean, end = scaled(values, most)
    figure, [[axes]] = canvas(trace)
    norm = root_scale(end)
    overlay(axes, relative, norm)
    if prediction is not None:
        draw_box(axes, prediction.box, colour_of(prediction.label), name=f"{prediction.name} {prediction.score:.2f}")
    colour_bar(figure, axes, norm, heat_colours(), UNIT, beyond=bool(relative.max() > end))
    headline(figure, told(prediction, image), title if mean else f"{title}: zero everywhere".lstrip(": "))
    numbers = {"heat": values, "mean": np.array(mean), "most": np.array(end)}
    return Drawing(figure, numbers if prediction is None else numbers | {"box": array(prediction.box)})


def on_image(trace: AttentionTrace, heat: Tensor) -> Array:
    """A map as an array. Raises ValueError where it is of another size than the image, negative, or not finite."""
    size, values = tuple(trace.image.shape[-2:]), array(heat)
    if values.shape != size:
        raise ValueError(f"heat: expected the image's size {size}, got {values.shape}")
    if not (values >= 0).all() or not np.isfinite(values).all():
        raise ValueError(f"heat: expected finite values of at least 0, got {values.min()} to {values.max()}")
    return values


def scaled(values: Array, most: float | None) -> tuple[Array, float, float]:
    """Values in units of their mean; that mean; the end of their scale."""
    mean = float(values.mean())
    relative = values / mean if mean else values
    return relative, mean, natural_end(relative) if most is None else most


def natural_end(relative: Array) -> float:
    """The end of a scale: the highest value, unless a lone peak would leave all else dark.

    At most three times what all but a thousandth of the pixels stay below, and at least LEAST.
    """
    return max(min(float(relative.max()), 3 * float(np.quantile(relative, 0.999))), LEAST)


def overlay(axes: Any, relative: Array, norm: Any) -> None:
    """A map over the axes' image, the more opaque the higher."""
    height, width = relative.shape
    axes.imshow(relative, cmap=heat_colours(), norm=norm, extent=(0, width, height, 0), zorder=2)


def heat_colours() -> Any:
    """From the image itself, whose colours stay where a map is low, through violet to bright yellow."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    rising = np.linspace(0, 1, 256)
    colours = colormaps["inferno"](0.25 + 0.75 * rising)
    colours[:, 3] = 0.92 * np.sin(np.pi / 2 * rising) ** 1.5
    return ListedColormap(colours)
