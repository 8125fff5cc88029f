"""What every picture of attention shares: the grid of images, boxes, keys, colour scales, titles, and the numbers."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from ...common.files import atomic_file
from ...train.visual.boxes import class_colour
from ..core.trace import AttentionTrace, QueryPrediction
from .box_labels import BoxLabels

Array = np.ndarray

SUFFIXES = (".png", ".svg", ".pdf")
# inches: the longer side of an image alone, of one of two, and of one of many; and the most of a whole grid
ALONE, BESIDE, SMALL, WHOLE = 6.4, 3.9, 2.1, 17.0
# of the picture beyond the image that may be shown for points outside it
_OUTSIDE = 0.15
# points of 1/72 inch, still readable where a page shows the picture 800 pixels wide
_TEXT, _TITLE = 9.5, 11.5
# of levels, the finest first
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Drawing:
    """A picture, and the numbers drawn in it."""

    figure: Any
    """A matplotlib Figure."""
    numbers: dict[str, Array]
    """Arrays by name; pixels are those of the image as displayed."""

    def save(self, path: Path, dpi: int = 150) -> list[Path]:
        """Writes the picture, by its suffix png, svg or pdf, and beside it the numbers, npz; returns both paths.

        Raises ValueError for another suffix.
        """
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"picture: expected a name that ends in {', '.join(SUFFIXES)}, got {path}")
        beside = path.with_suffix(".npz")
        with atomic_file(path) as out:
            self.figure.savefig(out, format=path.suffix.lower()[1:], dpi=dpi, bbox_inches="tight", pad_inches=0.08)
        with atomic_file(beside) as out:
            np.savez_compressed(out, **self.numbers)  # type: ignore[arg-type]
        return [path, beside]


def array(values: Tensor | Sequence[float]) -> Array:
    """On the CPU, of any device and graph."""
    return torch.as_tensor(values).detach().cpu().numpy()


def numbers_of(predictions: Sequence[QueryPrediction]) -> dict[str, Array]:
    """``queries``, ``labels``, ``scores`` (N,) and ``boxes`` (N, 4)."""
    return {
        "queries": np.array([one.query for one in predictions], int),
        "labels": np.array([one.label for one in predictions], int),
        "scores": np.array([one.score for one in predictions], float),
        "boxes": np.array([one.box for one in predictions], float).reshape(-1, 4),
    }


def canvas(
    trace: AttentionTrace,
    rows: int | Sequence[str] = 1,
    columns: int | Sequence[str] = 1,
    *,
    largest: float | None = None,
    window: Sequence[float] | None = None,
) -> tuple[Any, Array]:
    """A figure and its axes (rows, columns), each with the image, in its own colours and proportions.

    Rows and columns are how many, or their titles. An axis counts pixels of the image: its upper left corner is at 0,
    0, a pixel's centre at a half. `largest` is an image's longer side in inches, less where the whole would be too
    large. `window` is x0, y0, x1, y1 of the part of the image that every axis shows; all of it when None.
    """
    sides, tops = ([""] * one if isinstance(one, int) else list(one) for one in (rows, columns))
    high, wide = len(sides), len(tops)
    x0, y0, x1, y1 = (0, 0, trace.width, trace.height) if window is None else window
    height, width = y1 - y0, x1 - x0
    if largest is None:
        largest = ALONE if high * wide == 1 else max(SMALL, min(1.2 * ALONE / max(high, wide), 3.4))
    inches = min(largest / max(height, width), WHOLE / (wide * width), WHOLE / (high * height))
    # wider than is needed, so that the height binds and rows stand close; saving cuts off what is empty
    size = (wide * (width * inches + 0.1) + 3.2, high * (height * inches + 0.06) + 1.15)
    layout = ConstrainedLayoutEngine(compress=True, w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=size, layout=layout)
    axes = figure.subplots(high, wide, squeeze=False)
    pixels = array(trace.image).transpose(1, 2, 0)
    for place, one in enumerate(axes.flat):
        one.xaxis.set_visible(False)
        one.yaxis.set_visible(place % wide == 0)  # its label; laying out what is empty takes most of the time
        one.imshow(pixels, extent=(0, trace.width, trace.height, 0))
        one.set(xlim=(x0, x1), ylim=(y1, y0), xticks=[], yticks=[], facecolor="0.93")
        one.spines[:].set(color="0.6", linewidth=0.6)
    for one, title in zip(axes[:, 0], sides, strict=True):
        one.set_ylabel(title, fontsize=_TEXT)
    for one, title in zip(axes[0], tops, strict=True):
        caption(one, title)
    return figure, axes


def gallery(trace: AttentionTrace, count: int, *, window: Sequence[float] | None = None) -> tuple[Any, Array]:
    """A figure and its axes (count,), as `canvas` makes them: in one line up to three, then about as many as lines."""
    columns = count if count < 4 else max(2, math.ceil(count**0.5))
    figure, axes = canvas(trace, -(-count // columns), columns, window=window)
    for spare in axes.flat[count:]:
        spare.remove()
    return figure, axes.flat[:count]


def caption(axes: Any, text: str) -> None:
    """What stands above one image."""
    axes.set_title(text, fontsize=_TEXT, pad=4)


def headline(figure: Any, *parts: str) -> None:
    """The title of a figure, in lines that are no longer than the picture is wide."""
    letters = max(34, round(10.5 * (figure.get_size_inches()[0] - 2.6)))
    lines = [line for part in parts if part for line in textwrap.wrap(part, letters)]
    figure.suptitle("\n".join(lines), fontsize=_TITLE, linespacing=1.3)


def told(prediction: QueryPrediction | None, image: str = "") -> str:
    """A detection and the image that it is in; with the class that it is detected as, where another is explained."""
    named = ""
    if prediction is not None:
        query = prediction.known_as + f", detected as {prediction.detected_as}" * bool(prediction.detected_as)
        named = f"{prediction.text} ({query})"
    return ": ".join(part for part in (image, named) if part)


def in_words(site: str) -> str:
    """ "decoder layer 5, cross-attention" of decoder.5.cross."""
    stack, layer, kind = site.split(".")
    return f"{stack} layer {layer}, {kind}-attention"


def layer_in_words(site: str) -> str:
    """ "decoder layer 5" of decoder.5.cross."""
    return in_words(site).split(",")[0]


_COORDINATES = {"x": "horizontal position", "y": "vertical position", "w": "width", "h": "height"}


def target_in_words(target: str, prediction: QueryPrediction) -> str:
    """What is explained: "the score of WBC" of class, "the width of its box" of w."""
    named = _COORDINATES.get(target)
    return f"the {named} of its box" if named else f"the score of {prediction.name}"


def colour_of(label: int) -> tuple[float, ...]:
    """A class's, as in every picture of this package, red, green and blue up to 1."""
    return tuple(value / 255 for value in class_colour(label))


