"""Runs jobs in processes of their own, within a time, and keeps their rows in a results file."""

import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch

from ..harness import records
from ..harness.isolate import ChildFailed, answers
from ..harness.results_file import ResultsFile
from . import implementations
from .jobs import Job, groups

START_LIMIT = 180.0  # seconds to import torch and an implementation, on a busy machine
_MOST_CRASHES = 3  # of one process's jobs, after which the others are given up
_WORKER = "msdeform.bench.operator.worker"


@dataclass
class Settings:
    """How jobs are measured."""

    device: torch.device
    baseline: str | None = "reference"
    """what the operator's implementations alternate with"""
    seconds: float = 0.3
    """about how long each measurement lasts"""
    limit: float = 120.0
    """seconds that one row may take, compilation and check included"""
    deadline: float = float("inf")
    """of time.monotonic(): no job begins after it"""
    threads: int = 1
    """of a CPU"""


def measure(jobs: Sequence[Job], settings: Settings, results: ResultsFile, processes: int = 1) -> int:
    """Measure what is not recorded yet, in order; returns how many jobs the deadline left.

    `processes` at a time, for what is not timed: each backend's jobs are dealt out among them.
    """
    found = groups([job for job in jobs if results.to_measure(*job.cells())])
    if processes == 1:
        return sum(_measure_group(group, settings, results) for group in found)
    size = -(-sum(map(len, found)) // processes)
    shares = [group[i :: -(-len(group) // size)] for group in found for i in range(-(-len(group) // size))]
    with ThreadPoolExecutor(processes) as pool:
        return sum(pool.map(lambda share: _measure_group(share, settings, results), shares))


def _measure_group(jobs: list[Job], settings: Settings, results: ResultsFile) -> int:
    """Jobs of one implementation, in as many processes as it takes; returns how many the deadline left."""
    backend = jobs[0].backend
    reason = implementations.absent(backend, settings.device)
    if reason is not None:
        results.add({"kind": "missing", "backend": backend, "reason": reason})
        return 0
    crashes = 0
    while jobs:
        if time.monotonic() >= settings.deadline:
            return len(jobs)
        request = {
            "backend": backend,
            "baseline": settings.baseline,
            "device": str(settings.device),
            "seconds": settings.seconds,
            "threads": settings.threads,
            "jobs": [{"kind": job.kind, **asdict(job)} for job in jobs],
        }
        begun, missing = -1, set()
        try:
            for answer in answers(_WORKER, request, start_limit=START_LIMIT, limit=settings.limit):
                if "missing" in answer:
                    results.add({"kind": "missing", "backend": backend, "reason": answer["missing"]})
                    return 0
                if "begin" in answer:
                    if time.monotonic() >= settings.deadline:
                        return len(jobs) - answer["begin"]
                    begun = answer["begin"]
                    missing = set(jobs[begun].cells())
                else:
                    missing.discard(records.key(answer["row"]))
                    results.add(answer["row"])
                    print(".", end="", flush=True, file=sys.stderr)
            return 0
        except ChildFailed as error:
            failure = str(error)
        crashes += 1
        if begun >= 0:
            _fail(jobs[begun : begun + 1], failure, missing, results)
        jobs = jobs[begun + 1 :]
        if begun < 0 or crashes == _MOST_CRASHES:  # it will not do better with the others
            _fail(jobs, f"given up: {failure}", {key for job in jobs for key in job.cells()}, results)
            return 0
    return 0


def _fail(jobs: Iterable[Job], failure: str, missing: set[tuple[object, ...]], results: ResultsFile) -> None:
    for job in jobs:
        for row in job.unmeasured(failure):
            if records.key(row) in missing:
                results.add(row)
