"""``msdeform bench model``: what should bound each kernel on an H200, from counts of its execution and moved bytes.

    issue        machine instructions / (multiprocessors * 4 schedulers * clock)
    L1           wavefronts of loads, stores, reductions and shuffles / (multiprocessors * clock): one a cycle
    L2           rows read at random from the second cache, where a kernel does that
    reductions   sectors of 32 bytes that atomics add to in the second cache
    memory       compulsory bytes, and those handed from kernel to kernel / copy bandwidth
    sort         what the passes of a radix sort move / copy bandwidth; nothing else runs meanwhile
    gaps         between one kernel and the next, PyTorch's own among them

The longest of the parts of a kernel is a lower bound of its time, and the longest one's name says what to work on;
latency is in none of them. A call of several kernels takes the sum of their bounds, and the gaps.
It is a prediction, of the published encoder at batch 2, to be held against a GPU's rows; a rate marked as a guess was
measured nowhere. Counts are those that ``msdeform bench instructions`` recorded on a smaller encoder.
"""

from dataclasses import dataclass

import torch

from ..harness.records import Records, Row
from ..harness.tables import Line, number
from ..operator.bounds import SCHEDULERS, compulsory_bytes
from ..operator.cases import find
from ..operator.inputs import OperatorInputs
from . import counts
from .counts import ENCODER, Run

CASE = "encoder-800x1066-b2"
WALK = 32  # points that one program of the sorted backward adds up, one after the other
PARTS = ("issue", "L1", "L2", "reductions", "memory", "sort", "gaps")
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
"""of each kernel, one after the other, its parts"""


@dataclass(frozen=True)
class Gpu:
    """What a machine does in a second."""

    name: str
    multiprocessors: int
    clock: float
    copy: float
    """bytes; told of another such machine, not measured here"""
    l2: float
    """bytes read, a guess"""
    reductions: float
    """bytes of sectors that are added to, a guess: 1.3 to 3 TB/s"""
    gap: float
    """seconds between two kernels of a stream, a guess"""

    @property
    def issue(self) -> float:
        return self.multiprocessors * SCHEDULERS * self.clock

    @property
    def wavefronts(self) -> float:
        return self.multiprocessors * self.clock


H200 = Gpu("H200", multiprocessors=132, clock=1.98e9, copy=4.3e12, l2=5.5e12, reductions=2e12, gap=2e-6)


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


def predicted(run: Run, gpu: Gpu = H200) -> Stages:
    """Microseconds of each part of the time of each kernel of a recorded call, of PyTorch's sort and fill between."""
    if "sorted" in run[0]["call"]:
        return _sorted(run, gpu)
    case, row = find(CASE), run[0]
    dtype = getattr(torch, row["dtype"])
    inputs = _meta_inputs(dtype)
    backward = row["call"].startswith("backward")
    moved = compulsory_bytes(
        case, inputs, fused="fused" in row["call"], direction="backward" if backward else "forward"
    )
    stages = {row["kernel"]: _executed(row, gpu) | {"memory": 1e6 * moved / gpu.copy, "gaps": 1e6 * gpu.gap}}
    if backward:
        # deformops adds in value's dtype unless told otherwise; all others of the recorded ones in float32
        narrow = row["implementation"] == "deformops" and "fp32acc" not in row["call"]
        itemsize = dtype.itemsize if narrow else 4
        zeros = inputs.value.numel() * itemsize
        rounded = 0 if dtype.itemsize == itemsize else inputs.value.numel() * (itemsize + dtype.itemsize)
        for name, amount in (("zeros", zeros), ("rounding", rounded)):
            if amount:
                stages[name] = {"memory": 1e6 * amount / gpu.copy, "gaps": 1e6 * gpu.gap}
    return stages


def _executed(row: Row, gpu: Gpu) -> dict[str, float]:
    """The parts of a kernel's time that come from its counts."""
    case = find(CASE)
    each = 1e6 * case.B * case.queries * case.H
    parts = {"issue": each * counts.issued(row) / gpu.issue, "L1": each * row["wavefronts"] / gpu.wavefronts}
    if row["reductions"]:
        parts["reductions"] = each * row["reductions"] * _SECTOR / gpu.reductions
    return parts


def _sorted(run: Run, gpu: Gpu) -> Stages:
    """The kernels of a sorted backward, with all that passes between them going through memory."""
    recorded = [row["kernel"] for row in run]
    if recorded not in (list(_SORTED), [kernel for kernel in _SORTED if kernel != "shares"]):
        raise ValueError(f"the sorted backward: expected {', '.join(_SORTED)}, got {', '.join(recorded)} recorded")
    case, call = find(CASE), run[0]["call"]
    dtype = getattr(torch, run[0]["dtype"])
    rows = case.B * case.queries * case.H
    points = rows * case.L * case.P
    row_bytes = case.D * dtype.itemsize
    inputs = _meta_inputs(dtype)
    if "fused" in call:
        places = points * (2 * inputs.sampling_offsets.itemsize + inputs.attention_logits.itemsize)
    else:
        places = points * (2 * inputs.sampling_locations.itemsize + inputs.attention_weights.itemsize)
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
    stages: Stages = {}
    for row in run:
        what = _SORTED[row["kernel"]]
        stages[what] = _executed(row, gpu) | {"memory": 1e6 * memory[what] / gpu.copy, "gaps": 1e6 * gpu.gap}
    # grad_output and records lie anywhere; value is read where it was a moment ago
    stages["points by cell"]["L2"] = 1e6 * points * (row_bytes + 2 * _SECTOR) / gpu.l2
    passes = 2 * _SORT_PASSES * points * (key + order)
    stages["sort"] = {"sort": 1e6 * passes / gpu.copy, "gaps": 1e6 * _SORT_LAUNCHES * gpu.gap}
    stages["zeros"] = {"memory": 1e6 * 2 * ends / gpu.copy, "gaps": 1e6 * gpu.gap}
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
