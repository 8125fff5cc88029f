"""Training runs by backend and seed: stopped and gone on with, kept as rows, compared, drawn from rows alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.bench.harness import records
from msdeform.bench.models.training import runs, seeds, spread
from msdeform.bench.options import SeedsOptions
from msdeform.cli import main
from msdeform.common.command_line import parse
from msdeform.train.config.resolve import resolve
from msdeform.train.engine.run import train
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs in this process, where nobody waits for imports; the names of those that were begun or gone on with."""
    begun: list[str] = []

    def act(command: list[str], log: Path, end: float) -> tuple[int, str]:
        begun.append(log.stem)
        try:
            train(resolve(command[command.index("train") + 1 :]))
        except SystemExit as stop:
            return int(str(stop.code)), ""
        return 0, ""

    monkeypatch.setattr(runs, "_apart", act)
    return begun


def words(tmp_path: Path, *more: str) -> list[str]:
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "rows")]
    return ["bench", "seeds", "--quick", "--backends", "reference", "cuda", "--seeds", "0", "1", *places, *more]


def options(tmp_path: Path, *more: str) -> SeedsOptions:
    return parse(SeedsOptions, words(tmp_path, *more)[2:], "msdeform bench seeds")


def stop_once(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Signals the run, as the end of the time would, when it has done ``step``."""
    original, signalled = Training.step, []

    def limited(self: Training, *given: Any, **wishes: Any) -> dict[str, float] | None:
        result = original(self, *given, **wishes)
        if self.steps_done == step and not signalled:
            signalled.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(Training, "step", limited)


def test_a_run_that_was_stopped_goes_on_and_a_finished_one_is_not_done_again(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_once(monkeypatch, 3)
    assert main(words(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "1 rows are left" in out
    assert "cuda: no CUDA device was found" in out
    stopped, second = records.read(tmp_path / "rows").rows
    assert (stopped["seed"], second["seed"], second["failure"]) == (0, 1, None)
    # how far it came is told, and no result
    assert (stopped["failure"], stopped["ap"]) == ("stopped after 3 steps, for want of time", None)
    assert [step for step, _ in stopped["loss_curve"]] == [1, 2, 3]
    assert [step for step, _ in stopped["ap_curve"]] == [2]
    assert main(words(tmp_path)) == 0
    assert here == ["reference-seed0", "reference-seed1", "reference-seed0"]
    second, first = records.read(tmp_path / "rows").rows[1:]
    assert (first["seed"], first["backend"], first["steps"], first["reduced"]) == (0, "reference", 4, True)
    assert [step for step, _ in first["loss_curve"]] == [1, 2, 3, 4]
    assert [step for step, _ in first["ap_curve"]] == [2, 4]
    assert first["loss_curve"] != second["loss_curve"]  # a seed decides
    assert first["loss"] == pytest.approx(np.mean([loss for _, loss in first["loss_curve"][2:]]), rel=1e-3)
    assert min(first[name] for name in ("images_per_second", "seconds", "peak_mb")) > 0
    assert str(tmp_path) not in str(first)
    [log] = (tmp_path / "runs").glob("*/reference-seed0/log.jsonl")
    assert [event["step"] for event in read_log(log) if event["event"] == "resume"] == [3]
    # all have rows; then none, but the finished runs are still there
    assert main(words(tmp_path)) == 0
    assert "2 cells were recorded already" in capsys.readouterr().out
    assert main(words(tmp_path, "--out", str(tmp_path / "others"))) == 0
    assert len(here) == 3
    again = records.read(tmp_path / "others").rows
    assert [row["loss_curve"] for row in again] == [first["loss_curve"], second["loss_curve"]]


def test_a_run_ends_with_the_benchmark_that_began_it(tmp_path: Path) -> None:
    """One that is killed leaves nothing on the device."""
    begin = (
        "import pathlib, sys, time\n"
        "from msdeform.bench.models.training import runs\n"
        f"runs.train(['--help'], pathlib.Path({str(tmp_path / 'log')!r}), time.monotonic() + 60)"
    )
    assert subprocess.run([sys.executable, "-c", begin], cwd=ROOT, check=False, timeout=120).returncode == 0
    assert "usage: msdeform train" in (tmp_path / "log").read_text()
    waiting = runs._WATCHED.replace("main(sys.argv[1:])", "__import__('time').sleep(60)")
    killed = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {waiting!r}], start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(8); os._exit(9)"
    )
    child = int(subprocess.run([sys.executable, "-c", killed], cwd=ROOT, check=False, stdout=-1, timeout=60).stdout)
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not Path(f"/proc/{child}").exists()


def test_nothing_begins_when_the_time_is_over(here: list[str], tmp_path: Path) -> None:
    assert seeds.measure_rows(options(tmp_path, "--minutes", "0")) == 2
    assert here == []


def test_a_run_that_fails_says_why_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_apart", lambda *_: (1, "msdeform train: out of memory at step 7"))
    assert seeds.measure_rows(options(tmp_path)) == 0
    rows = records.read(tmp_path / "rows").rows
    assert [(row["failure"], row["ap"]) for row in rows] == [("msdeform train: out of memory at step 7", None)] * 2


def test_a_process_is_asked_to_stop_when_the_time_is_over(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(75)))\n"
        "print('begun', flush=True); time.sleep(60)"
    )
    begun = time.monotonic()
    assert runs._apart([sys.executable, "-c", code], tmp_path / "log", begun + 2) == (75, "saved")
    assert 2 <= time.monotonic() - begun < 30
    status = runs._apart([sys.executable, "-c", "print('x'); sys.exit('wrong')"], tmp_path / "new" / "log", begun + 60)
    assert status[0] == 1
    assert "NameError" in status[1]


def test_one_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_GRACE", 0.5)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    status, said = runs._apart([sys.executable, "-c", code], tmp_path / "log", time.monotonic() + 2)
    assert (status, said) == (-signal.SIGKILL, "deaf")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--seeds", "-1"], "--seeds: expected at least 0, got -1"),
        (["--lr", "0"], "--lr: expected a number above 0, got 0"),
        (["--image-size", "32"], "--image-size: expected at least 64 pixels, got 32"),
        (["--model", "detr_r5"], "--model: no model is called 'detr_r5'"),
    ],
)
def test_a_wrong_option_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "seeds", *more])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"msdeform bench seeds: {sentence}")
    assert error.count("\n") == 1


SOURCE = {
    "code": "c",
    "commit": "abcdef123",
    "dirty": False,
    "device": "NVIDIA H200",
    "host_cpu": "Xeon",
    "host_threads": 1,
    "host_load": 1.5,
    "torch": "2.11",
    "triton": "3.6",
    "date": "2026-01-02T03:04:05",
}


def rows_of(backend: str, *aps: float, **more: Any) -> list[dict[str, Any]]:
    """A row for each seed, with a curve that ends at its AP."""
    lead = {"kind": "seeds", "model": "deformable_detr_r50", "settings": "10 epochs", "backend": backend}
    measured = {"steps": 20, "loss": 5.0, "images_per_second": 80.0, "seconds": 200.0, "peak_mb": 9000.0}
    curve = {"loss_curve": [[1, 9.0], [20, 5.0]], "reduced": False, "failure": None, **SOURCE}
    return [
        {**lead, **measured, **curve, "seed": seed, "ap": ap, "ap50": 2 * ap, "ap_curve": [[10, ap / 2], [20, ap]]}
        | more
        for seed, ap in enumerate(aps)
    ]


@pytest.mark.parametrize(
    ("reference", "triton", "said"),
    [
        (
            (0.30, 0.32, 0.34),
            (0.31, 0.33, 0.35),
            "0.010 apart, the seeds of one backend up to 0.040: the backends agree",
        ),
        (
            (0.30, 0.31, 0.32),
            (0.35, 0.36, 0.37),
            "0.050 apart, the seeds of one backend up to 0.020: the backends differ",
        ),
        ((0.30, 0.31), (0.31, 0.32, 0.90), "Over 2 seeds the mean APs of reference, triton lie 0.010 apart"),
        ((0.30,), (0.31, 0.32), "Nothing can be said of whether backends agree: 2 of them, 1 seeds that all have."),
        ((0.0, 0.01), (0.01, 0.02), "too little was learnt to tell backends apart"),
        ((0.0, 0.0), (0.3, 0.31), "the backends differ by more than seeds do"),
    ],
)
def test_backends_agree_as_far_as_seeds_do(reference: tuple[float, ...], triton: tuple[float, ...], said: str) -> None:
    assert said in spread.verdict([*rows_of("reference", *reference), *rows_of("triton", *triton)])


def test_mean_and_spread_of_a_backend() -> None:
    [_, line] = spread.table(rows_of("triton", 0.30, 0.32, 0.34))
    assert line == ("triton", "3", "0.320", "0.300 to 0.340", "0.020", "0.640", "5.00", "80.0", "200", "9000")
    assert spread.table(rows_of("triton", 0.3))[1][3:5] == ("0.300 to 0.300", "-")


def test_a_long_curve_is_kept_as_means_of_neighbours() -> None:
    x = np.arange(1.0, 501.0)
    curve = spread.thinned(x, x**2)
    assert len(curve) == 50
    assert curve[0] == [5.5, 38.5]
    assert spread.thinned(x[:2], x[:2]) == [[1.0, 1.0], [2.0, 2.0]]
    assert spread.thinned(x[:0], x[:0]) == []


def test_curves_are_drawn_from_rows_alone(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    pages = {tmp_path / "README.md": "curves", tmp_path / "docs" / "benchmarks.md": "seeds"}
    for page, block in pages.items():
        page.write_text(f"<!-- rendered {block} -->\n<!-- end of {block} -->\n")
    rows = [*rows_of("reference", 0.30, 0.32, 0.34), *rows_of("triton", 0.31, 0.33, 0.35)]
    rows += rows_of("cuda", 0.1, failure="out of memory")
    rows += rows_of("reference", 0.77, reduced=True, settings="quick")  # nobody's result
    records.append(tmp_path / "results" / "rows.jsonl", rows)
    words = ["bench", "render", "--root", str(tmp_path), "--results", str(tmp_path / "results")]
    assert main(words) == 0
    [plot] = (tmp_path / "docs" / "plots").iterdir()
    assert b"triton: mean and range of 3 seeds" in plot.read_bytes()
    readme, whole = (page.read_text() for page in pages)
    assert f"](docs/plots/{plot.name})" in readme
    assert f"](plots/{plot.name})" in whole
    assert "| triton | 3 | 0.330 | 0.310 to 0.350 |" in whole
    assert "deformable_detr_r50, 10 epochs, cuda, 0: out of memory." in whole
    assert all("the backends agree within the spread of seeds" in text for text in (readme, whole))
    assert all("77" not in text and "quick" not in text for text in (readme, whole))
    assert main([*words, "--check"]) == 0
