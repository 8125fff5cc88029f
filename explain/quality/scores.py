"""From the scores of single detections to what can be said of a method: means with intervals, and what beats what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...common.files import write_json
from ...train.visual.charts import COLOURS, dress, new_figure, save_figure
from ..options import MEASURE_GROUPS
from ..workspace import aligned
from .measures import Array

RESAMPLES = 2000
_COLUMNS = 3
_GREYS = ("0.75", "0.55", "0.35", "0.15")

Interval = list[float | None]
"""A mean, and the ends of its 95% bootstrap interval; None for what does not apply."""


class Measure(NamedTuple):
    """What a column of scores is."""

    title: str
    better: int
    """1 where high is good, -1 where low is, 0 where neither is by itself."""
    group: str
    """One of options.MEASURE_GROUPS."""


MEASURES = {
    "deletion": Measure("deletion", -1, "perturbation"),
    "insertion": Measure("insertion", 1, "perturbation"),
    "road": Measure("ROAD", -1, "perturbation"),
    "sensitivity_n": Measure("sensitivity-n", 1, "removal"),
    "infidelity": Measure("infidelity", -1, "removal"),
    "pointing": Measure("pointing", 1, "place"),
    "energy": Measure("energy in box", 1, "place"),
    "elsewhere": Measure("energy in others", -1, "place"),
    "rank": Measure("rank in box", 1, "place"),
    "rank_mask": Measure("rank in mask", 1, "place"),
    "compactness": Measure("compactness", 0, "place"),
    "randomised": Measure("same when randomised", 0, "sanity"),
    "smooth": Measure("same, smoothed", 0, "sanity"),
    "random_logit": Measure("same for another class", 0, "sanity"),
    "largest_change": Measure("largest change", 0, "noise"),
    "average_change": Measure("average change", 0, "noise"),
    "input_stability": Measure("change by input", 0, "noise"),
    "output_stability": Measure("change by output", 0, "noise"),
}
"""By name. What a map is under noise or with random weights is neither good nor bad by itself: a map that is always the
same is the stablest of all."""


def plain(value: float) -> float | None:
    """A number for JSON; None for NaN, which does not apply."""
    return None if np.isnan(value) else round(float(value), 6)


def bootstrap(values: Array, groups: Array, seed: int = 0) -> Interval:
    """The mean of `values` (D,), and its interval when whole groups (D,) are drawn with replacement; NaN are left out.

    Percentiles 2.5 and 97.5 of RESAMPLES means. Of one group alone there is no interval, but None.
    """
    there = ~np.isnan(values)
    values, groups = values[there], groups[there]
    if not len(values):
        return [None, None, None]
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    if len(sums) == 1:
        return [plain(values.mean()), None, None]
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    return [*map(plain, [values.mean(), *np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])])]


def summarise(rows: Sequence[Mapping[str, Any]], baselines: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Means over detections, ready for JSON.

    Args:
        rows: of each detection ``image_id``, and ``scores`` by method or baseline, by measure, None where it does not
            apply. Detections of one image are not independent, and are drawn together.
        baselines: which of the names are no methods.
        seed: of the resamples.

    Returns:
        ``detections`` and ``images``, how many; ``intervals`` by name and measure; ``differences`` by method, baseline
        and measure, of what the method gives more for the same detection.
    """
    images = np.array([row["image_id"] for row in rows])
    values = {
        name: {
            measure: np.array([row["scores"][name].get(measure) for row in rows], dtype=float) for measure in MEASURES
        }
        for name in rows[0]["scores"]
    }
    scored = [name for name, measure in MEASURES.items() if measure.better]
    return {
        "detections": len(rows),
        "images": len(np.unique(images)),
        "intervals": {
            name: {measure: bootstrap(one, images, seed) for measure, one in of_name.items()}
            for name, of_name in values.items()
        },
        "differences": {
            name: {
                other: {one: bootstrap(values[name][one] - values[other][one], images, seed) for one in scored}
                for other in baselines
            }
            for name in values
            if name not in baselines
        },
    }


def beats(summary: Mapping[str, Any], measure: str, name: str, other: str) -> bool:
    """Is a method better than a baseline, with 0 outside the interval of the paired difference?"""
    _, low, high = summary["differences"][name][other][measure]
    better = MEASURES[measure].better
    return low is not None and (low > 0 if better > 0 else better < 0 and high < 0)


def told(interval: Interval) -> str:
    """ "0.535 [0.52, 0.55]"."""
    mean, low, high = interval
    span = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return "-" if mean is None else f"{mean:.3f}{span}"


def _shown(summary: Mapping[str, Any]) -> list[str]:
    """The measures that apply to some detection."""
    intervals = summary["intervals"].values()
    return [name for name in MEASURES if any(one[name][0] is not None for one in intervals)]


