"""Rows of results as text: aligned for a terminal, and as tables of Markdown for the documentation.

Ratios come from rows alone: a cell without a time has no ratio, and nothing is said of what was not measured.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .records import Row

Line = Sequence[str]
Column = str | Callable[[Row], str]
"""a field of a row, or what a row has there"""

# what a speed is of, whichever backend has it
CELL = ("case", "locations", "dtype", "function", "direction")
# how the failure begins of one that was held against the reference in float64 and is further off than rounding explains
DIFFERS = "differs from float64"
HAS_NONE = "it has no such function"
"""the failure of one that lacks one of the two functions, or the backward"""


def lines_of(rows: Iterable[Row], columns: Mapping[str, Column]) -> list[Line]:
    """A head, and a line of cells for each row."""
    body = [tuple(of(row) if callable(of) else str(row[of]) for of in columns.values()) for row in rows]
    return [tuple(columns), *body]


def fields(*names: str) -> dict[str, Column]:
    """Columns of fields as they are."""
    return {name: name for name in names}


def numbers(name: str, unit: float = 1.0) -> Callable[[Row], str]:
    """A column of a field's numbers."""
    return lambda row: number(row[name], unit)


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows that agree in these fields, in the order in which they first came."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def aligned(lines: Sequence[Line], left: int) -> str:
    """Lines of cells as text; the first `left` columns begin together, the others end together."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(padded(line, widths, left) for line in lines)


def padded(line: Line, widths: Sequence[int], left: int) -> str:
    """One line of cells in columns of given widths, for tables whose lines come one by one."""
    cells = enumerate(zip(line, widths, strict=True))
    return "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in cells).rstrip()


def markdown(lines: Sequence[Line], left: int) -> str:
    """The same as a table of Markdown; the first line is its head."""
    head, *body = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def time(row: Row | None, unit: float = 1.0) -> str:
    """A median in so many microseconds with what it says of itself, or in a word why there is none."""
    if row is None:
        return "not measured"
    if row["median_us"] is not None:
        return f"{number(row['median_us'], unit)}{' (noisy)' if row['noisy'] else ''}"
    if row["failure"] == HAS_NONE:
        return "has none"
    differs = (row["failure"] or "").startswith(DIFFERS)
    return "failed" if not differs else "wrong" if row.get("ours") else "differs"


def spread(row: Row, unit: float = 1.0) -> str:
    """From the 20th to the 80th percentile."""
    return "-" if row["median_us"] is None else f"{number(row['p20_us'], unit)}-{number(row['p80_us'], unit)}"


def number(value: float | None, unit: float = 1.0) -> str:
    """Three digits of a number, or a dash."""
    if value is None:
        return "-"
    value = value / unit
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times_faster(row: Row) -> str:
    """How many times faster than the baseline, with the 95% interval; a dash where they were not measured in turn."""
    if row["ratio"] is None:
        return "-"
    return f"{1 / row['ratio']:.2f}x ({1 / row['ratio_high']:.2f}-{1 / row['ratio_low']:.2f})"


def operator_table(rows: Sequence[Row]) -> str:
    """Every row of the operator, for a terminal; a row of which PyTorch computed a part has a star."""
    columns: dict[str, Column] = {
        **fields(*CELL),
        "backend": lambda row: row["backend"] + ("*" if row["composed"] else ""),
        "us": time,
        "p20-p80": spread,
        "dispatch us": numbers("dispatch_us"),
        "peak MB": numbers("peak_mb"),
        "saved MB": numbers("saved_mb"),
        "of traffic": lambda row: percent(row["of_copy_bandwidth"]),
        "of issue": lambda row: percent(row["of_issue_floor"]),
        "speed": lambda row: times_faster(row) if row["failure"] is None else row["failure"].split(":")[0],
    }
    composed = {
        f"{row['backend']}*: {row['composed']} in PyTorch are part of its time" for row in rows if row["composed"]
    }
    limits = {
        f"{row['backend']} {DIFFERS}, and gets no speed: {row['limits']}"
        for row in rows
        if row.get("limits") is not None and time(row) == "differs"
    }
    return "\n".join([aligned(lines_of(rows, columns), 6), *sorted(composed), *sorted(limits)])


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
