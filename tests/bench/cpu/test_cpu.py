"""`msdeform bench cpu`: all implementations in turn; what is wrong, crashes or hangs gets no speed."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform import fused_ms_deform_attn, ms_deform_attn
from msdeform.bench.cpu import cpu, tables
from msdeform.bench.cpu.cpu import Cell
from msdeform.bench.harness import records
from msdeform.bench.operator import cases
from msdeform.bench.operator.cases import Case
from msdeform.bench.operator.implementations import Implementation
from msdeform.bench.options import CPU_IMPLEMENTATIONS, CpuOptions
from msdeform.cli import main

SMALL = Case("small", ((6, 5), (3, 2)), B=2, Q=7, H=2, D=4)
FAKES = """
import os, signal, time
from msdeform.bench.operator import implementations
from msdeform.kernels.api import fused_ms_deform_attn

def _fake(name, fused):
    return implementations.Implementation("another name", fused=fused)

def right(*tensors):
    return fused_ms_deform_attn(*tensors, backend="reference")

def wrong(device):
    return _fake("wrong", lambda *tensors: 1.01 * right(*tensors))

def crashes(device):
    calls = []
    def fused(*tensors):
        calls.append(0)
        if len(calls) == 3:  # after its check, in its turn
            os.kill(os.getpid(), signal.SIGSEGV)
        return right(*tensors)
    return _fake("crashes", fused)

def hangs(device):
    return _fake("hangs", lambda *tensors: time.sleep(1000))
"""
Bench = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """The command on one small cell; its exit status and the rows it kept."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "rows"

    def call(*words: str) -> tuple[int, list[dict[str, Any]]]:
        usual = ["--cases", "decoder-reduced", "--dtypes", "float32", "--seconds", "0", "--out", str(out)]
        status = main(["bench", "cpu", *usual, *words])
        return status, records.read(out).rows

    return call


def test_what_is_wrong_or_crashes_gets_no_speed_and_costs_no_more(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    backends = ["core", "fakes:wrong", "fakes:crashes", "dcnv4"]
    status, rows = bench("--backends", *backends, "--threads", "1", "2")
    assert status == 0  # others' faults
    found = {(row["backend"], row.get("threads"), row.get("direction")): row for row in rows}
    assert len(found) == len(rows) == 3 * 4 + 1
    for threads in (1, 2):
        for direction in ("forward", "both"):
            assert found["core", threads, direction]["median_us"] > 0
            wrong = found["fakes:wrong", threads, direction]
            assert wrong["median_us"] is wrong["ns_a_point"] is wrong["ratio"] is None
            assert wrong["failure"].startswith("differs from float64 in output")
            crashed = found["fakes:crashes", threads, direction]
            assert crashed["median_us"] is None
            assert crashed["failure"] == "crashed with signal 11 (SIGSEGV)"
    assert "not installed" in found["dcnv4", None, None]["reason"]
    printed = capsys.readouterr().out
    assert printed.count("differs") >= 4
    assert "dcnv4: not installed" in printed

    # resumed: nothing is left to measure, though one is missing
    status, again = bench("--backends", *backends, "--threads", "1", "2")
    assert status == 0
    assert [row["kind"] for row in again].count("cpu") == 12
    assert "12 cells were recorded already" in capsys.readouterr().out


def test_one_that_hangs_is_stopped(bench: Bench) -> None:
    _, rows = bench("--backends", "fakes:hangs", "--threads", "1", "--limit", "2")
    assert [row["failure"] for row in rows] == ["no answer within 2 s: stopped"] * 2


def test_children_wait_as_pytorch_does_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    waiting: list[str | None] = []

    def measured(cell: Cell, *_: Any) -> list[records.Row]:
        waiting.append(os.environ.get("OMP_WAIT_POLICY"))
        return cell.failed(["core"], "not now")

    monkeypatch.setattr(cpu, "measured", measured)
    assert main(["bench", "cpu", "--cases", "odd", "--backends", "core", "--dtypes", "float32"]) == 0
    assert waiting == [None]
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def variant(
    name: str, *, ours: bool = False, output: float = 1.0, repeats: int = 1, forward_only: bool = False
) -> Implementation:
    """The reference, scaled or slowed."""

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Any) -> Tensor:
            for _ in range(repeats - 1):
                function(*tensors, backend="reference")
            return output * function(*tensors, backend="reference")

        return run

    return Implementation(
        name, plain=wrap(ms_deform_attn), fused=wrap(fused_ms_deform_attn), ours=ours, forward_only=forward_only
    )