def table(summary: Mapping[str, Any]) -> list[str]:
    """A line for every method, then every baseline; a column for every measure, group by group."""
    signs, shown, lines = {1: " (high)", -1: " (low)", 0: ""}, _shown(summary), list[str]()
    for group in MEASURE_GROUPS:
        if columns := [name for name in shown if MEASURES[name].group == group]:
            head = [group, *(MEASURES[name].title + signs[MEASURES[name].better] for name in columns)]
            rows = ([one, *(told(of[name]) for name in columns)] for one, of in summary["intervals"].items())
            lines += [*([""] if lines else []), *aligned([head, *rows])]
    return lines


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What each method beats, measure by measure; and, in a sentence, what beats all baselines."""
    if summary["images"] == 1:
        return ["of one image alone nothing can be said of what beats what"]
    beaten: dict[str, list[str]] = {method: [] for method in summary["differences"]}
    winners, shown = [], _shown(summary)
    for name, (title, better, _) in MEASURES.items():
        if not better or name not in shown:
            continue
        best = []
        for method, baselines in summary["differences"].items():
            others = [other for other in baselines if beats(summary, name, method, other)]
            beaten[method].append(f"{title}: {', '.join(others) or 'no baseline'}")
            best += [method] if len(others) == len(baselines) else []
        winners.append(f"{title}: {', '.join(best) or 'none'}")
    if not winners:
        return []  # nothing was measured that has a good end
    return [
        *(f"{method} beats, by {'; '.join(what)}" for method, what in beaten.items()),
        f"better than every baseline (95% interval of the paired difference), by {'; '.join(winners)}",
    ]


def lines(found: Mapping[str, Any]) -> list[str]:
    """What is printed of what `evaluate.evaluate` found."""
    each = found["seconds_per_image"]
    seconds = "all images scored before" if each is None else f"{each:.1f} s an image"
    told = [f"{seconds}; means over detections, with 95% bootstrap intervals by image"]
    for title, summary in found["summary"].items():
        told += ["", title, *table(summary)]
    title, first = next(iter(found["summary"].items()))
    if len(found["decoder_layers_randomised"]) > 1:
        told += ["", "rank correlation with 1, 2, ... of the decoder's last layers randomised"]
        for method in found["detections"][0]["rank_correlations"]:
            means = np.mean([row["rank_correlations"][method] for row in found["detections"]], 0)
            told.append(f"{method}: {', '.join(f'{mean:.3f}' for mean in means)}")
    beaten = verdict(first)
    return [*told, "", f"what beats what, over {title}:", *beaten] if beaten else told


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Writes what `evaluate.evaluate` found, ``scores.json``, and a picture of it, ``scores.png``."""
    write_json(folder / "scores.json", found)
    title, summary = next(iter(found["summary"].items()))
    rows = [row for row in found["detections"] if row["truth"] is not None] or found["detections"]
    curves = {
        kind: np.mean([[of[kind] for of in row["curves"].values()] for row in rows], 0)
        for kind in ("deletion", "insertion")
        if rows[0]["curves"]
    }
    figure = chart(summary, found["shares"], curves, f"{found['model']}: {title}; 95% intervals")
    save_figure(figure, folder / "scores.png")


def chart(summary: Mapping[str, Any], shares: Sequence[float], curves: Mapping[str, Array], title: str) -> Any:
    """A figure: bars with intervals for every measure, and curves (names, shares) by "deletion" and "insertion"."""
    intervals, methods, shown = summary["intervals"], summary["differences"], _shown(summary)
    baselines = [name for name in intervals if name not in methods]
    # methods in colours, baselines in greys
    colours = {
        name: shades[place % len(shades)]
        for names, shades in ((methods, COLOURS[:6]), (baselines, _GREYS))
        for place, name in enumerate(names)
    }
    count = len(shown) + len(curves)
    rows = -(-count // _COLUMNS)
    height = 0.7 + 0.24 * len(intervals)
    figure = new_figure(3.8 * _COLUMNS, rows * height + 0.8)
    panels = [figure.add_subplot(rows, _COLUMNS, place) for place in range(1, count + 1)]
    for axes, name in zip(panels, shown, strict=False):
        bars = {one: of[name] for one, of in reversed(intervals.items()) if of[name][0] is not None}
        for place, (one, (mean, *ends)) in enumerate(bars.items()):
            axes.barh(place, mean, color=colours[one])
            axes.plot(np.array(ends, dtype=float), [place, place], color="black", linewidth=1)
        axes.set_yticks(range(len(bars)), list(bars), fontsize=8)
        meaning = {1: ": high is good", -1: ": low is good", 0: ""}[MEASURES[name].better]
        dress(axes, MEASURES[name].title + meaning, grid="x")
    last = panels[len(shown) :]
    for axes, (kind, several) in zip(last, curves.items(), strict=True):
        for name, line in zip(intervals, several, strict=True):
            style = "--" if name in baselines else "-"
            axes.plot(shares, line, style, color=colours[name], label=name, linewidth=1.4)
        dress(axes, f"{kind}: score by share of pixels")
        axes.set_ylim(bottom=0)
    if last:
        figure.legend(*last[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure
