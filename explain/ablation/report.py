"""What ``msdeform ablate`` found: as lines to print, as tables in JSON and CSV, and as pictures."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common.files import atomic_file, write_json
from ...train.evaluation.resampling import METRICS, Change
from ...train.visual.charts import COLOURS, dress, new_figure, save_figure
from ..figures.drawing import in_words
from ..workspace import aligned
from .ablation import Measured

_WHAT = {"loss": "training loss of an image", "logit": "sum of the logits of what is detected"}
_RANDOM = "#8a8a8a"


def summary(found: dict[str, Any]) -> list[str]:
    """The lines to print."""
    base, pruned = found["base"], found["pruned"]
    lines = ["without a mask: " + "  ".join(f"{name} {_number(base['metrics'][name]['before'])}" for name in METRICS)]
    lines += table([(one["mask"], one) for one in [*found["masks"], *found["matrix"]]])
    if found["rank_correlation"] is not None:
        correlation = f"{found['rank_correlation']:+.2f} (Spearman)"
        lines.append(f"screening and measured change of AP: rank correlation {correlation}")
    for name, curve in found["cumulative"].items():
        points = [f"{point['off']} off {_number(_ap(point))}" for point in curve["points"]]
        lines.append(f"{name}: AP {'  '.join(points)}")
    if pruned:
        lines.append(f"pruning, AP {_number(_ap(base))} with all heads:")
        lines += table([(f"{number} off, last {_called(one)}", one) for number, one in enumerate(pruned, 1)])
        command = f"msdeform explain IMAGE --mask '{pruned[-1]['mask']}'"
        lines.append(f"without {len(pruned)} heads AP is {_number(_ap(pruned[-1]))}; see it with: {command}")
    elif pruned is not None:
        lines.append(f"pruning: no head can go within the budget; AP {_number(_ap(base))}")
    return lines


def table(rows: Sequence[tuple[str, Measured]]) -> list[str]:
    """A line each: changes with intervals in hundredths, detections, and what became of those that stayed."""
    cells = [["change in hundredths", *METRICS, "lost", "gained", "class", "IoU", "logit"]]
    for called, one in rows:
        did = one["effects"]
        counts = [f"{did['lost']}/{did['before']}", str(did["gained"]), str(did["changed"])]
        means = [_number(did["iou_change"], "+.3f"), _number(did["logit_change"], "+.2f")]
        cells.append([called, *(_interval(one["metrics"][name]) for name in METRICS), *counts, *means])
    return aligned(cells, ">") if rows else []


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _interval(change: Change) -> str:
    shown = {part: _number(value and 100 * value, "+.1f") for part, value in change.items()}
    span = "" if change["low"] is None else f" [{shown['low']}, {shown['high']}]"
    return shown["change"] + span


def _ap(one: Measured) -> float | None:
    return one["metrics"]["AP"]["after"]


def _called(one: Mapping[str, Any]) -> str:
    return f"{one['site']}:h{one['head']}"


def write(found: dict[str, Any], folder: Path) -> list[str]:
    """Writes tables and pictures; returns their names."""
    names = ["ablation.json"]
    write_json(folder / names[0], found)
    for name, rows in _tables(found).items():
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(folder / name) as file:
            file.write(text.getvalue().encode())
        names.append(name)
    for name, figure in _pictures(found):
        save_figure(figure, folder / name)
        names.append(name)
    return names


def _tables(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """CSV files by name."""
    screened = {_called(one): one for one in found["screening"] or []}

    def in_matrix(one: Measured) -> dict[str, Any]:
        first = screened.get(_called(one), {})
        columns = {"screening": first.get("importance"), "slope": first.get("slope")}
        return {"site": one["site"], "head": one["head"], **columns, **one}

    curves = found["cumulative"].items()
    tables = {
        "masks.csv": [found["base"], *found["masks"]] if found["masks"] else [],
        "matrix.csv": [in_matrix(one) for one in found["matrix"]],
        "cumulative.csv": [{"order": name, **point} for name, curve in curves for point in curve["points"]],
        "pruning.csv": [{"step": number, **one} for number, one in enumerate(found["pruned"] or [], 1)],
    }
    return {name: [_flat(one) for one in rows] for name, rows in tables.items() if rows}


def _flat(one: Measured) -> dict[str, Any]:
    """A row of a table, its columns by name."""
    row = {name: value for name, value in one.items() if name not in ("metrics", "effects")}
    for metric, change in one["metrics"].items():
        row[metric] = change["after"]
        row |= {f"{metric} {part}": change[part] for part in ("change", "low", "high")}
    return row | one["effects"]


def _pictures(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and figures."""
    about, matrix, images = found["about"], found["matrix"], f"{found['about']['images']} images"
    if matrix:
        title = f"AP without each head; {_number(_ap(found['base']))} with all; {images}"
        yield "matrix.png", matrix_picture(matrix, title)
    if matrix and found["screening"]:
        correlation = _number(found["rank_correlation"], "+.2f")
        title = f"Screening against measurement, 95% intervals; {images}; rank correlation {correlation}"
        yield "screening.png", screening_picture(found["screening"], matrix, title, _WHAT[about["screen_by"]])
    if found["cumulative"]:
        yield "cumulative.png", curves_picture(found["cumulative"], f"Heads of {about['sites']} off; {images}")
    if found["pruned"]:
        yield "pruning.png", pruning_picture(found["pruned"], f"Greedy pruning of {about['sites']}; {images}")


