"""The curves of training runs, side by side in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..visual.charts import COLOURS, as_written, dress, new_figure, save_figure
from .history import Array, Axis, History, check_curves, grouped

_STYLES = ("-", "--", ":", "-.")
_STYLE_SIGNS = ("──", "- -", "···", "-·-")
_COLUMNS = 3
# curves so short get a mark at each point: a single one would not be seen at all
_MARKED = 40
# of a logarithmic axis, at most
_DECADES = 3


@dataclass(frozen=True)
class Panel:
    """One pair of axes: several curves of a run differ in their line's style, a curve of several runs in colour."""

    title: str
    curves: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """What the curves are, where there are several."""
    scale: Literal["linear", "log"] = "linear"
    from_zero: bool = False


_PANELS: tuple[Panel, ...] = (
    Panel("loss", ("loss",)),
    Panel("classification loss, last layer", ("loss_ce",)),
    Panel("L1 loss of boxes, last layer", ("loss_bbox",)),
    Panel("GIoU loss, last layer", ("loss_giou",)),
    Panel("AP", ("AP",), from_zero=True),
    Panel("AP50", ("AP50",), from_zero=True),
    Panel("AP75", ("AP75",), from_zero=True),
    Panel("AP by size of objects", ("AP_L", "AP_M", "AP_S"), ("large", "medium", "small"), from_zero=True),
    Panel("learning rate", ("lr_main", "lr_backbone", "lr_offsets"), ("main", "backbone", "offsets"), "log"),
    Panel("images a second", ("images_per_s",), from_zero=True),
    Panel("norm of the gradient", ("grad_norm",), scale="log"),
    Panel("seconds a step", ("step_s", "data_s"), ("computing", "waiting for data"), from_zero=True),
)


def save_curves(
    histories: Sequence[History],
    out: Path,
    terms: Sequence[str] | None = None,
    *,
    axis: Axis = "step",
    smooth: int | None = None,
    group: Literal["seed"] | None = None,
) -> None:
    """Draws the curves of runs to a png, svg or pdf; arguments and errors are those of `figure_of`."""
    save_figure(figure_of(histories, terms, axis=axis, smooth=smooth, group=group), out)


def figure_of(
    histories: Sequence[History],
    terms: Sequence[str] | None = None,
    *,
    axis: Axis = "step",
    smooth: int | None = None,
    group: Literal["seed"] | None = None,
) -> Any:
    """A figure of matplotlib with the curves of runs, those named ``terms`` or the usual ones.

    Raises:
        ValueError: no run has a curve of that name.
    """
    check_curves(terms or (), histories)
    panels = list(_PANELS)
    if terms is not None:  # of each, the standard panel that shows it alone, or one for it
        alone = {panel.curves: panel for panel in _PANELS}
        panels = [
            alone.get((name,), Panel(name, (name,), scale="log" if name.startswith("lr_") else "linear"))
            for name in terms
        ]
    return draw(grouped(histories, group), panels, axis, smooth)


