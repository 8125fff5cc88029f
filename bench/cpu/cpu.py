"""``msdeform bench cpu``: the operator's implementations on a CPU, all in turn, with one thread and with more.

A case, a dtype and a function are a cell, which has a process of its own. An implementation that crashes or hangs there
is left out, and the cell begins again without it. Cells that are recorded are not measured again.

In its process, each implementation is held against float64 first, with the most threads; what fails gets no speed. The
others then take turns, so that whatever else the machine does slows all of them: a turn is one call that is not timed,
which finds the caches as the last turn of another left them, and the median of as many as last some milliseconds. A
call that is itself longer than half a second is alone in its turn.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import NamedTuple
from unittest import mock

import torch

from ...kernels.diagnostics.checks import DTYPES
from ...kernels.diagnostics.options import BACKENDS
from ..harness import measure, records
from ..harness.isolate import Answer, ChildFailed, answers
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import HAS_NONE, aligned
from ..operator import cases, implementations, workloads
from ..operator.implementations import Implementation
from ..operator.inputs import make_inputs
from ..operator.jobs import FUSED, RATIO, TIMING
from ..operator.runner import START_LIMIT
from ..operator.workloads import Check, Workload
from ..options import CPU_IMPLEMENTATIONS, CpuOptions
from .tables import DIRECTIONS, MAIN, OURS, all_rows

_TURN = 0.02  # seconds
_LONG = 0.5  # seconds of a call in which caches that begin cold do not count
_MOST_CALLS = 20  # in a turn
_MOST_ROUNDS = 50
_QUIET = 0.03  # seconds before a turn, in which OpenMP's threads of the last one give up waiting by spinning

Begin = Callable[[str], object]
"""told the name of the implementation that is about to run"""


class Cell(NamedTuple):
    """What one process measures."""

    case: str
    dtype: str
    function: str
    threads: tuple[int, ...]
    backends: tuple[str, ...]

    def row(self, backend: str, threads: int, direction: str, failure: str | None = None) -> Row:
        """One without numbers."""
        of: Row = {"kind": "cpu", "case": self.case, "dtype": self.dtype, "function": self.function}
        of |= {"direction": direction, "threads": threads, "backend": backend, "ours": backend in BACKENDS}
        numbers = (*Check._fields, *TIMING, *RATIO, "ns_a_point", "baseline", "composed", "limits", "shape", "points")
        return {**of, **dict.fromkeys(numbers), "failure": failure}

    def failed(self, backends: Sequence[str], failure: str) -> list[Row]:
        """Rows without numbers of all that was to be measured of these implementations."""
        return [self.row(*one, failure) for one in product(backends, self.threads, DIRECTIONS)]


def run(options: CpuOptions) -> int:
    """``msdeform bench cpu``; returns 1 if one of our own backends failed its check."""
    results = open_results("msdeform bench cpu", options, torch.device("cpu"), measured=("bench/cpu/cpu.py",))
    cells = plan(options)
    absent = {name: implementations.absent(name, torch.device("cpu")) for cell in cells for name in cell.backends}
    missing = {name: reason for name, reason in absent.items() if reason is not None}
    # processes started here wait in OpenMP as those of PyTorch's users do: the command line asks for another way, which
    # is better for a busy machine and slower for calls of few milliseconds
    with mock.patch.dict(os.environ):
        os.environ.pop("OMP_WAIT_POLICY", None)
        for cell in cells:
            keys = [records.key(row) for row in cell.failed([one for one in cell.backends if one not in missing], "")]
            if not results.to_measure(*keys):
                continue
            print(f"{cell.case}, {cell.dtype}, {cell.function}", file=sys.stderr, flush=True)
            for row in measured(cell, options, missing):
                results.add(row)
    for name, reason in missing.items():
        results.add({"kind": "missing", "backend": name, "reason": reason})
    results.report()
    rows = results.of("cpu")
    print(aligned(all_rows(rows), 6))
    return 1 if any(row["ours"] and row["failure"] is not None for row in rows) else 0


def plan(options: CpuOptions) -> list[Cell]:
    """The cells of a command, in order."""
    threads = tuple(dict.fromkeys(options.threads or (1, torch.get_num_threads())))
    backends = options.backends or CPU_IMPLEMENTATIONS
    cells = [
        Cell(case, dtype, function, threads, backends)
        for case in options.cases or cases.ON_A_CPU
        for dtype in options.dtypes
        for function in options.functions
    ]
    if not options.cases and not options.backends:
        cells += [
            Cell(case, "float32", MAIN, threads, (OURS,))
            for case in cases.AREAS
            if case not in cases.ON_A_CPU and "float32" in options.dtypes and MAIN in options.functions
        ]
    return cells


def measured(cell: Cell, options: CpuOptions, missing: dict[str, str]) -> list[Row]:
    """The rows of a cell, by as many processes as it takes; `missing` gets what cannot be measured here, and why."""
    failed: dict[str, str] = {}
    rows: list[Row] = []
    while left := [name for name in cell.backends if name not in failed and name not in missing]:
        request = (cell._replace(backends=tuple(left)), options.seconds, options.rounds)
        rows, last = [], None
        try:
            for answer in answers(respond, *request, start_limit=START_LIMIT, limit=options.limit):
                if "missing" in answer:
                    missing[answer["missing"]] = answer["reason"]
                elif "row" in answer:
                    rows.append(answer["row"])
                last = answer.get("begin", last)
        except ChildFailed as error:
            if last is None:  # before any implementation was found
                return cell.failed(left, str(error))
            failed[last] = str(error)
            rows = []
        else:
            break
    return rows + [row for name, failure in failed.items() for row in cell.failed([name], failure)]


def cell_rows(
    cell: Cell, found: Sequence[Implementation], seconds: float, rounds: int, begin: Begin = lambda _: None
) -> Iterator[Row]:
    """A row for each implementation, number of threads and direction of a cell."""
    case, fused = cases.find(cell.case), cell.function in FUSED
    inputs = make_inputs(case, DTYPES[cell.dtype], torch.device("cpu"), seed=0)
    torch.set_num_threads(max(cell.threads))
    truth = workloads.truth(case, inputs, fused)
    work: dict[str, Workload] = {}
    checks: dict[str, dict[str, Check]] = {}
    for subject in found:
        begin(subject.name)
        if subject.function(fused) is None:
            checks[subject.name] = dict.fromkeys(DIRECTIONS, Check(None, None, HAS_NONE))
            continue
        work[subject.name] = workloads.operator(case, subject, [inputs], fused)
        checks[subject.name] = workloads.check(work[subject.name], truth)
    for count in cell.threads:
        torch.set_num_threads(count)
        for direction in DIRECTIONS:
            right = [name for name in work if checks[name][direction].failure is None]
            with torch.set_grad_enabled(direction != "forward"):
                calls = {name: getattr(work[name], direction) for name in right}
                times, failures = take_turns(calls, seconds, rounds, begin)
            for subject in found:
                row = cell.row(subject.name, torch.get_num_threads(), direction)
                row |= {**subject.about(fused), "shape": case.shape, "points": case.points}
                row |= {**checks[subject.name][direction]._asdict(), **numbers(times, subject.name, case.points)}
                yield row | {"failure": row["failure"] or failures.get(subject.name)}


def numbers(times: dict[str, list[float]], name: str, points: int) -> Row:
    """The numbers of a row, if it was timed. `ratio` is how many times as long as ours it takes."""
    if name not in times:
        return {}
    timing = measure.summary(times[name])
    row = asdict(timing) | {"ns_a_point": 1e3 * timing.median_us / points, "baseline": OURS if OURS in times else None}
    return row if name == OURS or OURS not in times else row | asdict(measure.paired(times[name], times[OURS]))


def take_turns(
    calls: dict[str, Callable[[int], object]], seconds: float, rounds: int, begin: Begin = lambda _: None
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Microseconds of a call in each round, by name, and what went wrong with those that have none."""
    repeats: dict[str, int] = {}  # 0: long ones
    times: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    end = time.perf_counter() + seconds
    done = 0
    while done < rounds or (done < _MOST_ROUNDS and time.perf_counter() < end):
        for name, call in calls.items():
            if name in failures:
                continue
            begin(name)
            time.sleep(_QUIET)
            try:
                turn = [_once(call)]
                if name not in repeats:
                    first = turn[0] / 1e6
                    repeats[name] = 0 if first > _LONG else min(_MOST_CALLS, int(_TURN / first) + 1)
                if repeats[name] > 0:
                    turn = [_once(call) for _ in range(repeats[name])]
            except Exception as error:  # an implementation may pass its check and fail in the next call
                failures[name] = workloads.sentence(error)
                times.pop(name, None)
                continue
            times.setdefault(name, []).append(statistics.median(turn))
        done += 1
    return times, failures


def _once(call: Callable[[int], object]) -> float:
    start = time.perf_counter()
    call(0)
    return (time.perf_counter() - start) * 1e6


def respond(answer: Answer, cell: Cell, seconds: float, rounds: int) -> None:
    """Answers with ``missing=name, reason=...``, ``begin=name`` before each piece of work, and rows."""

    def begin(name: str) -> None:
        answer(begin=name)

    found = []
    for name in cell.backends:
        begin(name)
        one = implementations.find(name, torch.device("cpu"))
        if one.reason is None:
            found.append(replace(one, name=name))
        else:
            answer(missing=name, reason=one.reason)
    if found:
        for row in cell_rows(cell, found, seconds, rounds, begin):
            answer(row=row)
