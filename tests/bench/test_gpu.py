"""The script for a GPU machine: end to end in its reduced form, in order, resumable, and within its time."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench import gpu, runner
from msdeform.bench.jobs import Job

ARGUMENTS = ["--quick", "--seconds", "0", "--no-verify", "--no-tests"]


def test_reduced_form_end_to_end(tmp_path: Path) -> None:
    places = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "msdeform.bench.gpu", *ARGUMENTS, *places]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    (file,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    kinds = {row["kind"] for row in rows}
    by_stage = {"missing", "operator", "model", "profile", "training"}
    assert kinds == by_stage | {"loading", "training-step", "explanation", "seeds"}
    measured = [row for row in rows if row["kind"] in ("operator", "model", "training")]
    assert {row["backend"] for row in measured} == {"reference", "core"}
    assert all(row["median_us"] > 0 for row in measured)
    # none of it can be taken for a result of the published method
    assert all(row["method"].startswith("reduced ") for row in rows if row["kind"] in ("model", "training"))
    profiles = {row["what"]: row for row in rows if row["kind"] == "profile"}
    assert set(profiles) == {"deformable_detr_tiny", "deformable_detr_tiny, training step", "encoder-reduced"}
    assert all(row["longest"] and row["total_us"] > 0 for row in profiles.values())
    assert any("backward" in line["name"].lower() for line in profiles["encoder-reduced"]["longest"])
    missing = {row["backend"] for row in rows if row["kind"] == "missing"}
    assert missing >= {"triton", "cuda", "official"}
    for row in rows:
        assert {"commit", "dirty", "code", "device", "torch", "date", "command"} <= set(row)
        assert str(tmp_path) not in row["command"]
    [trained] = [row for row in rows if row["kind"] == "seeds"]
    assert trained["failure"] is None
    assert trained["reduced"]
    assert "skipped or failed" in answer.stdout
    assert "deformable_detr_tiny  reduced published" in answer.stdout


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[list[Job]]:
    """The stages' jobs, none of them measured."""
    seen: list[list[Job]] = []

    def note(jobs: list[Job], settings: runner.Settings, book: runner.Book) -> int:
        seen.append(list(jobs))
        return 0

    monkeypatch.setattr(gpu, "measure", note)
    for command in (gpu.training, gpu.explain, gpu.seeds):
        monkeypatch.setattr(command, "run", lambda words: 0)
    monkeypatch.setattr(
        gpu.profile,
        "profile",
        lambda what, backend, device: {
            "kind": "profile",
            "what": what,
            "backend": backend,
            "longest": [],
            "total_us": 1.0,
        },
    )
    return seen


def run_of(tmp_path: Path, deadline: float = float("inf")) -> gpu.Run:
    source: dict[str, Any] = {"code": "c", "device": "cpu", "host_cpu": "x"}
    return gpu.Run(runner.Settings(torch.device("cpu"), deadline=deadline), runner.Book(tmp_path, source), quick=False)


def test_the_most_important_comes_first_and_what_compiles_last(planned: list[list[Job]], tmp_path: Path) -> None:
    gpu._full(run_of(tmp_path))
    kinds = [jobs[0].kind for jobs in planned]
    assert kinds == ["operator", "model", "operator", "operator", "model", "training", "operator", "model"]
    assert {job.case for job in planned[0]} == {"encoder-800x1066-b2", "decoder-800x1066"}  # type: ignore[union-attr]
    compiled = [
        any("compiled" in (job.backend, getattr(job, "mode", "")) or job.backend.endswith("-compiled") for job in jobs)
        for jobs in planned
    ]
    assert compiled == [False] * 6 + [True] * 2
    models = {(job.model, job.batch, job.dtype, job.backend) for job in planned[1]}  # type: ignore[union-attr]
    for batch in (1, 4):
        for dtype in ("float32", "bfloat16"):
            assert ("detr_r50_dc5_plus", batch, dtype, "none") in models
            assert all(
                ("deformable_detr_r50_two_stage", batch, dtype, ours) in models
                for ours in ("triton", "cuda", "reference")
            )


@pytest.mark.parametrize("quick", [False, True])
def test_training_gets_the_time_that_is_left(
    quick: bool, planned: list[list[Job]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, deadline=time.monotonic() + 180)
    run.quick = quick
    if quick:
        run.book.path = None
    asked: list[list[str]] = []

    def note(words: list[str]) -> int:
        asked.append(words)
        return 4 if "--runs" in words else 0

    for command in (gpu.training, gpu.explain, gpu.seeds):
        monkeypatch.setattr(command, "run", note)
    (gpu._reduced if quick else gpu._full)(run)
    for words in asked:
        assert 2.5 < float(words[words.index("--minutes") + 1]) <= 3
        assert ("--quick" in words) == quick
        assert ("--out" in words) != quick
    assert sum("--runs" in words for words in asked) == 1
    assert run.left == ["training runs by backend and seed: 4"]
    # less than a minute is nothing to begin such a command with
    run.settings.deadline = time.monotonic() + 30
    run.seeds([])
    assert run.left[1:] == ["training runs by backend and seed"]


def test_what_passed_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    calls = []

    def act() -> str | None:
        calls.append(1)
        return "wrong" if len(calls) == 1 else None

    for expected in (1, 2, 2):
        run = run_of(tmp_path)
        run.once("msdeform verify", act)
        assert len(calls) == expected
    assert run.failures == []


@pytest.mark.parametrize(("status", "failures"), [(0, []), (9, ["memcheck: exit status 9"])])
def test_memcheck_runs_where_the_sanitizer_is(
    status: int, failures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path)
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    gpu._memcheck(run)
    assert "compute-sanitizer is not installed" in run.book.skipped[0]
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(f"#!/bin/sh\necho $PYTORCH_NO_CUDA_MEMORY_CACHING $@ > {tmp_path}/words\nexit {status}\n")
    sanitizer.chmod(0o755)
    monkeypatch.setattr(gpu.shutil, "which", lambda _: str(sanitizer))
    gpu._memcheck(run)
    assert run.failures == failures
    assert (tmp_path / "words").read_text().startswith("1 --tool memcheck --error-exitcode 9 ")


def test_nothing_begins_after_the_deadline(planned: list[list[Job]], tmp_path: Path) -> None:
    run = run_of(tmp_path, deadline=0.0)
    run.once("msdeform verify", lambda: pytest.fail("begun"))
    run.profile("deformable_detr_tiny", "reference")
    assert run.left == ["msdeform verify", "profile of deformable_detr_tiny, reference"]
    left = runner.measure(gpu.plan(["odd"], ["grid"], ["float32"], ["core"]), run.settings, run.book)
    assert left == 2


def test_a_failed_verification_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, planned: list[list[Job]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "_verify", lambda: "msdeform verify")
    assert gpu.main(["--quick", "--no-tests", "--out", str(tmp_path)]) == 1
    assert "FAILED\n  msdeform verify" in capsys.readouterr().out


def test_an_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        gpu.main(["--quik"])
    assert exit_.value.code == 2
    assert "did you mean --quick" in capsys.readouterr().err
