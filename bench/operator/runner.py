"""Runs jobs in processes of their own, within a time, and keeps their rows in a results file."""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ..harness import records
from ..harness.isolate import ChildFailed, answers
from ..harness.results_file import ResultsFile
from . import implementations
from .jobs import OF_OPERATOR, Job
from .worker import respond

START_LIMIT = 180.0  # seconds to import torch and an implementation, on a busy machine
_MOST_CRASHES = 3  # of one process's jobs, after which the others are given up


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
    groups: dict[tuple[bool, str], list[Job]] = {}  # that share a process: the operator's apart from the detectors'
    for job in jobs:
        if results.to_measure(*job.cells()):
            groups.setdefault((job.kind in OF_OPERATOR, job.backend), []).append(job)
    found = [*groups.values()]
    if processes == 1:
        return sum(_measure_group(group, settings, results) for group in found)
    size = -(-sum(map(len, found)) // processes)
    shares = [group[i :: -(-len(group) // size)] for group in found for i in range(-(-len(group) // size))]
    with ThreadPoolExecutor(processes) as pool:
        return sum(pool.map(lambda share: _measure_group(share, settings, results), shares))


def _measure_group(jobs: list[Job], settings: Settings, results: ResultsFile) -> int:
    """Jobs of one implementation, in as many processes as it takes; returns how many the deadline left."""
    backend, crashes = jobs[0].backend, 0
    reason = implementations.absent(backend, settings.device)
    answered = set()
    while jobs and reason is None:
        if time.monotonic() >= settings.deadline:
            return len(jobs)
        begun = -1
        request = (backend, jobs, settings.baseline, settings.device, settings.seconds, settings.threads)
        try:
            for answer in answers(respond, *request, start_limit=START_LIMIT, limit=settings.limit):
                if "missing" in answer:
                    reason = answer["missing"]
                elif "begin" in answer:
                    if time.monotonic() >= settings.deadline:
                        return len(jobs) - answer["begin"]
                    begun = answer["begin"]
                else:
                    answered.add(records.key(answer["row"]))
                    results.add(answer["row"])
                    print(".", end="", flush=True, file=sys.stderr)
            break
        except ChildFailed as error:
            crashes += 1
            failed = [row for job in jobs[max(begun, 0) : begun + 1] for row in job.unmeasured(str(error))]
            jobs = jobs[begun + 1 :]
            if begun < 0 or crashes == _MOST_CRASHES:  # it will not do better with the others
                failed += [row for job in jobs for row in job.unmeasured(f"given up: {error}")]
                jobs = []
            for row in failed:
                if records.key(row) not in answered:
                    results.add(row)
    if reason is not None:
        results.add({"kind": "missing", "backend": backend, "reason": reason})
    return 0