def outlined(width: float) -> list[Any]:
    """A dark line below a bright one: seen on any background."""
    return [Stroke(linewidth=width + 1.6, foreground="black", alpha=0.75), Normal()]


def mark(marker: str, label: str, colour: Any = "0.45", **rest: Any) -> Any:
    """An entry of a key."""
    if marker == "+":
        rest = {"markersize": 9, "markeredgewidth": 1.6} | rest
    return Line2D([], [], **{"marker": marker, "color": colour, "linestyle": "none", "label": label} | rest)


def level_marks(trace: AttentionTrace, levels: Sequence[int]) -> list[Any]:
    """What each level's marker means."""
    sizes = [(level, *trace.shapes[level]) for level in levels]
    return [mark(MARKERS[level % len(MARKERS)], f"level {level} ({h} x {w})") for level, h, w in sizes]


def show_key(figure: Any, handles: Sequence[Any]) -> None:
    """A key below the pictures."""
    columns = max(2, min(len(handles), int((figure.get_size_inches()[0] - 2) / 1.45)))
    where = "outside lower center"
    figure.legend(handles=handles, loc=where, ncols=columns, fontsize=_TEXT, frameon=False, columnspacing=1.4)


def draw_point(axes: Any, place: Array, marker: str, colour: Any, size: float) -> None:
    """One marker at x, y in pixels."""
    wide = {"markeredgewidth": 1.6, "path_effects": outlined(1.6)} if marker == "+" else {"markeredgecolor": "black"}
    axes.plot(*place, marker=marker, color=colour, markersize=size, linestyle="none", zorder=5, **wide)


def draw_box(
    axes: Any, box: Sequence[float], colour: Any, *, style: str = "-", width: float = 1.8, name: str = ""
) -> None:
    """A box, xyxy in pixels, and its name, which covers no other box's and stays inside the picture."""
    x0, y0, x1, y1 = box
    line: dict[str, Any] = {"edgecolor": colour, "linewidth": width, "linestyle": style}
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, path_effects=outlined(width), zorder=3, **line))
    if name:
        labels = next((one for one in axes.artists if isinstance(one, BoxLabels)), None)
        if labels is None:
            axes.add_artist(labels := BoxLabels())
        labels.add(box, name, colour)


def draw_detection(axes: Any, prediction: QueryPrediction, *, named: bool = True, width: float = 1.8) -> None:
    """The box of a detection, in the colour of its class."""
    draw_box(axes, prediction.box, colour_of(prediction.label), width=width, name=prediction.text if named else "")


