"""Wishes to stop: remembered until a step is done, by the process that decides alone."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msdeform.models.weights.formats import checkpoints_in
from msdeform.train.config.options import TrainOptions
from msdeform.train.engine import signals
from msdeform.train.engine.checkpoint import load_checkpoint
from msdeform.train.engine.run import train
from msdeform.train.engine.signals import StopSignals
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log
from tests.train.processes import start

Change = Callable[..., TrainOptions]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_the_first_signal_is_remembered_and_handlers_come_back(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    original = signal.signal(number, lambda *_: None)  # whatever these tests were started by, such as nohup
    before = signal.getsignal(number)
    try:
        with StopSignals() as caught:
            assert caught.caught is None
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
            assert caught.caught == name
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, original)
    assert ("Ctrl-C again stops at once" in capfd.readouterr().err) == (name == "SIGINT")


def test_a_run_outlives_its_terminal_where_nohup_says_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert caught.caught is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with StopSignals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)  # before, from a scheduler
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 0.1  # of one Ctrl-C at a terminal torchrun makes two
        os.kill(os.getpid(), signal.SIGINT)
        assert caught.caught == "SIGTERM"
        now[0] += 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_status_tells_a_scheduler_to_come_again() -> None:
    assert [StopSignals.status(name) for name in ("SIGTERM", "SIGUSR1", "SIGINT")] == [75, 75, 130]


def train_and_signal(options: TrainOptions, step: int, number: int) -> None:
    """Trains; after a step, signals the whole process group, worker processes too."""
    os.setpgid(0, 0)  # not that of the tests
    original = Training.step

    def signalling(self: Training, *arguments: Any, **wishes: bool) -> Any:
        result = original(self, *arguments, **wishes)
        if self.steps_done == step:
            os.killpg(0, number)
            time.sleep(0.2)  # a worker that would end has the time to
        return result

    Training.step = signalling  # type: ignore[method-assign]
    train(options)


def losses_of(folder: Path) -> list[float]:
    return [event["loss"] for event in read_log(folder / "log.jsonl") if event["event"] == "step"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_nothing_had_been(
    changed: Change, tmp_path: Path, number: int, status: int
) -> None:
    base = changed(epochs=1, eval_every=5)
    options = changed(base, out=tmp_path / "stopped", workers=2)
    ended = start(train_and_signal, options, 2, number).wait()
    assert ended.code == status, ended.error
    out = tmp_path / "stopped"
    assert [load_checkpoint(file)["step"] for file in checkpoints_in(out)] == [2]
    last = read_log(out / "log.jsonl")[-1]
    assert (last["event"], last["step"], last["signal"]) == ("stopped", 2, signal.Signals(number).name)
    if number == signal.SIGTERM:
        train(changed(base, out=out, resume=out))
        whole = train(changed(base, out=tmp_path / "whole"))
        assert losses_of(out) == losses_of(whole)


def test_a_wish_during_an_evaluation_waits_for_its_end(
    changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msdeform.train.engine import run

    evaluate = run.evaluate

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return evaluate(*arguments)

    monkeypatch.setattr(run, "evaluate", signalled)
    with pytest.raises(SystemExit) as stopped:
        train(changed(out=tmp_path / "run"))
    assert stopped.value.code == 75
    state = load_checkpoint(tmp_path / "run")
    assert state["step"] == state["evaluated_at"] == 4
    assert (tmp_path / "run" / "best.pt").is_file()
