"""Pictures of what switching heads off does: the matrix of layers and heads, curves, and screening against truth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..figures.drawing import in_words
from .ablation import Head, Measured, Step
from .resampling import Change

# seen apart by most who do not see all colours (Okabe and Ito)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_RANDOM = "#8a8a8a"


def _axes(width: float, height: float, title: str, across: str = "", up: str = "") -> tuple[Any, Any]:
    """A figure, and its axes with a grid and their titles."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    if across:
        axes.grid(alpha=0.25)
    return figure, axes


def matrix_picture(changes: Mapping[Head, Change], title: str) -> Any:
    """Layers by heads, the change of AP in hundredths in each cell, its 95% interval below; red where AP falls.

    The colour scale is centred at 0 and as wide as the largest change; a bold number with a star stands where the
    interval leaves out 0.
    """
    sites = list(dict.fromkeys(site for site, _ in changes))
    heads = 1 + max(head for _, head in changes)
    values = np.full((len(sites), heads), np.nan)
    for (site, head), change in changes.items():
        values[sites.index(site), head] = np.nan if change.change is None else 100 * change.change
    title += "\n* the 95% interval does not contain 0"
    figure, axes = _axes(max(5.2, 2.2 + 0.95 * heads), max(2.4, 1.5 + 0.62 * len(sites)), title)
    widest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = axes.imshow(values, cmap="RdBu", vmin=-widest, vmax=widest, aspect="auto")
    for (site, head), change in changes.items():
        row, value = sites.index(site), values[sites.index(site), head]
        if np.isnan(value):
            continue
        # white on the dark ends of the scale
        ink = "white" if abs(value) > 0.6 * widest else "black"
        star = "*" if change.sure else ""
        place: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
        weight = "bold" if change.sure else "normal"
        axes.text(head, row - 0.13, f"{value:+.1f}{star}", fontsize=10, fontweight=weight, **place)
        if change.low is not None and change.high is not None:
            span = f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
            axes.text(head, row + 0.22, span, fontsize=6.5, **place)
    axes.set_xticks(range(heads), [f"head {head}" for head in range(heads)], fontsize=8)
    axes.set_yticks(range(len(sites)), [in_words(site) for site in sites], fontsize=8)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("change of AP, in hundredths", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def curves_picture(curves: Mapping[str, Sequence[tuple[int, Measured]]], title: str) -> Any:
    """AP over how many heads are off, a line for each order; random orders as their mean and range."""
    figure, axes = _axes(6.4, 4.2, title, "heads off", "AP")
    counts = [count for count, _ in next(iter(curves.values()))]
    aps = {name: [one.ap for _, one in points] for name, points in curves.items()}
    drawn = np.array([values for name, values in aps.items() if name.startswith("random ")])
    if len(drawn):
        axes.fill_between(counts, drawn.min(0), drawn.max(0), color=_RANDOM, alpha=0.25, linewidth=0)
        label = f"random: mean and range of {len(drawn)}"
        axes.plot(counts, drawn.mean(0), color=_RANDOM, marker=".", label=label)
    named = [name for name in aps if not name.startswith("random ")]
    for place, name in enumerate(named):  # in pairs: an order and its reverse
        kind = name.removesuffix(", reversed")
        style, order = ("--", "least first") if name != kind else ("-", "most important first")
        axes.plot(counts, aps[name], style, color=_COLOURS[place // 2], marker=".", label=f"by {kind}, {order}")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    return figure


def screening_picture(importance: Mapping[Head, float], truth: Mapping[Head, Change], title: str, what: str) -> Any:
    """Each head's first-order importance against the AP it costs to switch it off, with its interval."""
    import matplotlib

    across = f"screening: mean |derivative| of the {what} by a factor on the head's weights"
    figure, axes = _axes(6.0, 4.4, title, across, "AP lost without the head, in hundredths")
    sites = list(dict.fromkeys(site for site, _ in importance))
    for site, shade in zip(sites, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(sites))), strict=True):
        heads = [head for head in importance if head[0] == site and truth[head].change is not None]
        x = [importance[head] for head in heads]
        y = np.array([-100 * (truth[head].change or 0.0) for head in heads])
        low = np.array([-100 * (truth[head].high or 0.0) for head in heads])
        high = np.array([-100 * (truth[head].low or 0.0) for head in heads])
        # a percentile interval need not hold the estimate
        bars = np.clip([y - low, high - y], 0, None)
        axes.errorbar(x, y, bars, fmt="o", color=shade, markersize=5, linewidth=0.8, alpha=0.9, label=in_words(site))
        for head, across, up in zip(heads, x, y, strict=True):
            axes.annotate(str(head[1]), (across, up), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.legend(fontsize=7, frameon=False, title="head numbers beside the points", title_fontsize=7)
    return figure


def pruning_picture(steps: Sequence[Step], title: str) -> Any:
    """AP after each head that greedy pruning switched off, beginning with none, with the interval of its change."""
    names = ["none", *(f"{step.head[0]}:h{step.head[1]}" for step in steps)]
    figure, axes = _axes(max(5.0, 2.0 + 0.42 * len(names)), 4.0, title, "switched off, one after the other", "AP")
    changes = [step.measured.changes["AP"] for step in steps]
    base = changes[0].before or 0.0
    low, high, aps = (
        [base, *(base + (getattr(change, part) or 0.0) for change in changes)] for part in ("low", "high", "change")
    )
    x = np.arange(len(names))
    axes.fill_between(x, low, high, color=_COLOURS[0], alpha=0.2, linewidth=0, label="95% interval of the change")
    axes.plot(x, aps, color=_COLOURS[0], marker=".")
    axes.axhline(base, color="0.6", linewidth=0.8, label="all heads")
    axes.set_xticks(x, names, rotation=60, ha="right", fontsize=7)
    axes.legend(fontsize=8, frameon=False)
    return figure