def _axes(width: float, height: float, title: str, across: str = "", up: str = "") -> tuple[Any, Any]:
    """A figure, and its axes with their titles and, if these have names, a grid."""
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    dress(axes, title, across, up, size=9, grid="both" if across else "none")
    return figure, axes


def _hundredths(one: Measured, part: str) -> float:
    """Of the change of AP."""
    value = one["metrics"]["AP"][part]
    return np.nan if value is None else 100 * value


def matrix_picture(matrix: Sequence[Measured], title: str) -> Any:
    """Layers by heads, the change of AP in hundredths in each cell, its 95% interval below; red where AP falls.

    The colour scale is centred at 0 and as wide as the largest change; a bold number with a star stands where the
    interval leaves out 0.
    """
    sites = list(dict.fromkeys(one["site"] for one in matrix))
    heads = 1 + max(one["head"] for one in matrix)
    values = np.full((len(sites), heads), np.nan)
    for one in matrix:
        values[sites.index(one["site"]), one["head"]] = _hundredths(one, "change")
    title += "\n* the 95% interval does not contain 0"
    figure, axes = _axes(max(5.2, 2.2 + 0.95 * heads), max(2.4, 1.5 + 0.62 * len(sites)), title)
    widest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = axes.imshow(values, cmap="RdBu", vmin=-widest, vmax=widest, aspect="auto")
    for one in matrix:
        row, head = sites.index(one["site"]), one["head"]
        value, low, high = (_hundredths(one, part) for part in ("change", "low", "high"))
        if np.isnan(value):
            continue
        sure = low > 0 or high < 0
        # white on the dark ends of the scale
        ink = "white" if abs(value) > 0.6 * widest else "black"
        where: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
        weight = "bold" if sure else "normal"
        axes.text(head, row - 0.13, f"{value:+.1f}{'*' * sure}", fontsize=10, fontweight=weight, **where)
        if not np.isnan(low):
            axes.text(head, row + 0.22, f"{low:+.1f} to {high:+.1f}", fontsize=6.5, **where)
    axes.set_xticks(range(heads), [f"head {head}" for head in range(heads)], fontsize=8)
    axes.set_yticks(range(len(sites)), [in_words(site) for site in sites], fontsize=8)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("change of AP, in hundredths", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def curves_picture(curves: Mapping[str, dict[str, Any]], title: str) -> Any:
    """AP over how many heads are off, a line for each order; random orders as their mean and range."""
    figure, axes = _axes(6.4, 4.2, title, "heads off", "AP")
    counts = [point["off"] for point in next(iter(curves.values()))["points"]]
    aps = {name: [_ap(point) or 0.0 for point in curve["points"]] for name, curve in curves.items()}
    drawn = np.array([values for name, values in aps.items() if name.startswith("random ")])
    if len(drawn):
        axes.fill_between(counts, drawn.min(0), drawn.max(0), color=_RANDOM, alpha=0.25, linewidth=0)
        label = f"random: mean and range of {len(drawn)}"
        axes.plot(counts, drawn.mean(0), color=_RANDOM, marker=".", label=label)
    named = [name for name in aps if not name.startswith("random ")]
    for number, name in enumerate(named):  # in pairs: an order and its reverse
        kind = name.removesuffix(", reversed")
        style, order = ("--", "least first") if name != kind else ("-", "most important first")
        axes.plot(counts, aps[name], style, color=COLOURS[number // 2], marker=".", label=f"by {kind}, {order}")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    return figure


def screening_picture(screening: Sequence[dict[str, Any]], matrix: Sequence[Measured], title: str, what: str) -> Any:
    """Each head's first-order importance against the AP it costs to switch it off, with its interval."""
    import matplotlib

    across = f"screening: mean |derivative| of the {what}\nby a factor on the head's weights"
    figure, axes = _axes(6.0, 4.4, title, across, "AP lost without the head, in hundredths")
    sites = list(dict.fromkeys(one["site"] for one in matrix))
    importance = {_called(one): one["importance"] for one in screening}
    for site, shade in zip(sites, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(sites))), strict=True):
        mine = [one for one in matrix if one["site"] == site]
        x = [importance[_called(one)] for one in mine]
        y, high, low = (-np.array([_hundredths(one, part) for one in mine]) for part in ("change", "low", "high"))
        # a percentile interval need not hold the estimate
        bars = np.clip([y - low, high - y], 0, None)
        axes.errorbar(x, y, bars, fmt="o", color=shade, markersize=5, linewidth=0.8, alpha=0.9, label=in_words(site))
        for one, *xy in zip(mine, x, y, strict=True):
            axes.annotate(str(one["head"]), xy, textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.legend(fontsize=7, frameon=False, title="head numbers beside the points", title_fontsize=7)
    return figure


def pruning_picture(steps: Sequence[Measured], title: str) -> Any:
    """AP after each head that greedy pruning switched off, beginning with none, with the interval of its change."""
    names = ["none", *map(_called, steps)]
    figure, axes = _axes(max(5.0, 2.0 + 0.42 * len(names)), 4.0, title, "switched off, one after the other", "AP")
    base = steps[0]["metrics"]["AP"]["before"]
    low, high, aps = (
        np.array([base, *(base + _hundredths(one, part) / 100 for one in steps)]) for part in ("low", "high", "change")
    )
    x = np.arange(len(names))
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="95% interval of the change")
    axes.plot(x, aps, color=COLOURS[0], marker=".")
    axes.axhline(base, color="0.6", linewidth=0.8, label="all heads")
    axes.set_xticks(x, names, rotation=60, ha="right", fontsize=7)
    axes.legend(fontsize=8, frameon=False)
    return figure