def draw(groups: Sequence[Sequence[History]], panels: Sequence[Panel], axis: Axis, smooth: int | None) -> Any:
    """A figure: a colour for each group of runs, a panel for each of ``panels`` that any run has something of."""
    from matplotlib.lines import Line2D

    known = {name for group in groups for one in group for name in one.curves() if len(one.curve(name)[0])}
    # whatever no step has logged comes of evaluations
    logged = {name for group in groups for one in group for name in one.steps[-1]}
    panels = [panel for panel in panels if known & set(panel.curves)]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(max(5.0, 3.8 * columns), 2.5 * rows + 0.6)
    flat = figure.subplots(rows, columns, squeeze=False, sharex="all").flat
    for axes in flat[len(panels) :]:
        axes.set_visible(False)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(groups))]
    for place, (axes, panel) in enumerate(zip(flat, panels, strict=False)):
        for group, colour in zip(groups, colours, strict=True):
            for name, style in zip(panel.curves, _STYLES, strict=False):
                _draw_group(axes, group, name, colour, axis, smooth, style if len(panel.curves) > 1 else None)
        _finish(axes, panel, known)
        if place >= len(panels) - columns:  # the last of its column
            axes.set_xlabel(axis)

    handles = [
        Line2D([], [], color=colour, label=as_written(_label(group)))
        for group, colour in zip(groups, colours, strict=True)
    ]
    if any(f"val_{name}" in known or name not in logged for panel in panels for name in panel.curves):
        if smooth != 1 and any(len(group) == 1 for group in groups):
            handles.append(Line2D([], [], color="0.4", alpha=0.35, linewidth=0.7, label="as logged"))
        handles.append(Line2D([], [], color="0.4", label="training" if smooth == 1 else "training, smoothed"))
        handles.append(Line2D([], [], color="0.4", linestyle="--", marker=".", label="validation"))
    # above all panels, where it covers nothing
    longest = max(len(str(handle.get_label())) for handle in handles)
    beside = max(1, min(len(handles), 40 * columns // (longest + 6)))
    figure.legend(handles=handles, loc="outside upper center", ncols=beside, frameon=False)
    return figure


def _label(group: Sequence[History]) -> str:
    return group[0].name if len(group) == 1 else f"{group[0].name}: mean and range of {len(group)} seeds"


def _draw_group(
    axes: Any, group: Sequence[History], name: str, colour: str, axis: Axis, smooth: int | None, style: str | None
) -> None:
    """A curve of training or evaluations, and the validation's of that name; of several runs means in their range.

    ``style`` tells the curves of one panel apart; where there is but one, evaluations are dashed.
    """
    curves = [curve for history in group if len((curve := history.curve(name, axis))[0])]
    rate, trained = name.startswith("lr_"), any(name in history.steps[-1] for history in group)
    if trained and not rate:
        if len(group) == 1 and smooth != 1:
            for x, y in curves:
                axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.7)
        curves = [(x, running_mean(y, smooth or max(1, len(y) // 20))) for x, y in curves]
    evaluated = not trained and not rate
    own = style or ("--" if evaluated else "-")
    validation = [curve for history in group if len((curve := history.curve(f"val_{name}", axis))[0])]
    for drawn, line, marked in ((curves, own, evaluated), (validation, "--", True)):
        if not drawn:
            continue
        (x, middle), *others = drawn
        if others:  # their mean, in a band from the least to the most, where all have points
            x = x[(x >= max(one[0][0] for one in drawn)) & (x <= min(one[0][-1] for one in drawn))]
            values = np.stack([np.interp(x, *one) for one in drawn])
            middle = values.mean(0)
            axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        few = len(x) == 1 or (marked and len(x) <= _MARKED)
        axes.plot(x, middle, line, color=colour, linewidth=1.4, marker="." if few else None, markersize=5)


def _finish(axes: Any, panel: Panel, known: set[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    title = as_written(panel.title)
    if panel.labels:  # in the title, where a legend covers no line
        shown = zip(panel.curves, panel.labels, _STYLE_SIGNS, strict=False)
        title += "\n" + "   ".join(f"{sign} {label}" for name, label, sign in shown if name in known)
    dress(axes, title)
    axes.tick_params(labelbottom=True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=2))
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    values = np.concatenate([line.get_ydata() for line in axes.lines] or [np.ones(1)])
    values = values[values > 0]
    if panel.scale == "linear" or len(values) == 0:
        return
    # the uppermost decades alone: a cosine ends at nothing
    axes.set_yscale("log")
    span = float(np.log10(values.max() / values.min()))
    if span > _DECADES:
        axes.set_ylim(values.max() / 10**_DECADES, values.max() * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if span > 1.5 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def running_mean(values: Array, width: int) -> Array:
    """The mean of the values at most half of ``width`` away from each; of fewer at both ends."""
    low = np.maximum(np.arange(len(values)) - width // 2, 0)
    high = np.minimum(np.arange(len(values)) + width // 2 + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[high] - sums[low]) / (high - low)
