"""The Triton kernels compiled for GPUs that are not here: registers, spills, load widths, reductions, instructions."""

import json
import resource
from typing import Any

import pytest
import torch

from msdeform.kernels.triton import aot

pytestmark = pytest.mark.aot

# a bound on the machine's work, not on its clock: compile time is counted in CPU seconds of this process and ptxas
COMPILE_SECONDS = 10.0
COMMITTED = {row["kernel"]: row for row in json.loads(aot.TABLE.read_text())}


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compile_timed(**parameters: Any) -> aot.Machine:
    before = cpu_seconds()
    machine = aot.compile_kernel(**parameters)
    assert cpu_seconds() - before < COMPILE_SECONDS
    return machine


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def assert_good_machine_code(machine: aot.Machine, kind: str, dtype: torch.dtype) -> None:
    """No spills; wide loads of the four neighbours of 16 points; vector reductions where the machine has them."""
    assert machine.spills == 0
    assert machine.count("LDL|STL") == 0
    # a lane takes as many channels of D=32 as the tile gives it, at most 16 bytes
    channels = min(16 // dtype.itemsize, machine.block_q * 32 // (32 * aot.NUM_WARPS))
    rows = machine.block_q * 32 // (32 * aot.NUM_WARPS) // channels
    width = {16: r"LDG\S*\.128", 8: r"LDG\S*\.64"}[channels * dtype.itemsize]
    assert machine.count(width) >= 4 * 16 * rows
    if kind == "backward":
        additions = 4 * 16 * machine.block_q * 32 // (32 * aot.NUM_WARPS)  # one float32 each, in one thread
        if machine.arch >= 90:
            assert machine.count(r"RED\S*F32x4") == additions // 4
            assert machine.count(r"RED\S*ADD\.F32(?!x4)") == 0
        else:
            assert machine.count(r"RED\S*ADD\S*F32") == additions


OTHERS = [
    pytest.param(arch, kind, dtype, marks=[pytest.mark.slow] if dtype is torch.bfloat16 and arch != 80 else [])
    for arch in (80, 89, 100, 120)
    for kind in ("forward", "backward")
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("arch", "kind", "dtype"), OTHERS)
def test_main_shapes_on_other_architectures(arch: int, kind: str, dtype: torch.dtype) -> None:
    assert_good_machine_code(compile_timed(kind=kind, arch=arch, dtype=dtype), kind, dtype)


NAMES = [pytest.param(name, marks=[pytest.mark.slow] if "plain" in name and "16" in name else []) for name in aot.MAIN]


@pytest.mark.parametrize("name", NAMES)
def test_main_shapes_on_sm_90_are_those_of_the_table(name: str) -> None:
    """`python -m msdeform.kernels.triton.aot --write` renews the table when a change is meant."""
    parameters = aot.MAIN[name]
    whole, executed = aot.compile_main(name, 90)
    for machine in (whole, executed):
        assert_good_machine_code(machine, parameters["kind"], parameters["dtype"])
    assert_as_committed(aot.row(name, whole, executed))


def assert_as_committed(row: dict[str, Any]) -> None:
    committed, count = COMMITTED[row["kernel"]], "instructions_per_query_and_head"
    assert row[count] <= 1.02 * committed[count], "more instructions than the committed table has"
    assert row[count] >= 0.9 * committed[count], "far fewer: renew the table, so that the gain is kept"
    assert row["registers"] <= committed["registers"] + 8
    assert row["spilled_bytes"] == committed["spilled_bytes"] == 0
    assert row["barriers"] == committed["barriers"]


ODD = [
    ("backward", {"D": 1}),
    ("backward", {"D": 71, "coordinates": 4}),
    ("backward", {"D": 256, "dtype": torch.float64}),
    ("backward", {"L": 8, "P": 16}),
    ("backward", {"coordinates": 4, "needs": (True, True, True, True)}),
    ("forward", {"D": 30, "fused": False}),
    ("forward", {"L": 8, "P": 16, "D": 71, "dtype": torch.bfloat16}),
]
MORE_ODD = [
    (kind, parameters)
    for kind in ("forward", "backward")
    for parameters in (
        {"D": 30, "fused": False},
        {"D": 128},
        {"dtype": torch.float64},
        {"L": 8, "P": 16, "D": 71, "dtype": torch.bfloat16},
        {"L": 1, "P": 1, "fused": False},
        {"L": 8, "P": 16, "D": 256},
        {"wide": True},
        {"P": 8},
        {"dtype": torch.bfloat16, "small_dtype": torch.bfloat16},
    )
]


@pytest.mark.parametrize(
    ("kind", "parameters"), ODD + [pytest.param(*odd, marks=pytest.mark.slow) for odd in MORE_ODD], ids=str
)
def test_odd_shapes_compile_in_time(kind: str, parameters: dict[str, Any]) -> None:
    assert compile_timed(kind=kind, arch=90, **parameters).instructions > 0


BY_CELL = [
    pytest.param(kind, arch, dtype, marks=[pytest.mark.slow] if arch != 90 or dtype is not torch.float32 else [])
    for kind in aot.BY_CELL
    for arch in (80, 89, 90, 100, 120)
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("kind", "arch", "dtype"), BY_CELL)
def test_the_backward_by_cell_holds_no_atomics(kind: str, arch: int, dtype: torch.dtype) -> None:
    machine = compile_timed(kind=kind, arch=arch, dtype=dtype)
    assert machine.spills == 0
    assert machine.count(r"ATOM|RED(G|\.|$)") == 0, "no atomics (REDUX is none: it is within a warp)"
    if kind == "cells":
        parts, stores = (4, 1) if dtype is torch.float32 else (8, 2)
        assert machine.count(r"LDG\S*\.128") == 5 * 32 + parts, "a point's g and four neighbours, and records"
        assert machine.count(r"STG\S*\.128") == 4 * stores * 32 + parts, "four sums at each of 32 steps, and records"
        assert machine.count("BAR") == 0
        assert machine.shared == 0, "lanes hand numbers round by shuffles"


@pytest.mark.parametrize("fused", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(torch.float16, marks=pytest.mark.slow),
    ],
)
def test_the_backward_by_cell_on_sm_90_is_that_of_the_table(dtype: torch.dtype, fused: bool) -> None:
    assert_as_committed(aot.by_cell_row(90, dtype, fused=fused))


@pytest.mark.parametrize("kind", aot.BY_CELL)
@pytest.mark.parametrize("parameters", [{"D": 71, "L": 3, "P": 3, "coordinates": 4}, {"D": 1, "L": 1, "P": 1}], ids=str)
def test_odd_shapes_of_the_backward_by_cell_compile_in_time(kind: str, parameters: dict[str, Any]) -> None:
    assert compile_timed(kind=kind, arch=90, **parameters).spills == 0


def test_loops_count_as_often_as_they_run() -> None:
    two, four = (
        aot.compile_kernel("forward", 90, L=levels, P=8, fused=False, fallback=False).count("LDG.E.128")
        for levels in (2, 4)
    )
    assert four == 2 * two
