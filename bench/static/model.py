"""``msdeform bench model``: what should bound each kernel on an H200, from counts of its execution and moved bytes.

A kernel has parts: issue of machine instructions; wavefronts that L1 does, one a cycle; rows that L2 is read for at
random; sectors of 32 bytes that atomics add to in L2; compulsory bytes of memory, and those handed from kernel to
kernel; what the passes of a radix sort move, when nothing else runs; and the gap before the next. The longest part is a
lower bound of its time, in which latency is not; a call of several kernels takes the sum of their bounds, and the gaps.
It is a prediction for the published encoder at batch 2, from counts of a smaller one.
"""

import torch

from ..harness.records import Records, Row
from ..harness.tables import Line, number
from ..operator.bounds import SCHEDULERS, compulsory_bytes
from ..operator.cases import find
from ..operator.inputs import OperatorInputs
from . import counts
from .counts import ENCODER, Run

CASE = "encoder-800x1066-b2"
GPU = "H200"
WALK = 32  # points that one program of the sorted backward adds up, one after the other
# what a second does, of each part: no rate was measured here, and of L2 and reductions (1.3 to 3 TB/s) they are guesses
_CYCLES = 132 * 1.98e9  # of all multiprocessors
_COPY = 4.3e12  # bytes; told of another such machine
_RATES = {
    "issue": SCHEDULERS * _CYCLES,
    "L1": _CYCLES,
    "L2": 5.5e12,
    "reductions": 2e12,
    "memory": _COPY,
    "sort": _COPY,
}
_GAP = 2.0  # microseconds between two kernels of a stream, a guess
PARTS = (*_RATES, "gaps")
# the sorted backward's kernels by what they do; shares where a cell may hold thousands of points
_SORTED = {
    "keys": "keys",
    "cells": "points by cell",
    "shares": "shares",
    "pixels": "pixels",
    "points": "gradients",
}
_SORT_PASSES = 4  # of 8 bits each, over 32-bit keys with 64-bit places
_SORT_LAUNCHES = 7  # a guess: places, histogram, its sum, and a pass each
_SECTOR = 32  # bytes


Stages = dict[str, dict[str, float]]
"""of each kernel, one after the other, the microseconds of its parts"""


def table(found: Records) -> list[Line]:
    """A head, and a line for each recorded call: every part's microseconds, and which is the longest."""
    lines: list[Line] = [("call", "dtype", "implementation", *PARTS, "at least", "bound by")]
    calls = [run for run in counts.latest(found).values() if (run[0]["case"], run[0]["arch"]) == (ENCODER, 90)]
    predictions = [(predicted(run), run[0]) for run in calls]
    for stages, row in sorted(predictions, key=lambda pair: (_kind(pair[1]), pair[1]["dtype"], least(pair[0]))):
        parts = {name: sum(stage.get(name, 0.0) for stage in stages.values()) for name in PARTS}
        longest = max(parts, key=lambda name: parts[name])
        texts = (number(parts[name]) if parts[name] else "-" for name in PARTS)
        lines.append((row["call"], row["dtype"], row["implementation"], *texts, number(least(stages)), longest))
    return lines


def least(stages: Stages) -> float:
    """Microseconds that these kernels, one after the other, take at least: what a kernel does overlaps."""
    return sum(
        max(part for name, part in parts.items() if name != "gaps") + parts.get("gaps", 0.0)
        for parts in stages.values()
    )


def _kind(row: Row) -> tuple[str, bool]:
    return row["call"].split()[0], "fused" not in row["call"]


