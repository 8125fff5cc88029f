"""Jobs in processes, several at a time where nothing is timed."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench.harness import records
from msdeform.bench.harness.results_file import ResultsFile
from msdeform.bench.operator import implementations, runner
from msdeform.bench.operator.jobs import Correctness, Job, Kernels, Operator
from msdeform.bench.operator.runner import Settings
from msdeform.kernels import registry

SOURCE: dict[str, Any] = {"code": "c", "device": "cpu", "host_cpu": "x"}
SETTINGS = Settings(torch.device("cpu"))


def jobs_of(*backends: str) -> list[Job]:
    dtypes = ("float32", "bfloat16", "float16", "float64")
    return [Correctness("odd", "grid", dtype, "ms_deform_attn", backend) for dtype in dtypes for backend in backends]


def test_backends_are_measured_on_their_own_device() -> None:
    assert implementations.usual_backends(torch.device("cpu")) == (registry.resolve_for("cpu", backend=registry.AUTO),)
    assert implementations.usual_backends(torch.device("cuda")) == ("reference", "gather", "triton", "cuda")


def test_processes_share_a_backends_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[list[Job]] = []
    together = threading.Barrier(4)

    def group(jobs: list[Job], *_: Any) -> int:
        together.wait(10)  # all at once, or an error
        shares.append(jobs)
        return len(jobs)

    monkeypatch.setattr(runner, "_measure_group", group)
    assert runner.measure(jobs_of("one", "two"), SETTINGS, ResultsFile(None, SOURCE), processes=4) == 8
    assert sorted(len(share) for share in shares) == [2, 2, 2, 2]
    assert all(len({job.backend for job in share}) == 1 for share in shares)
    assert {job for share in shares for job in share} == set(jobs_of("one", "two"))


def test_what_is_timed_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []

    def group(jobs: list[Job], *_: Any) -> int:
        running.append(threading.active_count())
        return 0

    monkeypatch.setattr(runner, "_measure_group", group)
    before = threading.active_count()
    runner.measure(jobs_of("one", "two"), SETTINGS, ResultsFile(None, SOURCE))
    assert running == [before, before]


def test_a_time_outlives_what_its_floors_lack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner.timing, "copy_bandwidth", lambda device: 1e12)

    def properties(device: torch.device) -> Any:
        raise AttributeError("no clock is known")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    reference = implementations.find("reference", SETTINGS.device)
    job = Operator("decoder-reduced", "grid", "float32", "ms_deform_attn", "reference")
    rows = list(runner.operator_rows(job, reference, None, SETTINGS.device, 0.0))
    assert [(row["failure"], row["traffic_floor_us"]) for row in rows] == [(None, None)] * 3
    assert all(row["median_us"] > 0 for row in rows)
    assert "no floors of reference: AttributeError: no clock is known" in capsys.readouterr().err


def test_inputs_are_drawn_once_for_the_functions_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def draw(case: Any, dtype: torch.dtype, device: torch.device) -> Any:
        drawn.append(case.name)
        return real(case, dtype, device)

    real = runner.input_sets
    monkeypatch.setattr(runner, "input_sets", draw)
    runner._sets.cache_clear()
    reference = implementations.find("reference", SETTINGS.device)
    for case in ("decoder-reduced", "encoder-reduced"):
        for function in ("ms_deform_attn", "fused_ms_deform_attn", "MSDeformAttn"):
            job = Operator(case, "grid", "float32", function, "reference")
            rows = list(runner.operator_rows(job, reference, None, SETTINGS.device, 0.0))
            assert [row["failure"] for row in rows] == [None] * 3
    assert drawn == ["decoder-reduced", "encoder-reduced"]
    runner._sets.cache_clear()


def test_correctness_and_kernels_in_processes_of_their_own(tmp_path: Path) -> None:
    """The real worker: every job has its rows, and the odd case is right in the reference."""
    results = ResultsFile(tmp_path / "rows.jsonl", SOURCE)
    planned = [
        *(
            Correctness("decoder-reduced", "grid", "float32", f, "reference")
            for f in ("ms_deform_attn", "MSDeformAttn")
        ),
        Kernels("decoder-reduced", "float32", "reference"),
        Correctness("decoder-reduced", "grid", "float32", "ms_deform_attn", "official"),
    ]
    assert runner.measure(planned, SETTINGS, results, processes=2) == 0
    rows = {records.key(row): row for row in records.read(tmp_path).rows}
    assert {cell for job in planned[:3] for cell in job.cells()} | {("missing", "official")} == set(rows)
    for row in rows.values():
        assert row["kind"] == "missing" or (row["failure"] is None and row["ours"])
        if row["kind"] == "correctness":
            assert 0 < row["error"] <= row["bound"]
    assert runner.measure(planned[:3], SETTINGS, ResultsFile(tmp_path / "rows.jsonl", SOURCE)) == 0
