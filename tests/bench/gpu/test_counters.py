"""Counters by ncu, which a script stands for."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench.gpu import counters, stages
from msdeform.bench.gpu.counters import METRICS, NotCounted, count, parse
from msdeform.bench.gpu.stages import Run
from msdeform.bench.harness.results_file import ResultsFile
from msdeform.bench.operator import runner

HEAD = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size"]
HEAD += ["Device", "CC"]
SOURCE: dict[str, Any] = {"code": "c", "device": "cpu", "host_cpu": "x"}
SOME = ["us", "warp_instructions", "l1_hit_pct", "dram_bytes", "registers"]


def printed() -> list[str]:
    """What ncu prints of three launches of two kernels."""

    def line(*cells: str) -> str:
        return ",".join(f'"{cell}"' for cell in cells)

    lead = ["0", "1", "python", "host"]
    rest = ["1", "7", "(128, 1, 1)", "(279, 8, 2)", "0", "9.0"]
    return [
        "==PROF== Connected to process 1 (/usr/bin/python3.12)",
        "whatever the program printed",
        '==PROF== Profiling "forward_kernel": 0%....50%....100% - 9 passes',
        "==PROF== Disconnected from process 1",
        line(*HEAD, *(METRICS[name] for name in SOME)),
        line(*[""] * len(HEAD), "usecond", "inst", "%", "Mbyte", "register/thread"),
        line(*lead, "forward_kernel", *rest, "120.5", "1,234,567", "81.5", "90.25", "64"),
        line(*lead, "fill", *rest, "2.5", "1,000", "0", "1", "16"),
        line(*lead, "fill", *rest, "3.5", "2,000", "50", "n/a", "16"),
    ]


def test_numbers_in_whole_units_and_what_a_device_cannot_count() -> None:
    """As ``--print-units base`` prints them, and what stands in place of a metric that the device lacks."""
    line = '"{}","1","python3.12","127.0.0.1","cells_kernel","1","7","(32, 1, 1)","(9, 1, 1)","0","9.0",{}'
    named = {"us": "190,240", "l2_sectors_reduced": "(!) n/a", "dram_bytes": "90,250,112", "lsu_wavefronts": ""}
    cells = ",".join(f'"{number}"' for number in named.values())
    names = ",".join(f'"{METRICS[name]}"' for name in named)
    head = ",".join(f'"{name}"' for name in HEAD)
    empty = ",".join(['""'] * len(HEAD))
    [row] = parse([f"{head},{names}", f'{empty},"ns","sector","byte",""', line.format(0, cells)])
    assert row == {"kernel": "cells_kernel", "launches": 1, "us": pytest.approx(190.24), "dram_bytes": 90250112.0}


def test_launches_of_a_kernel_are_summed_and_shares_averaged() -> None:
    forward, fill = parse(printed())
    assert forward == {
        "kernel": "forward_kernel",
        "launches": 1,
        "us": 120.5,
        "warp_instructions": 1234567.0,
        "l1_hit_pct": 81.5,
        "dram_bytes": 90.25e6,
        "registers": 64.0,
    }
    assert (fill["us"], fill["warp_instructions"], fill["l1_hit_pct"], fill["registers"]) == (6.0, 3000.0, 25.0, 16.0)
    assert fill["dram_bytes"] == 1e6
    assert "lsu_wavefronts" not in fill  # this device does not count them
    rows = [{"case": "odd", "dtype": "float32", "backend": "triton", "failure": None, **row} for row in (forward, fill)]
    assert "forward_kernel" in counters.table(rows)


def as_ncu(folder: Path, monkeypatch: pytest.MonkeyPatch, text: list[str], status: int = 0) -> None:
    (folder / "said").write_text("\n".join(text) + "\n")
    script = folder / "ncu"
    script.write_text(f'#!/bin/sh\necho "$@" > {folder}/words\ncat {folder}/said\nexit {status}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_ncu_counts_one_pass_and_leaves_the_clocks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_ncu(tmp_path, monkeypatch, printed())
    rows = count("odd", "float32", "triton", 30.0)
    assert [(row["kind"], row["case"], row["backend"], row["kernel"]) for row in rows] == [
        ("counters", "odd", "triton", "forward_kernel"),
        ("counters", "odd", "triton", "fill"),
    ]
    words = (tmp_path / "words").read_text()
    assert "--print-units base --profile-from-start off --clock-control none" in words
    assert "--target-processes application-only" in words
    assert words.strip().endswith("-m msdeform.bench.gpu.counters odd float32 triton")
    assert counters.main(["decoder-reduced", "float32", "reference"]) == 0  # what it runs


@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        (["==ERROR== ERR_NVGPUCTRPERM - no permission"], 1, r"ncu, status 1: ==ERROR== ERR_NVGPUCTRPERM"),
        (["Failed to initialize the profiler: LibraryNotLoaded"], 9, r"status 9: .*LibraryNotLoaded"),
        (["==WARNING== No kernels were profiled."], 0, r"status 0: .*No kernels were profiled"),
    ],
)
def test_a_refusal_is_a_sentence_and_ends_the_stage(
    text: list[str], status: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_ncu(tmp_path, monkeypatch, text, status)
    with pytest.raises(NotCounted, match=sentence):
        count("odd", "float32", "triton", 30.0)
    settings = runner.Settings(torch.device("cpu"), deadline=time.monotonic() + 60)
    run = Run(settings, ResultsFile(tmp_path / "rows.jsonl", SOURCE), quick=False)
    stages.hardware_counters(run)
    assert len(run.failures) == 1


def test_what_is_counted_already_is_not_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_ncu(tmp_path, monkeypatch, printed())
    for expected in (32, 0):  # two kernels of four backends, in two dtypes at two shapes
        settings = runner.Settings(torch.device("cpu"), deadline=time.monotonic() + 60)
        run = Run(settings, ResultsFile(tmp_path / "rows.jsonl", SOURCE), quick=False)
        stages.hardware_counters(run)
        assert len(run.results.rows) == expected
    run.settings.deadline = 0.0
    (tmp_path / "rows.jsonl").unlink()
    stages.hardware_counters(run)
    assert len(run.unfinished) == 16
    assert run.failures == []


def test_a_count_that_hangs_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no more than its share, and the next would hang too."""
    script = tmp_path / "ncu"
    script.write_text("#!/bin/sh\nsleep 30\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(stages, "_COUNTING", 0.5)
    settings = runner.Settings(torch.device("cpu"), deadline=time.monotonic() + 60)
    run = Run(settings, ResultsFile(tmp_path / "rows.jsonl", SOURCE), quick=False)
    begun = time.monotonic()
    stages.hardware_counters(run)
    assert time.monotonic() - begun < 10
    assert (run.failures, run.unfinished) == (["ncu was not done after 0 s"], [])


def test_the_pass_that_ncu_counts_is_marked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the device: two passes before, one between the marks, and all of it waited for."""
    log: list[str] = []

    class Work:
        def both(self, i: int) -> None:
            log.append("pass")

    class Marks:
        def __enter__(self) -> None:
            log.append("begin")

        def __exit__(self, *_: object) -> None:
            log.append("end")

    monkeypatch.setattr(counters, "usual_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(counters, "make_inputs", lambda *_, **__: None)
    monkeypatch.setattr(counters.implementations, "find", lambda *_: None)
    monkeypatch.setattr(counters.workloads, "operator", lambda *_, **__: Work())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("wait"))
    monkeypatch.setattr(torch.cuda.profiler, "profile", Marks)
    assert counters.main(["odd", "float32", "triton"]) == 0
    assert log == ["pass", "pass", "wait", "begin", "pass", "wait", "end"]


def test_without_ncu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotCounted, match="ncu is not installed"):
        count("odd", "float32", "triton", 1.0)
