"""From the scores of single detections to what can be said of a method: means with intervals, and what beats what."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..workspace import aligned, save_figure
from .measures import Array

RESAMPLES = 2000
_COLUMNS = 3
# seen apart by most (Okabe and Ito)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREYS = ("0.75", "0.55", "0.35", "0.15")


class Measure(NamedTuple):
    """What a column of scores is."""

    title: str
    better: int
    """1 where high is good, -1 where low is, 0 where neither is by itself."""


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


def plain(value: float) -> float | None:
    """A number for JSON; None for NaN, which does not apply."""
    return None if np.isnan(value) else round(float(value), 6)


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

    @property
    def measures(self) -> list[str]:
        """Those that apply to some detection."""
        return [name for name in MEASURES if not np.isnan(self.values[name]).all()]

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

    def summary(self) -> dict[str, Any]:
        """All means and paired differences with their intervals, for JSON."""
        scored = [name for name, measure in MEASURES.items() if measure.better]
        return {
            "detections": len(self.images),
            "intervals": {
                name: {measure: [*map(plain, self.interval(measure, name))] for measure in MEASURES}
                for name in self.names
            },
            "differences": {
                name: {
                    other: {measure: [*map(plain, self.difference(measure, name, other))] for measure in scored}
                    for other in self.baselines
                }
                for name in self.methods
            },
        }


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
    signs = {1: " (high)", -1: " (low)", 0: ""}
    head = ["", *(MEASURES[name].title + signs[MEASURES[name].better] for name in scores.measures)]
    return aligned([head, *([one, *(str(scores.interval(m, one)) for m in scores.measures)] for one in scores.names)])


def verdict(scores: Scores) -> list[str]:
    """What each method beats, measure by measure; and, in a sentence, what beats all baselines."""
    if len(np.unique(scores.images)) == 1:
        return ["of one image alone nothing can be said of what beats what"]
    beaten: dict[str, list[str]] = {method: [] for method in scores.methods}
    winners = []
    for name, (title, better) in MEASURES.items():
        if not better:
            continue
        best = []
        for method, told in beaten.items():
            others = [other for other in scores.baselines if scores.beats(name, method, other)]
            told.append(f"{title}: {', '.join(others) or 'no baseline'}")
            best += [method] if len(others) == len(scores.baselines) else []
        winners.append(f"{title}: {', '.join(best) or 'none'}")
    return [
        *(f"{method} beats, by {'; '.join(told)}" for method, told in beaten.items()),
        f"better than every baseline (95% interval of the paired difference), by {'; '.join(winners)}",
    ]


def save_chart(path: Path, scores: Scores, shares: Sequence[float], curves: dict[str, Array], title: str) -> None:
    """Writes a PNG: bars with intervals for every measure, and curves (columns, shares) by "deletion", "insertion"."""
    import matplotlib.figure

    # methods in colours, baselines in greys
    colours = {
        name: shades[place % len(shades)]
        for names, shades in ((scores.methods, _COLOURS), (scores.baselines, _GREYS))
        for place, name in enumerate(names)
    }
    count = len(scores.measures) + len(curves)
    rows = -(-count // _COLUMNS)
    height = 0.7 + 0.24 * len(scores.names)
    figure = matplotlib.figure.Figure(figsize=(3.8 * _COLUMNS, rows * height + 0.8), layout="constrained")
    panels = [figure.add_subplot(rows, _COLUMNS, place) for place in range(1, count + 1)]
    for axes, name in zip(panels, scores.measures, strict=False):
        intervals = {one: scores.interval(name, one) for one in reversed(scores.names)}
        shown = {one: interval for one, interval in intervals.items() if not np.isnan(interval.mean)}
        for place, (one, (mean, low, high)) in enumerate(shown.items()):
            axes.barh(place, mean, color=colours[one])
            axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.set_yticks(range(len(shown)), list(shown), fontsize=8)
        meaning = {1: ": high is good", -1: ": low is good", 0: ""}[MEASURES[name].better]
        axes.set_title(MEASURES[name].title + meaning, fontsize=10)
        axes.grid(alpha=0.25, axis="x")
        axes.tick_params(axis="x", labelsize=8)
    last = panels[len(scores.measures) :]
    for axes, (kind, lines) in zip(last, curves.items(), strict=True):
        for name, line in zip(scores.names, lines, strict=True):
            style = "--" if name in scores.baselines else "-"
            axes.plot(shares, line, style, color=colours[name], label=name, linewidth=1.4)
        axes.set_title(f"{kind}: score by share of pixels", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
    figure.legend(*last[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)
