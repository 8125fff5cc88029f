"""The file that a command's rows go to: what it holds is not measured again, unless that is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench.harness import records
from msdeform.bench.harness.results_file import ResultsFile, open_results
from msdeform.bench.operator.jobs import Correctness, Job
from msdeform.bench.options import CpuOptions

SOURCE: dict[str, Any] = {"code": "c", "device": "cpu", "host_cpu": "x"}


def new(results: ResultsFile, *jobs: Job) -> list[Job]:
    return [job for job in jobs if results.to_measure(*job.cells())]


def test_rows_go_to_the_file_that_is_named(tmp_path: Path) -> None:
    job, other = (Correctness("odd", "grid", "float32", "ms_deform_attn", backend) for backend in ("one", "two"))
    first = ResultsFile(tmp_path / "rows.jsonl", SOURCE)
    for row in [*job.unmeasured(None), *other.unmeasured("wrong")]:
        first.add(row)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    assert new(ResultsFile(tmp_path / "rows.jsonl", SOURCE), job, other) == []
    # what failed may be asked for again, once it was right no more
    assert new(ResultsFile(tmp_path / "rows.jsonl", SOURCE, retry=True), job, other) == [other]
    retried = ResultsFile(tmp_path / "rows.jsonl", SOURCE, retry=True)
    for row in other.unmeasured(None):
        retried.add(row)
    assert new(ResultsFile(tmp_path / "rows.jsonl", SOURCE, retry=True), job, other) == []
    assert new(ResultsFile(tmp_path / "rows.jsonl", SOURCE | {"code": "d"}), job, other) == [job, other]


def test_what_is_recorded_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Correctness("odd", "grid", "float32", "ms_deform_attn", "one")
    forward, backward = job.unmeasured(None)
    ResultsFile(tmp_path, SOURCE).add(forward)
    results = ResultsFile(tmp_path, SOURCE)
    assert results.to_measure(*job.cells())  # one of its two cells is new
    assert results.already == 0
    results.add(forward)  # measured again beside it, and not written again
    results.add(backward)
    assert len(records.read(tmp_path).rows) == 2
    done = ResultsFile(tmp_path, SOURCE)
    assert not done.to_measure(*job.cells())
    done.report()
    assert "2 cells were recorded already" in capsys.readouterr().out


def test_a_file_is_named_after_day_and_device_and_its_rows_know_the_command(tmp_path: Path) -> None:
    results = open_results("msdeform bench cpu", CpuOptions(out=tmp_path), torch.device("cpu"))
    assert results.path is not None
    assert results.path.parent == tmp_path
    assert results.path.name.endswith("-cpu.jsonl")
    assert results.source["command"] == "msdeform bench cpu"
    other = open_results("msdeform bench cpu", CpuOptions(), torch.device("cpu"), measured=("bench/cpu/cpu.py",))
    assert other.path is None
    assert other.source["code"] != results.source["code"]
