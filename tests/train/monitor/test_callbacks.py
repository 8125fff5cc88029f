"""Callbacks: told of everything once and in order, able to end a run, and unable to lose one."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import msdeform
from msdeform.train.config.given import Given
from msdeform.train.config.options import TrainOptions
from msdeform.train.engine.checkpoint import load_checkpoint
from msdeform.train.engine.run import train
from msdeform.train.monitor.callbacks import CheckpointEvent, EndEvent, EvaluationEvent, Event, StepEvent
from msdeform.train.monitor.run_log import read_log

Change = Callable[..., TrainOptions]


class Recorder(msdeform.Callback):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_step(self, event: StepEvent) -> None:
        self.events.append(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self.events.append(event)

    def on_checkpoint(self, event: CheckpointEvent) -> None:
        self.events.append(event)

    def on_end(self, event: EndEvent) -> None:
        self.events.append(event)


def test_all_is_told_in_order(changed: Change, tmp_path: Path) -> None:
    recorder = Recorder()
    options = changed(out=tmp_path / "run", max_steps=3, log_every=2, checkpoint_every=2, pictures=1, eval_every=9)
    out = train(options, Given([recorder]))
    kinds = [type(event).__name__.removesuffix("Event") for event in recorder.events]
    assert kinds == ["Step", "Step", "Checkpoint", "Step", "Checkpoint", "Evaluation", "Checkpoint", "End"]
    assert [event.step for event in recorder.events] == [1, 2, 2, 3, 3, 3, 3, 3]
    assert {event.folder for event in recorder.events} == {out}
    steps = [event for event in recorder.events if isinstance(event, StepEvent)]
    assert [event.logged for event in steps] == [True, True, False]
    logged = [line for line in read_log(out / "log.jsonl") if line["event"] == "step"]
    for event, line in zip(steps, logged, strict=False):
        assert dict(event.numbers) == {key: line[key] for key in event.numbers}
        assert "images_per_s" in event.numbers
    assert "loss" in steps[2].numbers
    [evaluation] = [event for event in recorder.events if isinstance(event, EvaluationEvent)]
    assert evaluation.metrics["AP"] == read_log(out / "log.jsonl")[-2]["AP"]
    assert isinstance(evaluation.pictures["predictions"], Image.Image)
    paths = [event.path for event in recorder.events if isinstance(event, CheckpointEvent)]
    assert [path.name for path in paths] == [f"checkpoint-{step:08d}.pt" for step in (2, 3, 3)]
    end = recorder.events[-1]
    assert isinstance(end, EndEvent)
    assert (end.why, end.error) == ("finished", None)


class At(Recorder):
    """Does something at one call of one method."""

    def __init__(self, method: str, step: int, act: Callable[[], Any]) -> None:
        super().__init__()
        before = getattr(self, method)

        def called(event: Event) -> Any:
            before(event)
            return act() if event.step == step else None

        setattr(self, method, called)


def fail() -> None:
    raise KeyError("no such column\nsecond line")


@pytest.mark.parametrize("method", ["on_step", "on_checkpoint"])
def test_a_callback_that_raises_ends_the_run_with_a_whole_checkpoint(
    changed: Change, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "run"
    options = changed(out=out, max_steps=4, checkpoint_every=2)
    failing, other = At(method, 2, fail), Recorder()
    with pytest.raises(RuntimeError) as caught:
        train(options, Given([failing, other]))
    sentence = (
        f"callback At, {method}: KeyError: 'no such column\\nsecond line'; all is saved at step 2; resume it with: "
    )
    assert str(caught.value).startswith(sentence)
    assert isinstance(caught.value.__cause__, KeyError)
    assert load_checkpoint(out)["step"] == 2
    end = other.events[-1]
    assert isinstance(end, EndEvent)
    assert (end.why, end.error) == ("failed", caught.value)
    at = failing.events.index(next(event for event in failing.events if event.step == 2))
    assert [type(event) for event in failing.events[at + 1 :]][-1:] == [EndEvent]
    assert len(failing.events) - at <= 3  # nothing else is called again

    train(changed(out=None, resume=out, max_steps=4, checkpoint_every=2))
    whole = train(changed(out=tmp_path / "whole", max_steps=4, checkpoint_every=2))
    one, other_one = (load_checkpoint(folder)["model"] for folder in (out, whole))
    assert all(one[name].equal(other_one[name]) for name in one)


@pytest.mark.parametrize("method", ["on_step", "on_evaluation", "on_checkpoint", "on_end"])
def test_a_failure_at_the_very_end_is_told(changed: Change, tmp_path: Path, method: str) -> None:
    with pytest.raises(RuntimeError, match=f"^callback At, {method}: KeyError"):
        train(changed(out=tmp_path / "run", max_steps=2), Given([At(method, 2, fail)]))
    assert load_checkpoint(tmp_path / "run")["step"] == 2


def test_a_callback_ends_a_run(changed: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = At("on_step", 2, lambda: True)
    out = train(changed(out=tmp_path / "run", max_steps=9, progress=True), Given([stopping]))
    assert load_checkpoint(out)["step"] == 2
    assert "callback At, on_step wished it; all is saved at step 2; resume it with: " in capsys.readouterr().err
    end = stopping.events[-1]
    assert isinstance(end, EndEvent)
    assert end.why == "stopped"


def leave() -> None:
    raise SystemExit(3)


def test_leaving_by_a_callback_loses_nothing(changed: Change, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^callback At, on_step: SystemExit: 3; all is saved at step 1; resume"):
        train(changed(out=tmp_path / "run", max_steps=9), Given([At("on_step", 1, leave)]))
    assert load_checkpoint(tmp_path / "run")["step"] == 1


def test_who_raises_is_named_before_who_wishes(changed: Change, tmp_path: Path) -> None:
    wishing, failing = At("on_step", 1, lambda: True), At("on_checkpoint", 1, fail)
    with pytest.raises(RuntimeError, match="^callback At, on_checkpoint: KeyError"):
        train(changed(out=tmp_path / "run", max_steps=9), Given([wishing, failing]))


def test_signals_are_told_as_a_stop(changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = At("on_step", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(changed(out=tmp_path / "run", max_steps=9), Given([recorder]))
    end = recorder.events[-1]
    assert isinstance(end, EndEvent)
    assert end.why == "stopped"


class Misspelt:
    def on_stpe(self, event: Event) -> None: ...


class Nothing: ...


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (Misspelt(), "callbacks: Misspelt has a method on_stpe; did you mean on_step?"),
        (Nothing(), "callbacks: Nothing has none of on_step, on_evaluation, on_checkpoint, on_end"),
        (Recorder, r"callbacks: expected objects, got the class Recorder itself; call it: Recorder\(\)"),
    ],
)
def test_what_is_no_callback_is_refused(changed: Change, tmp_path: Path, callback: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(changed(out=tmp_path / "run"), Given([callback]))
    assert not (tmp_path / "run").exists()
