"""Benchmarks that measure row after row for some minutes, and go on in the next call where they stopped."""

import sys
import time
from collections.abc import Callable, Iterable

from ..harness.records import Row
from ..harness.results_file import ResultsFile

Planned = Iterable[tuple[tuple[object, ...], Callable[[], Row | None]]]
"""the key of each row, and what measures it: None, or a row that is `unfinished`, where the time was too short"""


def measure_missing(planned: Planned, results: ResultsFile, minutes: float) -> int:
    """Measures the rows that are not recorded yet, as long as there is time; returns how many are left."""
    end = time.monotonic() + 60 * minutes
    left = 0
    for key, measure in planned:
        if not results.to_measure(key):
            continue
        row = None
        if time.monotonic() < end:
            print(*key, sep=", ", file=sys.stderr, flush=True)
            row = measure()
        left += row is None or row.get("unfinished", False)
        if row is not None:
            results.add(row)
    results.report()
    if left:
        print(f"{left} rows are left for want of time; the same command goes on with them\n")
    return left
