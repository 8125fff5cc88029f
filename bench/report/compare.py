"""``msdeform bench compare A B``: what became slower or faster from A to B, two commits, machines or backends.

Both are looked for in the recorded rows: a backend by its name, a commit by the first letters of its hash, a machine by
a part of its device's or processor's name. For two backends that were measured in turn, or each in turn with the same
baseline, the ratio is that of neighbours, which holds on a busy machine. For others it is the ratio of two medians,
each with its own interval; what is not this project's code is then compared, too, and tells of the machine alone.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...common.text import nearest
from ..harness import records
from ..harness.records import Row
from ..harness.tables import aligned, time
from ..options import CompareOptions

_KINDS = ("operator", "model", "training")


@dataclass(frozen=True)
class Change:
    """One cell on both sides."""

    cell: str
    before: Row
    after: Row
    ratio: float | None = None
    """time after over time before; None where a side has no time"""
    low: float = math.nan
    high: float = math.nan
    paired: bool = False

    def verdict(self, threshold: float) -> str:
        """``slower`` and ``faster`` only where the whole interval says so, by more than the threshold."""
        if self.ratio is None:
            if self.before["median_us"] is not None:
                return f"REGRESSION: {self.after['failure']}"
            return "not measured" if self.after["median_us"] is None else "measured now"
        noisy = not self.paired and (self.before["noisy"] or self.after["noisy"])
        if self.low > 1 + threshold:
            return "slower? (noisy)" if noisy else "slower REGRESSION"
        if self.high < 1 / (1 + threshold):
            return "faster? (noisy)" if noisy else "faster"
        return "noisy" if noisy else "same"

    def line(self, threshold: float) -> tuple[str, ...]:
        """Its cells in a report."""
        ratio = ("-", "-") if self.ratio is None else (f"{self.ratio:.2f}", f"{self.low:.2f}-{self.high:.2f}")
        return self.cell, time(self.before), time(self.after), *ratio, self.verdict(threshold)


def run(options: CompareOptions) -> int:
    """``msdeform bench compare``: prints ratios; returns 1 if something became slower or fails now."""
    found = records.read_and_warn(options.results)
    rows = [row for row in found.rows if row["kind"] in _KINDS]
    dimension = select(rows, options.before, options.after)
    changes = compare(rows, dimension, options.before, options.after)
    if not changes:
        raise ValueError(f"{options.before} and {options.after}: the results have no cell of both")
    print(report(changes, options.threshold, dimension, (options.before, options.after)))
    return 1 if any("REGRESSION" in change.verdict(options.threshold) for change in changes) else 0


def _matches(row: Row, dimension: str, text: str) -> bool:
    if dimension == "backend":
        return row["backend"] == text
    if dimension == "commit":
        return len(text) >= 4 and str(row.get("commit")).startswith(text)
    return text.lower() in f"{row['device']} {row.get('host_cpu')}".lower()


def select(rows: Sequence[Row], before: str, after: str) -> str:
    """What A and B are: ``backend``, ``commit`` or ``device``.

    Raises ValueError for one that no row has, with the nearest, or two that are not of a kind.
    """
    dimensions = []
    for text in (before, after):
        of = next((d for d in ("backend", "commit", "device") if any(_matches(row, d, text) for row in rows)), None)
        if of is None:
            known = {row["backend"] for row in rows} | {str(row.get("commit"))[:10] for row in rows}
            known |= {row["device"] for row in rows}
            raise ValueError(nearest("backend, commit or machine in the results", text, sorted(known)))
        dimensions.append(of)
    if dimensions[0] != dimensions[1]:
        raise ValueError(
            f"expected two backends, two commits or two machines, got a {dimensions[0]}, {before}, "
            f"and a {dimensions[1]}, {after}"
        )
    return dimensions[0]


def compare(rows: Iterable[Row], dimension: str, before: str, after: str) -> list[Change]:
    """Every cell that both sides have. Of several rows of a cell the last counts."""
    sides: tuple[dict[Any, Row], dict[Any, Row]] = ({}, {})
    for row in rows:
        for side, text in zip(sides, (before, after), strict=True):
            if _matches(row, dimension, text):
                side[_cell(row, dimension)] = row
    return [_change(row, sides[1][cell]) for cell, row in sides[0].items() if cell in sides[1]]


def _cell(row: Row, dimension: str) -> tuple[Any, ...]:
    """What two rows must agree in to be compared."""
    names = [name for name in ("kind", *records.KEYS[row["kind"]]) if name != dimension]
    same = {"backend": records.PLACE, "commit": ("device", "host_cpu"), "device": ()}[dimension]
    return tuple(row.get(name) for name in (*names, *same))


def _change(before: Row, after: Row) -> Change:
    shown = " ".join(str(before[name]) for name in records.KEYS[before["kind"]] if before[name] == after[name])
    if before["median_us"] is None or after["median_us"] is None:
        return Change(shown, before, after)
    one, other = before["backend"], after["backend"]
    ratios = ("ratio", "ratio_low", "ratio_high")
    if one != other and after.get("baseline") == one:
        ratio, low, high = (after[name] for name in ratios)
        return Change(shown, before, after, ratio, low, high, paired=True)
    if one != other and before.get("baseline") == other:
        ratio, high, low = (1 / before[name] for name in ratios)
        return Change(shown, before, after, ratio, low, high, paired=True)
    paired = one != other and before.get("baseline") is not None and before["baseline"] == after.get("baseline")
    names = ratios if paired else ("median_us", "median_low_us", "median_high_us")
    (middle, *ends), (middle_after, *ends_after) = ([row[name] for name in names] for row in (before, after))
    ratio = middle_after / middle
    # the two sides are independent: widths of their intervals add up as squares, in logarithms
    width = math.exp(math.hypot(*(math.log(high / low) / 2 for low, high in (ends, ends_after))))
    return Change(shown, before, after, ratio, ratio / width, ratio * width, paired=paired)


def report(changes: Sequence[Change], threshold: float, dimension: str, names: tuple[str, str]) -> str:
    """Which is A and which B, a line for each cell, and what the others' code says of the machine.

    Args:
        changes: of `compare`.
        threshold: relative change of a time that matters.
        dimension: of `select`, what A and B are.
        names: A and B, as they were asked for.
    """
    what = {"device": "machine"}.get(dimension, dimension)
    head = [
        f"{letter}: {what} {_full(changes, dimension, letter, name)}" for letter, name in zip("AB", names, strict=True)
    ]
    columns = ("cell", "A, us", "B, us", "B/A", "95% interval", "")
    lines = [columns, *(change.line(threshold) for change in changes)]
    notes = []
    control = [one.ratio for one in changes if one.ratio is not None and not one.after.get("ours", True)]
    if dimension != "backend" and control:
        drift = statistics.median(control)
        notes = [f"code that is not this project's takes {drift:.2f} times as long in B: {len(control)} cells"]
        if dimension == "commit" and not 1 / (1 + threshold) <= drift <= 1 + threshold:
            notes.append("so the machine itself changed: measure both commits again, one right after the other")
    slower = sum("REGRESSION" in change.verdict(threshold) for change in changes)
    notes.append(f"{len(changes)} cells, {slower} REGRESSION{'' if slower == 1 else 'S'} (more than {threshold:.0%})")
    return "\n".join([*head, "", aligned(lines, 1), "", *notes])


def _full(changes: Sequence[Change], dimension: str, side: str, name: str) -> str:
    """A name as it was asked for, and beside it what the rows of that side say in full."""
    rows = [change.before if side == "A" else change.after for change in changes]
    full = list(dict.fromkeys(str(row.get(dimension)) for row in rows))
    return name if full == [name] else f"{name} ({', '.join(full)})"
