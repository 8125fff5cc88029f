"""What ``msdeform ablate`` found: as lines to print, as tables in JSON and CSV, and as pictures."""

import csv
import dataclasses
import importlib.metadata
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from ... import __version__
from ...common.files import atomic_file, write_json
from .ablation import Measured, Screening, Step
from .effects import Effects
from .figures import curves_picture, matrix_picture, pruning_picture, save_figure, screening_picture
from .head_sets import Head
from .resampling import METRICS, Change

_WHAT = {"loss": "training loss of an image", "logit": "sum of the logits of what is detected"}


@dataclass(eq=False)
class Findings:
    """All that was asked for; what was not is empty."""

    about: dict[str, Any]
    base: Measured | None = None
    masks: list[Measured] = field(default_factory=list)
    matrix: dict[Head, Measured] = field(default_factory=dict)
    screening: Screening | None = None
    orders: dict[str, list[Head]] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, Measured]]] = field(default_factory=dict)
    """By order, how many heads are off and what that does."""
    pruned: list[Step] | None = None

    def rank_correlation(self) -> float | None:
        """Spearman's, of screening and the AP that each head costs; None without both, or where one is constant."""
        if self.screening is None or len(self.matrix) < 3:
            return None
        pairs = [(self.screening.importance[head], -one.change) for head, one in self.matrix.items()]
        one, two = zip(*pairs, strict=True)
        return float(spearmanr(one, two).statistic) if len(set(one)) > 1 and len(set(two)) > 1 else None


def summary(findings: Findings) -> list[str]:
    """The lines to print."""
    assert findings.base is not None
    lines = ["without a mask: " + "  ".join(f"{name} {_number(findings.base, name)}" for name in METRICS)]
    measured = [*findings.masks, *findings.matrix.values()]
    if measured:
        lines += table([("", one) for one in measured])
    if (correlation := findings.rank_correlation()) is not None:
        lines.append(f"screening and measured change of AP: rank correlation {correlation:+.2f} (Spearman)")
    for name, points in findings.curves.items():
        lines.append(f"{name}: AP " + "  ".join(f"{count} off {one.ap:.3f}" for count, one in points))
    if findings.pruned is not None:
        lines += _pruned(findings.pruned, findings.base)
    return lines


def _pruned(steps: Sequence[Step], base: Measured) -> list[str]:
    if not steps:
        return [f"pruning: no head can go within the budget; AP {base.ap:.3f}"]
    lines = [f"pruning, AP {base.ap:.3f} with all heads:"]
    lines += table(
        [(f"{number} off, last {_called(step.head)}", step.measured) for number, step in enumerate(steps, 1)]
    )
    last = steps[-1].measured
    seeing = f"msdeform explain IMAGE --mask '{last.name}'"
    lines.append(f"without {len(steps)} heads AP is {last.ap:.3f}; see it with: {seeing}")
    return lines


