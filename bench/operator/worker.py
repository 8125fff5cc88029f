"""``python -m msdeform.bench.operator.worker FD``: measures jobs in the process that `runner` gives an implementation.

An operator's job, one function on one case, is held against float64 on the very inputs it is timed on; what fails gets
no speed. Each call alternates with the baseline's.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from ...kernels.diagnostics.checks import DTYPES
from ..gpu import kernels
from ..harness import measure
from ..harness.isolate import Answer, Message, serve
from ..harness.records import Row
from ..harness.tables import HAS_NONE
from . import bounds, cases, implementations, workloads
from .implementations import Implementation
from .inputs import input_sets, make_inputs
from .jobs import FUSED, KINDS, OF_OPERATOR, Correctness, Job, Kernels, Operator
from .workloads import Workload


class OperatorMeasurer:
    """Measures the operator of one implementation, job after job, beside a baseline."""

    def __init__(
        self, subject: Implementation, baseline: Implementation | None, device: torch.device, seconds: float
    ) -> None:
        self.subject, self.device, self.seconds = subject, device, seconds
        self.baseline = None if baseline is None or baseline.name == subject.name or baseline.reason else baseline
        self.copy = measure.copy_bandwidth(device)

    def rows(self, job: Operator) -> Iterator[Row]:
        """A row for each direction; one that failed its check gets no speed."""
        subject, case, dtype = self.subject, cases.find(job.case, job.locations), DTYPES[job.dtype]
        fused = job.function in FUSED
        if subject.function(fused) is None:
            yield from job.unmeasured(HAS_NONE)
            return
        sets = input_sets(case, dtype, self.device)

        def work_of(one: Implementation) -> Workload:
            if job.function == "MSDeformAttn":
                return workloads.module(case, one, sets, dtype, self.device)
            return workloads.operator(case, one, sets, fused)

        # the check of a module is its operator's, at this shape and dtype
        checks = workloads.checked(case, subject, sets[0], fused)
        failing = next((check for check in checks.values() if check.failure is not None), None)
        checks["both"] = failing or checks["backward"]
        work, beside = work_of(subject), None if self.baseline is None else work_of(self.baseline)
        for row in job.unmeasured(None):
            direction = row["direction"]
            row |= {**checks[direction]._asdict(), **subject.about(fused)}
            row["setting"] = None if direction == "forward" else subject.setting
            if row["failure"] is None:
                try:
                    row.update(self._numbers(direction, work, beside))
                except torch.OutOfMemoryError:
                    row["failure"] = "out of memory"
                except Exception as error:  # an implementation may pass its check and fail in the next call
                    row["failure"] = workloads.sentence(error)
            # the module has matrix products besides
            if row["median_us"] is not None and self.copy is not None and job.function != "MSDeformAttn":
                row.update(bounds.of_row(row, case, sets[0], fused, self.copy, self.device))
            yield row

    def _numbers(self, direction: str, work: Workload, beside: Workload | None) -> Row:
        timing, ratio = None, None
        with torch.set_grad_enabled(direction != "forward"):
            if beside is not None:
                try:
                    calls = _call(work, direction), _call(beside, direction)
                    timing, ratio = measure.time_pair(*calls, self.device, self.seconds)
                except Exception:  # the baseline's trouble; if it is not, the call alone meets it below
                    timing = None
            if timing is None:
                timing = measure.time_call(_call(work, direction), self.device, self.seconds)
            # of a forward and its backward where there is one, which is what a training step needs
            peak = measure.peak_memory_mb(work.forward if direction == "forward" else work.both, self.device)
            saved = None if direction == "forward" else measure.saved_memory_mb(lambda: work.forward(0))
        numbers: Row = {**asdict(timing), "peak_mb": peak, "saved_mb": saved}
        if ratio is not None and self.baseline is not None:
            numbers |= {**asdict(ratio), "baseline": self.baseline.name}
        return numbers


def _call(work: Workload, direction: str) -> Callable[[int], object]:
    """What is timed; the forwards that a backward needs are not."""
    if direction == "forward":
        return work.forward
    if direction == "both":
        return work.both
    outputs = [work.forward(i) for i in range(len(work.leaves))]
    return lambda i: work.gradients(i, outputs[i % len(outputs)], keep=True)


def _measurer(request: dict[str, Any], device: torch.device) -> Callable[[Any], Iterator[Row]] | str:
    """What measures the jobs of a request, or why they cannot be measured here."""
    if request["jobs"][0]["kind"] not in OF_OPERATOR:
        from ..models import speed

        return functools.partial(speed.rows, device=device)
    subject = implementations.find(request["backend"], device)
    if subject.reason is not None:
        return subject.reason

    @functools.cache
    def measurer() -> OperatorMeasurer:
        baseline = None if request["baseline"] is None else implementations.find(request["baseline"], device)
        return OperatorMeasurer(subject, baseline, device, request["seconds"])

    def rows(job: Job) -> Iterator[Row]:
        if isinstance(job, Correctness):
            return correctness(job, subject, device)
        if isinstance(job, Kernels):
            return kernels.rows(job, subject, device)
        assert isinstance(job, Operator)
        return measurer().rows(job)

    return rows


def correctness(job: Correctness, subject: Implementation, device: torch.device) -> Iterator[Row]:
    """A row for the output, and one for the gradients."""
    case, fused = cases.find(job.case, job.locations), job.function in FUSED
    if subject.function(fused) is None:
        yield from job.unmeasured(HAS_NONE)
        return
    checks = workloads.checked(case, subject, make_inputs(case, DTYPES[job.dtype], device, seed=0), fused)
    for row in job.unmeasured(None):
        yield {**row, **checks[row["direction"]]._asdict(), "ours": subject.ours}


def respond(request: Message, answer: Answer) -> None:
    """Answers with ``{"missing": reason}``, or for each job with ``{"begin": index}`` and its rows."""
    torch.set_num_threads(request["threads"])
    rows = _measurer(request, torch.device(request["device"]))
    if isinstance(rows, str):
        answer(missing=rows)
        return
    for index, job in enumerate(request["jobs"]):
        answer(begin=index)
        for row in rows(KINDS[job.pop("kind")](**job)):
            answer(row=row)
            if "CUDA error" in (row["failure"] or ""):  # the device answers this process no more: another goes on
                raise SystemExit(row["failure"])


if __name__ == "__main__":
    serve(respond)