def root_scale(most: float) -> Any:
    """From 0 to `most` by the square root, on which a hundredth is still told from nothing.

    Raises ValueError for an end that is not above 0.
    """
    if not 0 < most < np.inf:
        raise ValueError(f"most: expected a number above 0, the end of the colour scale, got {most:g}")
    return PowerNorm(0.5, 0, most)


def colour_bar(
    figure: Any, axes: Any, norm: Any, colours: Any, label: str, *, beyond: bool, left: bool = False
) -> None:
    """The scale beside the axes; `beyond` says that something drawn exceeds it."""
    extend, side = "max" if beyond else "neither", "left" if left else "right"
    drawn = ScalarMappable(norm, colours)
    bar = figure.colorbar(drawn, ax=axes, extend=extend, location=side, aspect=28, pad=0.015, shrink=0.9)
    # colours that let the image through do so here, too
    bar.ax.set_facecolor("0.9")
    ticks = root_ticks(norm.vmax)
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" if tick < 100 else f"{tick:,.0f}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=_TEXT - 0.5, length=2)
    bar.set_label(label, fontsize=_TEXT)


def root_ticks(most: float) -> list[float]:
    """0, the end, and round numbers between that are not too close on a square-root scale."""
    ticks, power = [most], np.floor(np.log10(most))
    for number in (step * 10.0 ** (power - down) for down in range(4) for step in (5, 2, 1)):
        near = ticks[-1] ** 0.5 - number**0.5
        if number < most and near >= 0.09 * most**0.5 and number**0.5 >= 0.07 * most**0.5:
            ticks.append(number)
    return [*ticks, 0.0]


def around(trace: AttentionTrace, places: Array, margin: float) -> tuple[float, float, float, float] | None:
    """A window x0, y0, x1, y1 about places (N, 2), of the image's proportions; None where it is most of the image.

    It is at least a sixth of the image wide; `margin`, on each side, is a part of what it shows.
    """
    size = np.array([trace.width, trace.height], float)
    inside = np.clip(places, -_OUTSIDE * size, (1 + _OUTSIDE) * size)
    low, high = inside.min(0), inside.max(0)
    share = max(1 / 6, float(((high - low) / size).max()) * (1 + 2 * margin))
    if share > 0.6:
        return None
    corner = (low + high) / 2 - share * size / 2
    corner = np.clip(corner, np.minimum(0, low), np.maximum((1 - share) * size, high - share * size))
    return (*corner.tolist(), *(corner + share * size).tolist())


def close_up(trace: AttentionTrace, places: Array, margin: float) -> tuple[float, float, float, float] | None:
    """A window x0, y0, x1, y1 within the image about places (N, 2); None where it would be most of the image.

    Its sides are from 3:4 to 4:3, where the image has room. `margin`, on each side, is a part of the longer side of
    what lies around the places.
    """
    size = np.array([trace.width, trace.height], float)
    inside = np.clip(places, 0, size)
    low, high = inside.min(0), inside.max(0)
    wanted = np.maximum(high - low + 2 * margin * (high - low).max(), size.max() / 8)
    wanted = np.minimum(np.maximum(wanted, 0.75 * wanted[::-1]), size)
    if (wanted / size).prod() > 0.6:
        return None
    corner = np.clip((low + high - wanted) / 2, 0, size - wanted)
    return (*corner.tolist(), *(corner + wanted).tolist())


def note(axes: Any, text: str) -> None:
    """A few words in the lower right corner of a picture, readable on any background."""
    style: dict[str, Any] = {"fontsize": _TEXT, "color": "white", "path_effects": outlined(1.0)}
    axes.text(0.98, 0.02, text, ha="right", va="bottom", transform=axes.transAxes, zorder=7, **style)


def show(axes: Any, trace: AttentionTrace, places: Array, window: Sequence[float] | None = None) -> int:
    """Shows a window x0, y0, x1, y1 alone; returns how many of the places (..., 2) lie outside it.

    Without one it is the image, and where more than a tenth of the places lie beyond it, some of what is there.
    """
    if window is None:
        size = np.array([trace.width, trace.height], float)
        outside = ((places < 0) | (places > size)).any(-1)  # NaN, where a level has fewer points, is not
        beyond = places.reshape(-1, 2) if outside.mean() > 0.1 else np.zeros((0, 2))
        every = np.concatenate([beyond, [0 * size, size]])
        low, high = np.nanmin(every, 0), np.nanmax(every, 0)
        low = np.maximum(-_OUTSIDE * size, low - 0.01 * size * (low < 0))
        high = np.minimum((1 + _OUTSIDE) * size, high + 0.01 * size * (high > size))
        window = (*low.tolist(), *high.tolist())
    x0, y0, x1, y1 = window
    axes.set(xlim=(x0, x1), ylim=(y1, y0))
    return int(((places < [x0, y0]) | (places > [x1, y1])).any(-1).sum())
