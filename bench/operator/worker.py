"""Measures jobs in the process that `runner` gives an implementation.

An operator's job, one function on one case, is held against float64 on the very inputs it is timed on; what fails gets
no speed. Each call alternates with the baseline's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import torch

from ...kernels.diagnostics.checks import DTYPES
from ..gpu import kernels
from ..harness import measure
from ..harness.isolate import Answer
from ..harness.records import Row
from ..harness.tables import HAS_NONE
from . import bounds, cases, implementations, workloads
from .implementations import Implementation
from .inputs import input_sets, make_inputs
from .jobs import FUSED, OF_OPERATOR, Correctness, Job, Kernels, Operator
from .workloads import Workload


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
    sets = input_sets(case, dtype, device) if timed else [make_inputs(case, dtype, device, seed=0)]
    # the check of a module is its operator's, at this shape and dtype
    checks = workloads.checked(case, subject, sets[0], fused)
    if not timed:
        for row in job.unmeasured(None):
            yield {**row, **checks[row["direction"]]._asdict(), "ours": subject.ours}
        return
    failing = next((check for check in checks.values() if check.failure is not None), None)
    checks["both"] = failing or checks["backward"]

    def work_of(one: Implementation) -> Workload:
        if job.function == "MSDeformAttn":
            return workloads.module(case, one, sets, dtype, device)
        return workloads.operator(case, one, sets, fused)

    if baseline is not None and (baseline.name == subject.name or baseline.reason):
        baseline = None
    work, beside = work_of(subject), None if baseline is None else work_of(baseline)
    copy = measure.copy_bandwidth(device)
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
            row.update(bounds.of_row(row, case, sets[0], fused, copy, device))
        yield row


def _numbers(direction: str, work: Workload, beside: Workload | None, device: torch.device, seconds: float) -> Row:
    timing, ratio = None, None
    with torch.set_grad_enabled(direction != "forward"):
        if beside is not None:
            try:
                calls = _call(work, direction), _call(beside, direction)
                timing, ratio = measure.time_pair(*calls, device, seconds)
            except Exception:  # the baseline's trouble; if it is not, the call alone meets it below
                timing = None
        if timing is None:
            timing = measure.time_call(_call(work, direction), device, seconds)
        # of a forward and its backward where there is one, which is what a training step needs
        peak = measure.peak_memory_mb(work.forward if direction == "forward" else work.both, device)
        saved = None if direction == "forward" else measure.saved_memory_mb(lambda: work.forward(0))
    return {**asdict(timing), "peak_mb": peak, "saved_mb": saved, **({} if ratio is None else asdict(ratio))}


def _call(work: Workload, direction: str) -> Callable[[int], object]:
    """What is timed; the forwards that a backward needs are not."""
    if direction != "backward":
        return work.forward if direction == "forward" else work.both
    outputs = [work.forward(i) for i in range(len(work.leaves))]
    return lambda i: work.gradients(i, outputs[i % len(outputs)], keep=True)