@pytest.fixture
def _threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small case, and numbers of threads that a test leaves as it found them."""
    monkeypatch.setitem(cases.CASES, "small", SMALL)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_rows_of_a_cell() -> None:
    found = [
        variant("cpu", ours=True),
        variant("slow", repeats=6),
        variant("engine", forward_only=True),
        Implementation("plain alone", plain=ms_deform_attn),
    ]
    begun: list[str] = []
    cell = Cell("small", "float32", "fused_ms_deform_attn", (1, 2), ())
    rows = list(cpu.cell_rows(cell, found, seconds=0.2, rounds=3, begin=begun.append))
    assert {*begun} == {subject.name for subject in found}
    for row in rows:
        records.key(row)
    cells = {(row["threads"], row["direction"], row["backend"]): row for row in rows}
    assert len(cells) == len(rows) == 2 * 2 * 4
    for threads in (1, 2):
        ours, slow = cells[threads, "both", "cpu"], cells[threads, "both", "slow"]
        assert ours["points"] == 2 * 7 * 2 * 2 * 4
        assert ours["ns_a_point"] == pytest.approx(1e3 * ours["median_us"] / ours["points"])
        assert ours["ratio"] is None
        assert slow["baseline"] == "cpu"
        assert 0 < slow["ratio_low"] <= slow["ratio"] <= slow["ratio_high"]
        assert threads > 1 or slow["ratio"] > 2  # of six calls; more threads wait for each other on a busy machine
        assert slow["calls"] == ours["calls"] >= 3
        assert cells[threads, "forward", "engine"]["median_us"] > 0
        assert cells[threads, "both", "engine"]["failure"] == "it has no such function"
        assert cells[threads, "forward", "plain alone"]["failure"] == "it has no such function"


@pytest.mark.usefixtures("_threads")
def test_ours_that_is_wrong_is_no_baseline() -> None:
    found = [variant("cpu", ours=True, output=1.01), variant("core")]
    cell = Cell("small", "bfloat16", "ms_deform_attn", (1,), ())
    rows = list(cpu.cell_rows(cell, found, seconds=0, rounds=2))
    ours = [row for row in rows if row["ours"]]
    assert all(row["failure"].startswith("differs") and row["median_us"] is None for row in ours)
    assert all(row["median_us"] > 0 and row["ratio"] is None for row in rows if not row["ours"])
    assert tables.speed_table(rows)[1][3] == "wrong"


def test_a_wrong_backend_of_ours_fails_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(cell: Cell, options: CpuOptions, missing: dict[str, str]) -> list[records.Row]:
        return cell.failed(["reference"], "differs from float64 in output")

    monkeypatch.setattr(cpu, "measured", wrong)
    assert main(["bench", "cpu", "--cases", "odd", "--backends", "reference", "--out", str(tmp_path)]) == 1


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> Callable[[int], object]:
        def run(_: int) -> None:
            order.append(name)
            if name == "breaks" and order.count(name) > 1:
                raise RuntimeError("out of luck\nand more")
            time.sleep(seconds)

        return run

    calls = {"fast": call("fast", 0.002), "slow": call("slow", 0.03), "breaks": call("breaks", 0.03)}
    times, failures = cpu.take_turns(calls, seconds=0, rounds=2)
    assert failures == {"breaks": "RuntimeError: out of luck"}
    assert [*times] == ["fast", "slow"]
    assert [len(each) for each in times.values()] == [2, 2]
    assert times["slow"][0] == pytest.approx(30e3, rel=0.5)
    # a call that is not timed, then one or several that are; the others' turns lie between
    assert order.count("slow") == 4
    assert order[-1] == "slow"
    assert order.count("fast") > 8
    assert order.index("breaks") < len(order) - 1 - order[::-1].index("fast")

    order.clear()
    monkeypatch.setattr(cpu, "_LONG", 0.02)
    times, _ = cpu.take_turns({"slow": calls["slow"]}, seconds=0, rounds=2)
    assert len(order) == len(times["slow"]) == 2, "long calls are alone in their turns"


def test_the_plan() -> None:
    usual = cpu.plan(CpuOptions(threads=(1, 2)))
    whole = [cell for cell in usual if cell.backends == CPU_IMPLEMENTATIONS]
    assert {cell.case for cell in whole} == set(cases.ON_A_CPU)
    alone = [cell for cell in usual if cell.backends == ("cpu",)]
    assert {cell.case for cell in alone} | {cell.case for cell in whole} > set(cases.AREAS)
    assert len(alone) + len(whole) == len(usual)
    chosen = cpu.plan(CpuOptions(cases=("odd",), functions=("ms_deform_attn",), threads=(2, 2)))
    assert [(*cell[:4],) for cell in chosen] == [
        ("odd", dtype, "ms_deform_attn", (2,)) for dtype in ("float32", "bfloat16")
    ]
    assert cpu.plan(CpuOptions())[0].threads == tuple(dict.fromkeys((1, torch.get_num_threads())))


def row(backend: str, ms: float | None, ratio: float | None = None, failure: str | None = None, **more: Any) -> Any:
    cell = Cell("encoder-800x1066-b1", "float32", tables.MAIN, (1,), (backend,))
    one = cell.failed([backend], failure or "")[0] | {"points": 1000, "shape": {"S": 50}}
    if ms is not None:
        one |= {"median_us": 1e3 * ms, "noisy": None, "ns_a_point": 1e3 * ms, "ratio": ratio, "failure": None}
    return one | {"ours": backend in ("cpu", "reference")} | more


def test_the_fastest_of_others_is_right_and_not_ours() -> None:
    rows = [
        row("cpu", 2.0),
        row("reference", 20.0, 10.0),
        row("core", None, failure="differs from float64 in output"),
        row("mmcv", 40.0, 20.0),
        row("openvino", 24.0, 12.0),
    ]
    assert tables.fastest_other(rows) == "12.0x (openvino)"
    assert tables.fastest_other(rows[:3]) == "-"
    head, line = tables.speed_table(rows)
    assert line[:7] == ["encoder-800x1066-b1", "float32", "1", "2.00", "2000", "12.0x (openvino)", "10.0x"]
    assert line[7:] == ["not measured", "-", "-", "not measured"]
    assert len(head) == len(line) == 11
    more = [row("cpu", 1.0, threads=2), row("mmcv", 9.0, 9.0, threads=2, direction="both")]
    head, line = tables.short_table(rows + more)
    assert line == (
        "encoder-800x1066-b1",
        "2",
        "1.00",
        "-",
        "not measured",
        "not measured",
        "9.00x (mmcv)",
        "not measured",
    )
    assert len(head) == len(line)
    assert tables.short_table([one | {"case": "odd"} for one in rows])[1:] == []
    assert tables.others_table(rows)[1][3:] == ("forward", "10.0x", "differs", "20.0x", "12.0x")


def test_areas() -> None:
    rows = [
        row("cpu", 2.0),
        row("cpu", 1.0, threads=2),
        row("cpu", 5.0, direction="both"),
        row("cpu", 0.5, case="encoder-200x266"),
        row("mmcv", 40.0, 20.0),
    ]
    head, *lines = tables.area_table(rows)
    assert head[3:] == (
        *("forward: 1 thread", "forward: 2 threads", "forward + backward: 1 thread", "forward + backward: 2 threads"),
        *("forward: 2 threads over 1", "forward + backward: 2 threads over 1"),
    )
    assert [line[0] for line in lines] == ["encoder-200x266", "encoder-800x1066-b1"]
    assert lines[0][3:] == ("500", "not measured", "not measured", "not measured", "-", "-")
    assert lines[1][1:] == ("50", "1000", "2000", "1000", "5000", "not measured", "2.00x", "-")
