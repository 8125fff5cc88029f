"""Rows of results as text: aligned for a terminal, and as tables of Markdown for the documentation.

Ratios come from rows alone: a cell without a time has no ratio, and nothing is said of what was not measured.
"""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Line = Sequence[str]

# what a speed is of, whichever backend has it
CELL = ("case", "locations", "dtype", "function", "direction")
# how the failure begins of one that was held against the reference in float64 and is further off than rounding explains
DIFFERS = "differs from float64"
HAS_NONE = "it has no such function"
"""the failure of one that lacks one of the two functions, or the backward"""


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


def microseconds(row: Row) -> str:
    """A median with what it says of itself."""
    if row["median_us"] is None:
        differs = (row["failure"] or "").startswith(DIFFERS)
        return "failed" if not differs else "wrong" if row.get("ours") else "differs"
    return f"{number(row['median_us'])}{' (noisy)' if row['noisy'] else ''}"


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
    """Every row of the operator, for a terminal; a row in which others computed a part for a peer has a star."""
    lines: list[Line] = [
        (*CELL, "backend", "us", "p20-p80", "dispatch us", "peak MB", "saved MB", "of traffic", "of issue", "speed")
    ]
    for row in rows:
        lead = (*(row[name] for name in CELL), row["backend"] + ("*" if row["composed"] else ""))
        if row["median_us"] is None:
            lines.append((*lead, microseconds(row), *"------", row["failure"].split(":")[0]))
            continue
        lines.append(
            (
                *lead,
                microseconds(row),
                f"{row['p20_us']:.1f}-{row['p80_us']:.1f}",
                number(row["dispatch_us"]),
                number(row["peak_mb"]),
                number(row["saved_mb"]),
                percent(row["of_copy_bandwidth"]),
                percent(row["of_issue_floor"]),
                times_faster(row),
            )
        )
    limits = {
        f"{row['backend']} {DIFFERS}, and gets no speed: {row['limits']}"
        for row in rows
        if row.get("limits") is not None and microseconds(row) == "differs"
    }
    text = aligned(lines, 6)
    composed = {
        f"{row['backend']}*: {row['composed']} in PyTorch are part of its time" for row in rows if row["composed"]
    }
    return "\n".join([text, *sorted(composed), *sorted(limits)])


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
