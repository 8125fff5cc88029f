"""Measures one cell of :mod:`.cpu`, every implementation in this process.

A cell is a case, a dtype and a function. Each implementation is held against float64 first, with the most threads; what
fails gets no speed. The others then take turns, so that whatever else the machine does slows all of them: a turn is one
call that is not timed, which finds the caches as the last turn of another left them, and the median of as many as last
some milliseconds. A call that is itself longer than half a second is alone in its turn.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any, NamedTuple

import torch

from ...kernels.diagnostics.checks import DTYPES
from ...kernels.diagnostics.options import BACKENDS
from ..harness import measure
from ..harness.isolate import Answer
from ..harness.measure import Ratio, Timing
from ..harness.records import Row
from ..harness.tables import HAS_NONE
from ..operator import cases, implementations, workloads
from ..operator.implementations import Implementation
from ..operator.inputs import make_inputs
from ..operator.jobs import FUSED
from ..operator.workloads import Check, Workload
from .tables import DIRECTIONS, OURS

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
        numbers = (*Check._fields, *Timing.__dataclass_fields__, *Ratio.__dataclass_fields__, "ns_a_point", "baseline")
        return {**of, **dict.fromkeys((*numbers, "composed", "limits", "shape", "points")), "failure": failure}

    def failed(self, backends: Sequence[str], failure: str) -> list[Row]:
        """Rows without numbers of all that was to be measured of these implementations."""
        return [self.row(*one, failure) for one in product(backends, self.threads, DIRECTIONS)]


def measured(
    case: cases.Case,
    cell: Cell,
    found: Sequence[Implementation],
    *,
    seconds: float,
    rounds: int,
    begin: Begin = lambda _: None,
) -> Iterator[Row]:
    """A row for each implementation, number of threads and direction of a cell, whose case this is."""
    fused = cell.function in FUSED
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
        one = workloads.check(work[subject.name], truth)
        # a training step needs both: a forward that is wrong makes its backward worth nothing
        checks[subject.name] = {
            "forward": one["forward"],
            "both": one["backward"] if one["forward"].failure is None else one["forward"],
        }
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
    found = []
    for name in cell.backends:
        answer(begin=name)
        one = implementations.find(name, torch.device("cpu"))
        if one.reason is None:
            found.append(replace(one, name=name))
        else:
            answer(missing=name, reason=one.reason)
    if found:
        how: Any = {"seconds": seconds, "rounds": rounds, "begin": lambda name: answer(begin=name)}
        for row in measured(cases.find(cell.case), cell, found, **how):
            answer(row=row)
