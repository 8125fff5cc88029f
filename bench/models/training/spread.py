"""Runs that differ in backend and seed: their mean and spread, whether the backends agree, and their curves.

All of it is made of rows alone, which hold their curves.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....train.monitor.curves import Panel, draw
from ....train.monitor.history import History
from ...harness.records import Row
from ...harness.tables import Line, grouped, number
from ...report import plots

_POINTS = 50  # of a curve in a row
_DIGITS = 4
_LEARNT = 0.05  # AP below which runs are alike because none has learnt anything
_DRAWN = ("model", "settings", "backend", "seed", "loss_curve", "ap_curve")


def thinned(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    """A curve (n,), (n,) of at most fifty points, each the mean of neighbours: [x, y] of each."""
    parts = np.array_split(np.arange(len(x)), max(1, min(len(x), _POINTS)))
    return [[float(f"{values[part].mean():.{_DIGITS}g}") for values in (x, y)] for part in parts if len(part)]


def experiments(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in backend and seed alone."""
    return list(grouped(rows, "model", "settings").values())


def table(rows: Sequence[Row]) -> list[Line]:
    """A line for each backend: AP's mean, least to most, and standard deviation over seeds; means of the rest."""
    head = ("backend", "seeds", "AP", "least to most", "deviation", "AP50", "loss", "images/s", "seconds", "peak MB")
    lines: list[Line] = [head]
    for (backend,), mine in grouped(rows, "backend").items():
        aps = [row["ap"] for row in mine]
        deviation = f"{statistics.stdev(aps):.3f}" if len(aps) > 1 else "-"
        ap = (f"{statistics.mean(aps):.3f}", f"{min(aps):.3f} to {max(aps):.3f}", deviation)
        ap50 = f"{statistics.mean(row['ap50'] for row in mine):.3f}"
        rest = (number(_mean(mine, name)) for name in ("loss", "images_per_second", "seconds", "peak_mb"))
        lines.append((backend, str(len(mine)), *ap, ap50, *rest))
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """Do the backends' mean APs, over the seeds that all of them have, differ by more than the seeds of one do?"""
    groups = {backend: mine for (backend,), mine in grouped(rows, "backend").items()}
    common = set.intersection(*({row["seed"] for row in mine} for mine in groups.values()))
    if len(groups) < 2 or len(common) < 2:
        had = f"{len(groups)} of them, {len(common)} seeds that all have"
        return f"Nothing can be said of whether backends agree: {had}."
    aps = {backend: [row["ap"] for row in mine if row["seed"] in common] for backend, mine in groups.items()}
    means = [statistics.mean(values) for values in aps.values()]
    apart = max(means) - min(means)
    width = max(max(values) - min(values) for values in aps.values())
    lead = (
        f"Over {len(common)} seeds the mean APs of {', '.join(aps)} lie {apart:.3f} apart, the seeds of one backend "
        f"up to {width:.3f}"
    )
    if max(means) < _LEARNT:
        return f"{lead}: with no mean AP of {_LEARNT} too little was learnt to tell backends apart."
    if apart > width:
        return f"{lead}: the backends differ by more than seeds do."
    return f"{lead}: the backends agree within the spread of seeds."


def drawn_digest(rows: Sequence[Row]) -> str:
    return plots.digest(rows, _DRAWN)


def curves(rows: Sequence[Row]) -> Any:
    """A figure of the rows of one experiment: loss and AP, for each backend the mean of its seeds in their range."""
    return drawn([[history(row["backend"], row) for row in mine] for mine in grouped(rows, "backend").values()])


def drawn(groups: Sequence[Sequence[History]]) -> Any:
    """A figure of loss and AP: a line for each group, the mean of its runs in their range."""
    return draw(groups, (Panel("loss", ("loss",)), Panel("AP", ("AP",), from_zero=True)), "step", smooth=1)


def history(name: str, row: Row) -> History:
    """The curves of a row, as those of a run of this name."""
    steps = [{"step": step, "loss": loss} for step, loss in row["loss_curve"]]
    evaluations = [{"step": step, "AP": ap} for step, ap in row["ap_curve"]]
    return History(name, {"seed": row["seed"]}, {}, steps, evaluations)


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.mean(values) if values else None
