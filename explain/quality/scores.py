"""From the scores of single detections to what can be said of a method: means with intervals, and what beats what."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...common.files import atomic_file
from .measures import Array, Curve

RESAMPLES = 2000
_COLUMNS = 3


@dataclass(frozen=True)
class Measure:
    """What a column of scores is."""

    title: str
    better: int
    """1 where high is good, -1 where low is, 0 where neither is by itself."""

    @property
    def sign(self) -> str:
        return {1: " (high)", -1: " (low)", 0: ""}[self.better]


MEASURES = {
    "deletion": Measure("deletion", -1),
    "insertion": Measure("insertion", 1),
    "pointing": Measure("pointing", 1),
    "energy": Measure("energy in box", 1),
    "elsewhere": Measure("energy in others", -1),
    "compactness": Measure("compactness", 0),
    "randomised": Measure("same when randomised", 0),
}


class Interval(NamedTuple):
    """A mean and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        span = "" if np.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return "-" if np.isnan(self.mean) else f"{self.mean:.3f}{span}"


@dataclass(frozen=True)
class Scores:
    """A measure for every detection (D of them) and every method or baseline."""

    names: tuple[str, ...]
    """Of the columns: methods, then baselines."""
    baselines: tuple[str, ...]
    values: dict[str, Array]
    """By measure, (D, columns); NaN where it does not apply."""
    images: Array
    """(D,) the image of each detection: those of one image are not independent, and are drawn together."""
    seed: int = 0

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in self.baselines)

    def of(self, keep: Array) -> "Scores":
        """Of the detections (D,) bool alone."""
        values = {measure: values[keep] for measure, values in self.values.items()}
        return Scores(self.names, self.baselines, values, self.images[keep], self.seed)

    def interval(self, measure: str, name: str) -> Interval:
        """The mean over detections."""
        return bootstrap(self.values[measure][:, self.names.index(name)], self.images, self.seed)

    def difference(self, measure: str, name: str, other: str) -> Interval:
        """The mean of what one gives more than the other for the same detection."""
        values = self.values[measure]
        paired = values[:, self.names.index(name)] - values[:, self.names.index(other)]
        return bootstrap(paired, self.images, self.seed)

    def beats(self, measure: str, name: str, other: str) -> bool:
        """Is it better, with 0 outside the interval of the paired difference?"""
        gap, better = self.difference(measure, name, other), MEASURES[measure].better
        return bool(gap.low > 0) if better > 0 else bool(better < 0 and gap.high < 0)


def bootstrap(values: Array, groups: Array, seed: int = 0) -> Interval:
    """The mean of `values` (D,), and its interval when whole groups (D,) are drawn with replacement; NaN are left out.

    Percentiles 2.5 and 97.5 of RESAMPLES means. Of one group alone there is no interval, but NaN.
    """
    there = ~np.isnan(values)
    values, groups = values[there], groups[there]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    mean = float(values.mean())
    if len(sums) == 1:
        return Interval(mean, np.nan, np.nan)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def table(scores: Scores) -> list[str]:
    """A line for every method, then every baseline; a column for every measure."""
    measures = [name for name in MEASURES if not np.isnan(scores.values[name]).all()]
    head = ["", *(MEASURES[name].title + MEASURES[name].sign for name in measures)]
    rows = [head, *([name, *(str(scores.interval(m, name)) for m in measures)] for name in scores.names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def verdict(scores: Scores) -> list[str]:
    """What each method beats, measure by measure; and, in a sentence, what beats all baselines."""
    if len(np.unique(scores.images)) == 1:
        return ["of one image alone nothing can be said of what beats what"]
    scored = [name for name, measure in MEASURES.items() if measure.better]
    beaten = {
        (method, measure): [other for other in scores.baselines if scores.beats(measure, method, other)]
        for method in scores.methods
        for measure in scored
    }
    lines = []
    for method in scores.methods:
        parts = [
            f"{MEASURES[measure].title}: {', '.join(beaten[method, measure]) or 'no baseline'}" for measure in scored
        ]
        lines.append(f"{method} beats, by {'; '.join(parts)}")
    winners = []
    for measure in scored:
        best = [method for method in scores.methods if len(beaten[method, measure]) == len(scores.baselines)]
        winners.append(f"{MEASURES[measure].title}: {', '.join(best) or 'none'}")
    return [*lines, f"better than every baseline (95% interval of the paired difference), by {'; '.join(winners)}"]


def save_chart(path: Path, scores: Scores, curves: dict[str, list[Curve]], title: str) -> None:
    """Bars with intervals for every measure, and the curves under "deletion" and "insertion" of every name; a PNG."""
    import matplotlib.figure

    measures = [name for name in MEASURES if not np.isnan(scores.values[name]).all()]
    colours = _colours(scores)
    rows = -(-(len(measures) + len(curves)) // _COLUMNS)
    height = 0.7 + 0.24 * len(scores.names)
    figure = matplotlib.figure.Figure(figsize=(3.8 * _COLUMNS, rows * height + 0.8), layout="constrained")
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes, measure in zip(panels, measures, strict=False):
        _bars(axes, scores, measure, colours)
    last = panels[len(measures) :]
    for axes, (kind, lines) in zip(last, curves.items(), strict=False):
        for name, curve in zip(scores.names, lines, strict=True):
            style = "--" if name in scores.baselines else "-"
            axes.plot(curve.shares, curve.scores, style, color=colours[name], label=name, linewidth=1.4)
        axes.set_title(f"{kind}: score by share of pixels", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
    for axes in last[len(curves) :]:
        axes.set_visible(False)
    figure.legend(*last[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=130)
    with atomic_file(path) as file:
        file.write(encoded.getvalue())


def _colours(scores: Scores) -> dict[str, Any]:
    """Methods in colours seen apart by most (Okabe and Ito), baselines in greys."""
    bright: Sequence[str] = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    greys: Sequence[str] = ("0.75", "0.55", "0.35", "0.15")
    methods = {name: bright[i % len(bright)] for i, name in enumerate(scores.methods)}
    return methods | {name: greys[i % len(greys)] for i, name in enumerate(scores.baselines)}


def _bars(axes: Any, scores: Scores, measure: str, colours: dict[str, Any]) -> None:
    intervals = {name: scores.interval(measure, name) for name in reversed(scores.names)}
    shown = {name: interval for name, interval in intervals.items() if not np.isnan(interval.mean)}
    for place, (name, (mean, low, high)) in enumerate(shown.items()):
        axes.barh(place, mean, color=colours[name])
        axes.plot([low, high], [place, place], color="black", linewidth=1)
    axes.set_yticks(range(len(shown)), list(shown), fontsize=8)
    meaning = MEASURES[measure]
    axes.set_title(meaning.title + {1: ": high is good", -1: ": low is good", 0: ""}[meaning.better], fontsize=10)
    axes.grid(alpha=0.25, axis="x")
    axes.tick_params(axis="x", labelsize=8)
