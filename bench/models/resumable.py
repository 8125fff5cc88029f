"""Benchmarks that measure row after row for some minutes, and go on in the next call where they stopped."""

import sys
import time
from collections.abc import Callable, Iterable

import torch

from ..harness.records import Row
from ..harness.results_file import ResultsFile, open_results
from ..options import ExplainOptions, SeedsOptions, TrainingOptions

Planned = Iterable[tuple[tuple[object, ...], Callable[[], Row | None]]]
"""the key of each row, and what measures it; that gives None where the time was too short"""


def results_file(
    name: str, options: ExplainOptions | SeedsOptions | TrainingOptions, device: torch.device, *sources: str
) -> ResultsFile:
    """Where the rows of ``msdeform bench NAME`` go; `sources` decide them, beside the files that decide all."""
    keep, again = not options.quick and device.type == "cuda", getattr(options, "again", False)
    return open_results(f"msdeform bench {name}", options, device, measured=sources, keep=keep, again=again)


def measure_missing(planned: Planned, book: ResultsFile, minutes: float) -> int:
    """Measures the rows that are not recorded yet, as long as there is time; returns how many are left."""
    end = time.monotonic() + 60 * minutes
    left = 0
    for key, measure in planned:
        if not book.to_measure(key):
            continue
        row = None
        if time.monotonic() < end:
            print(*key, sep=", ", file=sys.stderr, flush=True)
            row = measure()
        left += row is None
        if row is not None:
            book.add(row)
    book.report()
    if left:
        print(f"{left} rows are left for want of time; the same command goes on with them\n")
    return left
