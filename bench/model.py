"""``msdeform bench model``: what should bound each kernel on an H200, from its counted instructions and moved bytes.

    issue        warp instructions / (multiprocessors * 4 schedulers * clock)
    L1           the four neighbours of every point, read through the first cache
    L2           rows read at random from the second cache, where a kernel does that
    reductions   float32 additions that atomics make in the second cache
    memory       compulsory bytes, and those of intermediate sums / copy bandwidth
    sort         what the passes of a radix sort move / copy bandwidth; nothing else runs meanwhile

The longest of the others is a lower bound of a kernel's time, and the longest one's name says what to work on; latency
is in none of them. A backward by cell is several kernels one after the other: its parts are sums over them, its lower
bound is the sum of theirs and the sort.
It is a prediction, of the published encoder at batch 2, to be held against a GPU's rows; a rate marked as a guess was
measured nowhere. Counts are those that ``msdeform bench instructions`` recorded.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.arguments import Parser
from . import records
from .bounds import SCHEDULERS, compulsory_bytes
from .cases import OperatorInputs, find
from .records import Records, Row
from .tables import Line, aligned, number

CASE = "encoder-800x1066-b2"
RUN = 32  # points of a walk
PARTS = ("issue", "L1", "L2", "reductions", "memory", "sort")
_SORT_PASSES = 4  # of 8 bits each, over 32-bit keys with 64-bit places


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
    """bytes of float32 additions, a guess: 1.3 to 3 TB/s"""

    @property
    def issue(self) -> float:
        return self.multiprocessors * SCHEDULERS * self.clock

    @property
    def l1(self) -> float:
        return self.multiprocessors * 128 * self.clock


H200 = Gpu("H200", multiprocessors=132, clock=1.755e9, copy=4.3e12, l2=5.5e12, reductions=2e12)


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each kernel whose instructions are recorded, the fastest of its kind first."""
    parser = Parser(prog="msdeform bench model", description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", nargs="+", type=Path, default=[records.RESULTS], metavar="PATH")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    for path in options.results:
        if not path.exists():
            parser.error(f"--results: {path} does not exist")
    lines = table(records.read(*options.results))
    if len(lines) == 1:
        print("no instructions are recorded: msdeform bench instructions --out", file=sys.stderr)
        return 1
    print(f"{CASE}, {H200.name}: microseconds, predicted\n")
    print(aligned(lines, 3))
    return 0


def table(found: Records) -> list[Line]:
    """A head, and a line for each recorded kernel: every part's microseconds, and which is the longest."""
    lines: list[Line] = [("kernel", "dtype", "implementation", *PARTS, "at least", "bound by")]
    rows = [(predicted(row), row) for row in found.of("instructions") if row["arch"] == 90]
    for stages, row in sorted(rows, key=lambda pair: (_kind(pair[1]), pair[1]["dtype"], least(pair[0]))):
        parts = {name: sum(stage.get(name, 0.0) for stage in stages.values()) for name in PARTS}
        kernel = (row["kernel"], row["dtype"], row["implementation"])
        longest = max(parts, key=lambda name: parts[name])
        told = (number(parts[name]) if parts[name] else "-" for name in PARTS)
        lines.append((*kernel, *told, number(least(stages)), longest))
    return lines


def least(stages: Stages) -> float:
    """Microseconds that these kernels, one after the other, take at least: what a kernel does overlaps."""
    return sum(max(parts.values()) for parts in stages.values())


def _kind(row: Row) -> tuple[str, bool]:
    return row["kernel"].split()[0], "fused" not in row["kernel"]


def predicted(row: Row, gpu: Gpu = H200) -> Stages:
    """Microseconds of each part of the time of a recorded kernel, or of each of the kernels it consists of."""
    case = find(CASE)
    dtype = getattr(torch, row["dtype"])
    backward, in_order = row["kernel"].startswith("backward"), "in order" in row["kernel"]
    rows = case.B * case.queries * case.H
    points = rows * case.L * case.P
    row_bytes = case.D * dtype.itemsize
    if in_order:
        return _by_cell(row, gpu)
    moved = compulsory_bytes(
        case,
        _meta_inputs(dtype),
        fused="fused" in row["kernel"],
        direction="backward" if backward else "forward",
    )
    seconds = {
        "issue": row["instructions_per_query_and_head"] * rows / gpu.issue,
        "L1": 4 * points * row_bytes / gpu.l1,
        "memory": moved / gpu.copy,
    }
    if backward:
        # deformops adds in value's dtype unless told otherwise; all others of the recorded ones in float32
        narrow = row["implementation"] == "deformops" and "fp32acc" not in row["kernel"]
        seconds["reductions"] = 4 * points * case.D * (dtype.itemsize if narrow else 4) / gpu.reductions
    return {row["kernel"]: {name: 1e6 * value for name, value in seconds.items()}}


def _by_cell(row: Row, gpu: Gpu) -> Stages:
    """The kernels of a backward by cell, as kernels/triton/backward_sorted.py describes what they read and write."""
    case = find(CASE)
    dtype = getattr(torch, row["dtype"])
    rows = case.B * case.queries * case.H
    points = rows * case.L * case.P
    row_bytes = case.D * dtype.itemsize
    inputs = _meta_inputs(dtype)
    places = points * (2 * inputs.sampling_offsets.itemsize + inputs.attention_logits.itemsize)
    if "fused" not in row["kernel"]:
        places = points * (2 * inputs.sampling_locations.itemsize + inputs.attention_weights.itemsize)
    value = case.B * case.S * case.H * row_bytes
    key, order, record, sector = 4, 8, 16, 32
    # of every cell, and of every walk as if it began inside one; where each begins and ends
    sums = (case.B * case.S * case.H + points / RUN) * 4 * case.D * 4
    ends = case.B * case.S * case.H * 4 * 4
    moved: dict[str, dict[str, float]] = {
        "keys": {"memory": places + points * (key + record)},
        "sort": {"sort": 2 * _SORT_PASSES * points * (key + order)},
        "cells": {
            "L1": 5 * points * row_bytes,
            # grad_output and records lie anywhere; value is read where it was a moment ago
            "L2": points * (row_bytes + 2 * sector),
            "memory": points * (key + order + 2 * record) + value + rows * row_bytes + sums + 3 * ends,
        },
        "pixels": {"memory": sums + 2 * ends + value},
        "points": {"memory": points * record + places},
    }
    rates = {"L1": gpu.l1, "L2": gpu.l2, "memory": gpu.copy, "sort": gpu.copy}
    stages = {}
    for stage, parts in moved.items():
        stages[stage] = {name: 1e6 * amount / rates[name] for name, amount in parts.items()}
        if stage in row["parts"]:
            stages[stage]["issue"] = 1e6 * row["parts"][stage] * rows / gpu.issue
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
