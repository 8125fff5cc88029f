"""Runs jobs in processes of their own, within a time, and keeps their rows in a results file.

An operator's job, one function on one case, is held against float64 on the very inputs it is timed on; what fails gets
no speed. Each call alternates with the baseline's.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch

from ...kernels.diagnostics.checks import DTYPES
from ..gpu import kernels
from ..harness import measure as timing
from ..harness import records
from ..harness.isolate import Answer, ChildFailed, answers
from ..harness.records import Row
from ..harness.results_file import ResultsFile
from ..harness.tables import HAS_NONE
from . import bounds, cases, implementations, workloads
from .implementations import Implementation
from .inputs import OperatorInputs, input_sets, make_inputs
from .jobs import FUSED, OF_OPERATOR, Correctness, Job, Kernels, Operator
from .workloads import Workload

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


def respond(
    answer: Answer,
    backend: str,
    jobs: Sequence[Job],
    baseline: str | None,
    device: torch.device,
    seconds: float,
    threads: int,
) -> None:
    """Answers with ``missing=reason``, or for each job with ``begin=index`` and its rows."""
    torch.set_num_threads(threads)
    operators = jobs[0].kind in OF_OPERATOR
    subject = implementations.find(backend, device) if operators else Implementation(backend)
    if subject.reason is not None:
        answer(missing=subject.reason)
        return
    beside = None
    if baseline is not None and any(isinstance(job, Operator) for job in jobs):
        beside = implementations.find(baseline, device)
    for index, job in enumerate(jobs):
        answer(begin=index)
        rows: Iterable[Row]
        if isinstance(job, Operator | Correctness):
            rows = operator_rows(job, subject, beside, device, seconds)
        elif isinstance(job, Kernels):
            rows = kernels.rows(job, subject, device)
        else:
            from ..models import speed

            rows = speed.rows(job, device)
        for row in rows:
            answer(row=row)
            if "CUDA error" in (row["failure"] or ""):  # the device answers this process no more: another goes on
                raise SystemExit(row["failure"])


def operator_rows(
    job: Operator | Correctness,
    subject: Implementation,
    baseline: Implementation | None,
    device: torch.device,
    seconds: float,
) -> Iterator[Row]:
    """A row for each direction of a job; one that failed its check gets no speed."""
    case, dtype, fused = cases.find(job.case, job.locations), DTYPES[job.dtype], job.function in FUSED
    if subject.function(fused) is None:
        yield from job.unmeasured(HAS_NONE)
        return
    timed = isinstance(job, Operator)
    sets = _sets(case, dtype, device) if timed else [make_inputs(case, dtype, device, seed=0)]
    # the check of a module is its operator's, at this shape and dtype
    checks = workloads.checked(case, subject, sets[0], fused)
    if not timed:
        for row in job.unmeasured(None):
            yield {**row, **checks[row["direction"]]._asdict(), "ours": subject.ours}
        return

    def work_of(one: Implementation) -> Workload:
        if job.function == "MSDeformAttn":
            return workloads.module(case, one, sets, dtype, device)
        return workloads.operator(case, one, sets, fused)

    if baseline is not None and (baseline.name == subject.name or baseline.reason):
        baseline = None
    work, beside = work_of(subject), None if baseline is None else work_of(baseline)
    copy = timing.copy_bandwidth(device)
    for row in job.unmeasured(None):
        direction = row["direction"]
        row |= {**checks[direction]._asdict(), **subject.about(fused)}
        row["setting"] = None if direction == "forward" else subject.setting
        if row["failure"] is None:
            try:
                row.update(_numbers(direction, work, beside, device, seconds))
            except Exception as error:  # an implementation may pass its check and fail in the next call
                row["failure"] = workloads.sentence(error)
        if baseline is not None and row["ratio"] is not None:
            row["baseline"] = baseline.name
        # the module has matrix products besides
        if row["median_us"] is not None and copy is not None and job.function != "MSDeformAttn":
            try:
                row.update(bounds.of_row(row, case, sets[0], fused, copy, device))
            except Exception as error:  # a limit that is not known costs no time that is measured
                print(f"no floors of {row['backend']}: {workloads.sentence(error)}", file=sys.stderr)
        yield row


@lru_cache(maxsize=1)
def _sets(case: cases.Case, dtype: torch.dtype, device: torch.device) -> list[OperatorInputs]:
    """Input sets, which take seconds to draw on the host: kept for the other functions on the same case."""
    return input_sets(case, dtype, device)


def _numbers(direction: str, work: Workload, beside: Workload | None, device: torch.device, seconds: float) -> Row:
    taken, ratio = None, None
    with torch.set_grad_enabled(direction != "forward"):
        if beside is not None:
            try:
                calls = _call(work, direction), _call(beside, direction)
                taken, ratio = timing.time_pair(*calls, device, seconds)
            except Exception:  # the baseline's trouble; if it is not, the call alone meets it below
                taken = None
        if taken is None:
            taken = timing.time_call(_call(work, direction), device, seconds)
        # of a forward and its backward where there is one, which is what a training step needs
        peak = timing.peak_memory_mb(work.forward if direction == "forward" else work.both, device)
        saved = None if direction == "forward" else timing.saved_memory_mb(lambda: work.forward(0))
    return {**asdict(taken), "peak_mb": peak, "saved_mb": saved, **({} if ratio is None else asdict(ratio))}


def _call(work: Workload, direction: str) -> Callable[[int], object]:
    """What is timed; the forwards that a backward needs are not."""
    if direction != "backward":
        return work.forward if direction == "forward" else work.both
    outputs = [work.forward(i) for i in range(len(work.leaves))]
    return lambda i: work.gradients(i, outputs[i % len(outputs)], keep=True)