def predicted(run: Run) -> Stages:
    """Microseconds of each part of the time of each kernel of a recorded call, of PyTorch's sort and fill between."""
    if "sorted" in run[0]["call"]:
        return _sorted(run)
    case, row = find(CASE), run[0]
    dtype = getattr(torch, row["dtype"])
    inputs = _meta_inputs(dtype)
    direction = row["call"].split()[0]
    moved = compulsory_bytes(case, inputs, fused="fused" in row["call"], direction=direction)
    stages = {row["kernel"]: _parts(row, memory=moved)}
    if direction == "backward":
        # deformops adds in value's dtype unless told otherwise; all others of the recorded ones in float32
        narrow = row["implementation"] == "deformops" and "fp32acc" not in row["call"]
        itemsize, numbers = dtype.itemsize if narrow else 4, inputs.value.numel()
        stages["zeros"] = _parts(memory=numbers * itemsize)
        if dtype.itemsize != itemsize:
            stages["rounding"] = _parts(memory=numbers * (itemsize + dtype.itemsize))
    return stages


def _parts(row: Row | None = None, gaps: int = 1, **amounts: float) -> dict[str, float]:
    """The parts of a kernel's time, from its counts and from bytes."""
    if row is not None:
        case = find(CASE)
        amounts |= {"issue": counts.issued(row), "L1": row["wavefronts"], "reductions": row["reductions"] * _SECTOR}
        amounts |= {n: amounts[n] * case.B * case.queries * case.H for n in ("issue", "L1", "reductions")}
    return {name: 1e6 * x / _RATES[name] for name, x in amounts.items() if x} | {"gaps": gaps * _GAP}


def _sorted(run: Run) -> Stages:
    """The kernels of a sorted backward, with all that passes between them going through memory."""
    recorded = [row["kernel"] for row in run]
    if recorded not in (list(_SORTED), [kernel for kernel in _SORTED if kernel != "shares"]):
        raise ValueError(f"the sorted backward: expected {', '.join(_SORTED)}, got {', '.join(recorded)} recorded")
    case, fused = find(CASE), "fused" in run[0]["call"]
    inputs = _meta_inputs(getattr(torch, run[0]["dtype"]))
    rows = case.B * case.queries * case.H
    points = rows * case.L * case.P
    row_bytes = case.D * inputs.value.itemsize
    _, *_, sampled, weighed = inputs.of(fused)
    places = points * (2 * sampled.itemsize + weighed.itemsize)
    value = case.B * case.S * case.H * row_bytes
    key, order, record = 4, 8, 16
    # of every cell, and of every walk as if it began inside one; where each begins and ends
    sums = (case.B * case.S * case.H + points / WALK) * 4 * case.D * 4
    ends = case.B * case.S * case.H * 4 * 4
    memory = {
        "keys": places + points * (key + record),
        "points by cell": points * (key + order + 2 * record) + value + rows * row_bytes + sums + 3 * ends,
        "shares": 0.0,  # of the few crowded cells alone
        "pixels": sums + 2 * ends + value,
        "gradients": points * record + places,
    }
    # grad_output and records lie anywhere; value is read where it was a moment ago
    random = {"points by cell": points * (row_bytes + 2 * _SECTOR)}
    names = [(_SORTED[row["kernel"]], row) for row in run]
    stages = {name: _parts(row, memory=memory[name], L2=random.get(name, 0.0)) for name, row in names}
    stages["sort"] = _parts(gaps=_SORT_LAUNCHES, sort=2 * _SORT_PASSES * points * (key + order))
    stages["zeros"] = _parts(memory=2 * ends)
    return stages


def _meta_inputs(dtype: torch.dtype) -> OperatorInputs:
    """The case's inputs without their numbers."""
    case = find(CASE)
    B, Q, H, D, L, P = case.B, case.queries, case.H, case.D, case.L, case.P

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return OperatorInputs(
        value=empty(B, case.S, H, D),
        reference_points=empty(B, Q, L, 2, dtype=torch.float32),
        sampling_offsets=empty(B, Q, H, L, P, 2),
        attention_logits=empty(B, Q, H, L, P),
        sampling_locations=empty(B, Q, H, L, P, 2, dtype=torch.float32),
        attention_weights=empty(B, Q, H, L, P),
        grad_output=empty(B, Q, H * D),
    )
