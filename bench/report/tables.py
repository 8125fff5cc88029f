"""What is known of every implementation on every case: measured, failed or not measured.

A ratio, and the word fastest, come from measured rows alone, and say how many there are.
"""

from collections import Counter
from collections.abc import Sequence

from ..harness.records import Row
from ..harness.tables import (
    CELL,
    HAS_NONE,
    Column,
    Line,
    fields,
    grouped,
    lines_of,
    numbers,
    percent,
    time,
    times_faster,
)
from ..options import IMPLEMENTATIONS


def coverage(rows: Sequence[Row], missing: Sequence[Row]) -> list[Line]:
    """A line for each implementation and a column for each case of one machine's rows, after the head."""
    reasons = {row["backend"]: row["reason"] for row in missing}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys([*IMPLEMENTATIONS, *(row["backend"] for row in rows)]))
    lines: list[Line] = [("implementation", *cases, "")]
    for name in names:
        mine = [row for row in rows if row["backend"] == name]
        cells = [_state([row for row in mine if row["case"] == case]) for case in cases]
        lines.append((name, *cells, "" if mine else reasons.get(name, "")))
    return lines


def _state(rows: Sequence[Row]) -> str:
    """Of one implementation on one case."""
    words = {"differs": "differing"}
    counts = Counter("measured" if row["median_us"] is not None else words.get(time(row), time(row)) for row in rows)
    order = ("measured", "differing", "wrong", "failed", "has none")
    return ", ".join(f"{counts[one]} {one}" for one in order if counts[one]) or "not measured"


def fastest(rows: Sequence[Row]) -> list[str]:
    """A sentence for each implementation that was the fastest in a cell, over cells in which two or more were measured.

    A cell whose first two cannot be told apart, by the intervals of their medians, has no fastest.
    """
    timed = [row for row in rows if row["median_us"] is not None and row["function"] != "MSDeformAttn"]
    compared = [
        sorted(mine, key=lambda row: row["median_us"]) for mine in grouped(timed, *CELL).values() if len(mine) > 1
    ]
    won = Counter(
        first["backend"] for first, second, *_ in compared if first["median_high_us"] < second["median_low_us"]
    )
    sentences = [
        f"`{name}` was the fastest of those measured in {count} of {len(compared)} cells."
        for name, count in won.items()
    ]
    undecided = len(compared) - won.total()
    if undecided:
        sentences.append(f"In {undecided} of {len(compared)} cells the first two cannot be told apart.")
    return sentences


def speeds(rows: Sequence[Row]) -> list[Line]:
    """A line for each cell and a column for each implementation, after the head: microseconds, and times faster than
    the baseline where they were measured in turn."""
    names = list(dict.fromkeys(row["backend"] for row in rows))
    lines: list[Line] = [(*CELL, *names)]
    for cell, mine in grouped(rows, *CELL).items():
        found = {row["backend"]: row for row in mine}
        lines.append((*cell, *(_speed(found.get(name)) for name in names)))
    return lines


def _speed(row: Row | None) -> str:
    star = "*" if row is not None and row["composed"] and row["failure"] != HAS_NONE else ""
    ratio = "" if row is None or row["ratio"] is None else f", {times_faster(row)}"
    return time(row) + star + ratio


def floors(rows: Sequence[Row]) -> list[Line]:
    """A line for each row measured on a GPU, after the head: its speed, and what bounds it."""
    columns: dict[str, Column] = {
        **fields(*CELL, "backend"),
        "us": numbers("median_us"),
        "GB/s": numbers("bytes_per_second", 1e9),
        "of copy": lambda row: percent(row["of_copy_bandwidth"]),
        "traffic floor us": numbers("traffic_floor_us"),
        "issue floor us": numbers("issue_floor_us"),
        "of issue floor": lambda row: percent(row["of_issue_floor"]),
        "bound by": lambda row: row["bound_by"] or "-",
    }
    return lines_of(rows, columns)
