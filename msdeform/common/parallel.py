"""Many small jobs in threads, behind a progress bar: reading and decoding files lets other threads run."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .progress import progress_bar

T = TypeVar("T")
R = TypeVar("R")

# jobs handed to a thread at once, and how many make a bar worth showing
BATCH = 32
MANY = 1000


def in_threads(what: str, do: Callable[[T], R], items: Sequence[T], *, shown: bool = True) -> list[R]:
    """``do`` of each item, in order; what one raises ends all.

    Args:
        what: said beside the bar, which is there from MANY items on.
        do: called in several threads at once.
        items: one for each job.
        shown: whether to show a bar at all.
    """
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    done: list[R] = []
    pool = ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)))
    try:
        with progress_bar(what, len(items), shown=shown and len(items) >= MANY) as advance:
            for results in pool.map(lambda batch: _each(do, batch), batches):
                done += results
                for _ in results:
                    advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return done


def _each(do: Callable[[T], R], batch: Iterable[T]) -> list[R]:
    return [do(item) for item in batch]
