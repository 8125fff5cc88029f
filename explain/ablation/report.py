"""What ``msdeform ablate`` found: as lines to print, as tables in JSON and CSV, and as pictures."""

import csv
import dataclasses
import importlib.metadata
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...common.files import atomic_file, write_json
from ..workspace import aligned, save_figure
from .ablation import Findings, Head, Measured
from .figures import curves_picture, matrix_picture, pruning_picture, screening_picture
from .resampling import METRICS, Change

_WHAT = {"loss": "training loss of an image", "logit": "sum of the logits of what is detected"}


def summary(findings: Findings) -> list[str]:
    """The lines to print."""
    base = findings.base
    lines = ["without a mask: " + "  ".join(f"{name} {_number(base.changes[name].before)}" for name in METRICS)]
    lines += table([(one.name, one) for one in [*findings.masks, *findings.matrix.values()]])
    if (correlation := findings.rank_correlation()) is not None:
        lines.append(f"screening and measured change of AP: rank correlation {correlation:+.2f} (Spearman)")
    for name, points in findings.curves.items():
        lines.append(f"{name}: AP " + "  ".join(f"{count} off {one.ap:.3f}" for count, one in points))
    if findings.pruned:
        lines.append(f"pruning, AP {base.ap:.3f} with all heads:")
        lines += table(
            [(f"{n} off, last {_called(step.head)}", step.measured) for n, step in enumerate(findings.pruned, 1)]
        )
        last = findings.pruned[-1].measured
        lines.append(
            f"without {len(findings.pruned)} heads AP is {last.ap:.3f}; see it with: msdeform explain IMAGE --mask "
            f"'{last.name}'"
        )
    elif findings.pruned is not None:
        lines.append(f"pruning: no head can go within the budget; AP {base.ap:.3f}")
    return lines


def table(rows: Sequence[tuple[str, Measured]]) -> list[str]:
    """A line each: changes with intervals in hundredths, detections, and what became of those that stayed."""
    cells = [["change in hundredths", *METRICS, "lost", "gained", "class", "IoU", "logit"]]
    for called, one in rows:
        did = one.effects
        counts = [f"{did.lost}/{did.before}", str(did.gained), str(did.changed)]
        means = [_number(did.iou_change, "+.3f"), _number(did.logit_change, "+.2f")]
        cells.append([called, *(_interval(one.changes[name]) for name in METRICS), *counts, *means])
    return aligned(cells, ">") if rows else []


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _interval(change: Change) -> str:
    if change.change is None or change.low is None or change.high is None:
        return _number(change.change and 100 * change.change, "+.1f")
    return f"{100 * change.change:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _called(head: Head) -> str:
    return f"{head[0]}:h{head[1]}"


def write(findings: Findings, folder: Path) -> list[str]:
    """Writes tables and pictures; returns their names."""
    found = content(findings)
    tables = _tables(found)
    write_json(folder / "ablation.json", found)
    for name, rows in tables.items():
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(folder / name) as file:
            file.write(text.getvalue().encode())
    figures = _figures(findings)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return ["ablation.json", *tables, *figures]


def _figures(findings: Findings) -> dict[str, Any]:
    """Pictures by name."""
    base, about, pruned = findings.base, findings.about, findings.pruned
    images = f"{about['images']} images"
    changes = {head: one.changes["AP"] for head, one in findings.matrix.items()}
    figures: dict[str, Any] = {}
    if changes:
        title = f"AP without each head; {base.ap:.3f} with all; {images}"
        figures["matrix.png"] = matrix_picture(changes, title)
    if changes and findings.screening is not None:
        correlation = _number(findings.rank_correlation(), "+.2f")
        title = f"Screening against measurement, 95% intervals; {images}; rank correlation {correlation}"
        what = _WHAT[about["screen_by"]]
        figures["screening.png"] = screening_picture(findings.screening.importance, changes, title, what)
    if findings.curves:
        figures["cumulative.png"] = curves_picture(findings.curves, f"Heads of {about['sites']} off; {images}")
    if pruned:
        figures["pruning.png"] = pruning_picture(pruned, f"Greedy pruning of {about['sites']}; {images}")
    return figures


def _tables(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """CSV files by name, of what `content` gives."""
    screened = {(one["site"], one["head"]): one for one in found["screening"] or []}

    def in_matrix(one: dict[str, Any]) -> dict[str, Any]:
        place = {"site": one["site"], "head": one["head"]}
        first = screened.get((one["site"], one["head"]), {})
        return {**place, "screening": first.get("importance"), "slope": first.get("slope"), **one}

    tables = {
        "masks.csv": [found["base"], *found["masks"]] if found["masks"] else [],
        "matrix.csv": [in_matrix(one) for one in found["matrix"]],
        "cumulative.csv": [
            {"order": name, **point} for name, curve in found["cumulative"].items() for point in curve["points"]
        ],
        "pruning.csv": [{"step": number, **one} for number, one in enumerate(found["pruned"] or [], 1)],
    }
    return {name: [_flat(one) for one in rows] for name, rows in tables.items() if rows}


def _flat(one: dict[str, Any]) -> dict[str, Any]:
    """A row of a table, its columns by name."""
    row = {name: value for name, value in one.items() if name not in ("metrics", "effects")}
    for metric, change in one["metrics"].items():
        row[metric] = change["after"]
        row |= {f"{metric} {part}": change[part] for part in ("change", "low", "high")}
    return row | one["effects"]


def content(findings: Findings) -> dict[str, Any]:
    """All numbers as plain values."""

    def plain(one: Measured, head: Head | None = None, **more: Any) -> dict[str, Any]:
        changes = {metric: dataclasses.asdict(change) for metric, change in one.changes.items()}
        own = {"mask": one.name, "metrics": changes, "effects": dataclasses.asdict(one.effects)}
        return (place(head) if head else {}) | more | own

    def place(head: Head) -> dict[str, Any]:
        return {"site": head[0], "head": head[1]}

    screening, pruned = findings.screening, findings.pruned
    return {
        "about": findings.about,
        "base": plain(findings.base),
        "masks": [plain(one) for one in findings.masks],
        "matrix": [plain(one, head) for head, one in findings.matrix.items()],
        "screening": screening
        and [
            place(head) | {"importance": importance, "slope": screening.slope[head]}
            for head, importance in screening.importance.items()
        ],
        "rank_correlation": findings.rank_correlation(),
        "cumulative": {
            name: {
                "order": [place(head) for head in findings.orders[name]],
                "points": [plain(one, off=count) for count, one in points],
            }
            for name, points in findings.curves.items()
        },
        "pruned": pruned and [plain(measured, head, screening=importance) for head, importance, measured in pruned],
        "versions": {
            "msdeform": __version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")},
        },
    }