def table(rows: Sequence[tuple[str, Measured]]) -> list[str]:
    """A line each: changes with intervals in hundredths, detections, and what became of those that stayed."""
    cells: list[tuple[str, ...]] = [
        ("change in hundredths", *METRICS, "lost", "gained", "class", "IoU", "logit"),
    ]
    for called, one in rows:
        did = one.effects
        cells.append(
            (
                called or one.name,
                *(_interval(one.changes[name]) for name in METRICS),
                f"{did.lost}/{did.before}",
                str(did.gained),
                str(did.changed),
                _signed(did.iou_change, 3),
                _signed(did.logit_change, 2),
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *rest in cells:
        right = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return lines


def _number(one: Measured, metric: str) -> str:
    value = one.changes[metric].before
    return "-" if value is None else f"{value:.3f}"


def _interval(change: Change) -> str:
    if change.change is None:
        return "-"
    if change.low is None or change.high is None:
        return f"{100 * change.change:+.1f}"
    return f"{100 * change.change:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"


def _called(head: Head) -> str:
    return f"{head[0]}:h{head[1]}"


def write(findings: Findings, folder: Path) -> list[str]:
    """Writes tables and pictures; returns their names."""
    assert findings.base is not None
    images = f"{findings.about['images']} images"
    figures: dict[str, Any] = {}
    if findings.matrix:
        changes = {head: one.changes["AP"] for head, one in findings.matrix.items()}
        title = f"AP without each head; {findings.base.ap:.3f} with all; {images}"
        figures["matrix.png"] = matrix_picture(changes, title)
        if findings.screening is not None:
            correlation = findings.rank_correlation()
            told = "" if correlation is None else f"; rank correlation {correlation:+.2f}"
            figures["screening.png"] = screening_picture(
                findings.screening.importance,
                changes,
                f"Screening against measurement, 95% intervals; {images}{told}",
                _WHAT[findings.about["screen_by"]],
            )
    if findings.curves:
        curves = {name: [(count, one.ap) for count, one in points] for name, points in findings.curves.items()}
        figures["cumulative.png"] = curves_picture(curves, f"Heads of {findings.about['sites']} off; {images}")
    if findings.pruned:
        figures["pruning.png"] = pruning_picture(
            [findings.base.ap, *(step.measured.ap for step in findings.pruned)],
            [_called(step.head) for step in findings.pruned],
            [step.measured.changes["AP"] for step in findings.pruned],
            f"Greedy pruning of {findings.about['sites']}; {images}",
        )
    tables = _tables(findings)
    for name, rows in tables.items():
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        with atomic_file(folder / name) as file:
            file.write(text.getvalue().encode())
    write_json(folder / "ablation.json", content(findings))
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return ["ablation.json", *tables, *figures]


_COLUMNS = [f"{metric}{part}" for metric in METRICS for part in ("", " change", " low", " high")]
_EFFECTS = [field.name for field in dataclasses.fields(Effects)]


def _row(one: Measured) -> list[Any]:
    numbers = [
        value
        for metric in METRICS
        for change in [one.changes[metric]]
        for value in (change.after, change.change, change.low, change.high)
    ]
    return [one.name, *numbers, *dataclasses.astuple(one.effects)]


def _tables(findings: Findings) -> dict[str, list[list[Any]]]:
    """CSV files by name."""
    head = ["mask", *_COLUMNS, *_EFFECTS]
    found: dict[str, list[list[Any]]] = {}
    assert findings.base is not None
    if findings.masks:
        found["masks.csv"] = [head, *(_row(one) for one in (findings.base, *findings.masks))]
    if findings.matrix:
        importance = findings.screening
        found["matrix.csv"] = [["site", "head", "screening", "slope", *head]]
        for place, one in findings.matrix.items():
            screened = ["", ""] if importance is None else [importance.importance[place], importance.slope[place]]
            found["matrix.csv"].append([*place, *screened, *_row(one)])
    if findings.curves:
        found["cumulative.csv"] = [["order", "off", *head]]
        for name, points in findings.curves.items():
            found["cumulative.csv"] += [[name, count, *_row(one)] for count, one in points]
    if findings.pruned:
        found["pruning.csv"] = [["step", "site", "head", "screening", *head]]
        for number, step in enumerate(findings.pruned, 1):
            found["pruning.csv"].append([number, *step.head, step.importance, *_row(step.measured)])
    return found


def content(findings: Findings) -> dict[str, Any]:
    """All numbers as plain values."""

    def plain(one: Measured) -> dict[str, Any]:
        changes = {metric: dataclasses.asdict(change) for metric, change in one.changes.items()}
        return {"mask": one.name, "metrics": changes, "effects": dataclasses.asdict(one.effects)}

    def place(head: Head) -> dict[str, Any]:
        return {"site": head[0], "head": head[1]}

    assert findings.base is not None
    screening = findings.screening
    return {
        "about": findings.about,
        "base": plain(findings.base),
        "masks": [plain(one) for one in findings.masks],
        "matrix": [{**place(head), **plain(one)} for head, one in findings.matrix.items()],
        "screening": None
        if screening is None
        else [
            {**place(head), "importance": importance, "slope": screening.slope[head]}
            for head, importance in screening.importance.items()
        ],
        "rank_correlation": findings.rank_correlation(),
        "cumulative": {
            name: {
                "order": [place(head) for head in findings.orders[name]],
                "points": [{"off": count, **plain(one)} for count, one in points],
            }
            for name, points in findings.curves.items()
        },
        "pruned": None
        if findings.pruned is None
        else [{**place(step.head), "screening": step.importance, **plain(step.measured)} for step in findings.pruned],
        "versions": {
            "msdeform": __version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")},
        },
    }
