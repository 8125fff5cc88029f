"""`msdeform bench`: implementations in processes of their own, of which one may crash and one may hang."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench.harness import records
from msdeform.bench.harness.results_file import ResultsFile
from msdeform.bench.operator import jobs, operators
from msdeform.bench.options import IMPLEMENTATIONS
from msdeform.cli import main
from msdeform.kernels.diagnostics.options import BACKENDS

FAKES = """
import os, signal, time
from msdeform.bench.operator import implementations
from msdeform.kernels.api import ms_deform_attn

def wrong(device):
    plain = lambda *tensors: 1.01 * ms_deform_attn(*tensors, backend="reference")
    return implementations.Implementation("fakes:wrong", plain=plain)

def crashes(device):
    def plain(value, sizes, *rest):
        if len(sizes) == 3:  # in one case of two
            os.kill(os.getpid(), signal.SIGSEGV)
        return ms_deform_attn(value, sizes, *rest, backend="reference")
    return implementations.Implementation("fakes:crashes", plain=plain)

def hangs(device):
    return implementations.Implementation("fakes:hangs", plain=lambda *tensors: time.sleep(1000))

def breaks_the_device(device):
    def plain(value, sizes, *rest):
        if len(sizes) == 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return ms_deform_attn(value, sizes, *rest, backend="reference")
    return implementations.Implementation("fakes:breaks_the_device", plain=plain)

def exits(device):
    raise SystemExit("no licence found")
"""
Bench = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """The command with one function of float32, quickly; its exit status and the rows it kept."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "rows"

    def call(*words: str) -> tuple[int, list[dict[str, Any]]]:
        usual = ["--dtypes", "float32", "--functions", "ms_deform_attn", "--seconds", "0", "--out", str(out)]
        status = main(["bench", *usual, "--threads", "1", *words])
        (file,) = out.glob("*.jsonl")
        return status, [json.loads(line) for line in file.read_text().splitlines()]

    return call


def test_one_that_crashes_costs_its_cell_and_no_more(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = bench("--cases", "odd", "decoder-reduced", "--backends", "fakes:crashes", "core")
    assert status == 0  # someone else's fault
    found = {(row["case"], row["backend"], row["direction"]): row for row in rows}
    for direction in ("forward", "backward", "both"):
        crashed = found["odd", "fakes:crashes", direction]
        assert crashed["median_us"] is None
        assert crashed["failure"] == "crashed with signal 11 (SIGSEGV)"
        assert found["decoder-reduced", "fakes:crashes", direction]["median_us"] > 0
        assert found["odd", "core", direction]["median_us"] > 0
    assert (
        "odd, grid, float32, ms_deform_attn, forward, fakes:crashes: crashed with signal 11" in capsys.readouterr().out
    )


def test_one_that_breaks_the_device_leaves_it_to_another_process(bench: Bench) -> None:
    _, rows = bench("--cases", "odd", "decoder-reduced", "--backends", "fakes:breaks_the_device")
    failures = [row["failure"] for row in rows]
    assert failures[0] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert failures[1] == f"ended with status 1: {failures[0]}"  # not tried in the broken process
    assert failures[3:] == [None] * 3


def test_one_that_hangs_is_stopped(bench: Bench) -> None:
    _, rows = bench("--cases", "decoder-reduced", "--backends", "fakes:hangs", "--limit", "2")
    assert {row["failure"] for row in rows} == {"no answer within 2 s: stopped"}
    assert len(rows) == 3


def test_one_that_never_starts_is_given_up(bench: Bench) -> None:
    _, rows = bench("--cases", "odd", "decoder-reduced", "--backends", "fakes:exits")
    assert {row["failure"] for row in rows} == {"given up: ended with status 1: no licence found"}
    assert len(rows) == 6


def test_one_that_is_wrong_is_shown_as_wrong(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = bench("--cases", "decoder-reduced", "--backends", "fakes:wrong", "mmcv")
    assert status == 0
    kinds = {row["backend"]: row["kind"] for row in rows}
    assert kinds == {"fakes:wrong": "operator", "mmcv": "missing"}
    assert all(row["median_us"] is None for row in rows if row["kind"] == "operator")
    printed = capsys.readouterr().out
    assert "fakes:wrong  differs" in printed
    assert "mmcv: not installed (pip install openmim && mim install mmcv)" in printed


def test_the_known_limits_of_one_that_differs_are_told_in_words(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = bench("--cases", "encoder-200x266", "--backends", "core", "--dtypes", "bfloat16")
    assert status == 0
    assert {row["median_us"] for row in rows} == {None}
    printed = capsys.readouterr().out
    assert printed.count("differs from float64 in output") == 4  # forward and both: why, and in the table
    assert "core differs from float64, and gets no speed: it computes in value's dtype" in printed
    assert not {"nan", "incorrect", "wrong", "failed"} & set(re.split(r"\W+", printed))


def test_what_is_recorded_of_this_code_is_not_measured_again(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--cases", "decoder-reduced", "--backends", "core"]
    _, first = bench(*words)
    _, second = bench(*words)
    assert second == first
    assert "3 cells were recorded already" in capsys.readouterr().out
    _, third = bench(*words, "--again")
    assert len(third) == 2 * len(first)
    assert {"commit", "dirty", "code", "device", "torch", "date", "command", "host_load"} <= set(third[0])
    assert "rows" not in third[0]["command"]  # the folder
    monkeypatch.setattr(records, "done", lambda rows, source, failed: set())  # as of another code
    _, fourth = bench(*words)
    assert len(fourth) == 3 * len(first)


def test_a_backend_of_ours_that_is_wrong_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(planned: Any, settings: Any, results: ResultsFile) -> int:
        for row in planned[0].unmeasured("differs from float64 in output"):
            results.add({**row, "ours": True})
        return 0

    monkeypatch.setattr(operators, "measure", wrong)
    assert main(["bench", "--backends", "reference", "--out", str(tmp_path)]) == 1


def test_the_reduced_form_keeps_nothing_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(operators, "measure", lambda *_: 0)
    assert main(["bench"]) == 0
    assert "no rows were kept" in capsys.readouterr().out


def test_the_plan_gives_the_module_to_our_backends_alone() -> None:
    planned = jobs.plan(["odd"], ["grid", "uniform"], ["float32"], IMPLEMENTATIONS)
    modules = {(job.backend, job.locations) for job in planned if job.function == "MSDeformAttn"}
    assert modules == {(name, "grid") for name in BACKENDS}
    assert len(planned) == 2 * 2 * (len(IMPLEMENTATIONS) - 1) + len(BACKENDS)
    # which has no kernel for 30 channels
    assert "triton-tiles" not in {job.backend for job in planned}
    assert jobs.plan(["encoder-200x266"], ["grid"], ["float32"], ["triton-tiles"])
    assert not jobs.plan(["encoder-200x266"], ["grid"], ["float64"], ["triton-tiles"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cases", "encodr-dc5"], "--cases: no case is called 'encodr-dc5'; did you mean encoder-dc5"),
        (["--backends", "tritn"], "--backends: no backend is called 'tritn'; did you mean triton?"),
        (["--baseline", "cor"], "--baseline: no backend is called 'cor'; did you mean core"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--dtypes", "int8"], "--dtypes: expected float64, float32, float16 or bfloat16, got 'int8'"),
    ],
)
def test_slips(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"msdeform bench: {sentence}")
