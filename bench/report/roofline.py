"""``msdeform bench roofline``: recorded speeds under what the device could do, drawn."""

import sys

from ...common.files import atomic_file
from ..harness import records
from ..harness.tables import CELL, aligned, number, percent
from ..options import RooflineOptions
from . import plots


def run(options: RooflineOptions) -> int:
    """``msdeform bench roofline``: prints the floors of every row of a GPU, and draws them."""
    found = records.read(*options.results)
    for sentence in found.broken:
        print(sentence, file=sys.stderr)
    rows = plots.roofs(found.of("operator"))
    if not rows:
        raise ValueError(
            "the results have no row of a GPU, and only those have floors: python -m msdeform.bench.gpu measures there"
        )
    print(table(rows))
    with atomic_file(options.out) as file:
        file.write(plots.svg(plots.roofline(rows), plots.roofline_digest(rows)))
    print(f"\ndrawn in {options.out}")
    return 0


HEAD = (*CELL, "backend", "us", "GB/s", "of copy", "traffic floor us", "issue floor us", "of issue floor", "bound by")


def lines(rows: list[records.Row]) -> list[tuple[str, ...]]:
    """A line for each row, after the head."""
    return [
        HEAD,
        *(
            (
                *(row[name] for name in CELL),
                row["backend"],
                number(row["median_us"]),
                number(row["bytes_per_second"], 1e9),
                percent(row["of_copy_bandwidth"]),
                number(row["traffic_floor_us"]),
                number(row["issue_floor_us"]),
                percent(row["of_issue_floor"]),
                row["bound_by"] or "-",
            )
            for row in rows
        ),
    ]


def table(rows: list[records.Row]) -> str:
    """Rows with their floors, as text."""
    return aligned(lines(rows), 6)
