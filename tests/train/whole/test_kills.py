"""A run killed at any moment, also in the middle of saving, goes on to the very weights of one that was not."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.models.weights.formats import checkpoints_in
from msdeform.train.config.options import TrainOptions
from msdeform.train.data.dataset import CocoDetection
from msdeform.train.engine import checkpoint, run
from msdeform.train.engine.checkpoint import load_checkpoint
from msdeform.train.engine.run import train
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log
from tests.train.processes import start

Change = Callable[..., TrainOptions]

# moments of saving a checkpoint, each before what its name says
PLACES = ("half written", "synced", "renamed", "folder synced", "best linked", "old removed")


def train_better(options: TrainOptions) -> Path:
    """Trains, and every evaluation finds the model better than before, so that each has a best checkpoint to keep."""
    evaluate = run.evaluate

    def better(training: Training, validation: CocoDetection) -> dict[str, Any]:
        return {**evaluate(training, validation), "AP": training.steps_done / 1000}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "evaluate", better)
        return train(options)


def train_and_pause(options: TrainOptions, place: str, occurrence: int, paused: Path) -> None:
    """Trains, and the so manieth time that it comes to ``place`` says so by a file, and waits to be killed."""
    left = [occurrence]

    def pause(here: str) -> None:
        left[0] -= here == place
        if left[0] == 0 and here == place:
            paused.touch()
            time.sleep(600)

    save, fsync, replace, link, unlink = torch.save, os.fsync, os.replace, os.link, Path.unlink

    def half_save(state: Any, file: Any) -> None:
        save(state, file)
        if left[0] == 1 and place == "half written":
            file.truncate(file.tell() // 2)
            file.flush()
        pause("half written")

    def slow_fsync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if name.startswith(".checkpoint-"):
            pause("synced")
        elif name == os.path.basename(str(options.run.out)):
            pause("folder synced")
        fsync(descriptor)

    def slow_replace(source: Any, target: Any) -> None:
        if Path(target).name.startswith("checkpoint-"):
            pause("renamed")
        replace(source, target)

    def slow_link(*arguments: Any) -> None:
        pause("best linked")
        link(*arguments)

    def slow_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("checkpoint-"):
            pause("old removed")
        unlink(path, missing_ok=missing_ok)

    checkpoint.torch.save = half_save  # type: ignore[attr-defined]
    os.fsync, os.replace, os.link = slow_fsync, slow_replace, slow_link  # type: ignore[assignment]
    Path.unlink = slow_unlink  # type: ignore[method-assign, assignment]
    train_better(options)


def losses_of(folder: Path) -> dict[int, float]:
    """Of every step, as it was done last."""
    return {event["step"]: event["loss"] for event in read_log(folder / "log.jsonl") if event["event"] == "step"}


def newest_step(folder: Path) -> int:
    """Of the newest whole checkpoint; 0 before the first."""
    return load_checkpoint(folder)["step"] if checkpoints_in(folder) else 0


def kill(options: TrainOptions, place: str, draw: random.Random, marks: Path, longest: float) -> None:
    """Starts the run, or goes on with it, and kills it at ``place``: at any time, within ``longest`` seconds."""
    paused = marks / f"{time.monotonic_ns()}"
    # a run killed at any time waits at its fourth checkpoint, so that a fast one also leaves work to the kills after it
    stop = ("half written", 4) if place == "any time" else (place, draw.randint(1, 3))
    process = start(train_and_pause, options, *stop, paused)
    deadline = time.monotonic() + (draw.uniform(0.05, 1) * longest if place == "any time" else 60)
    while time.monotonic() < deadline and process.process.is_alive() and not paused.exists():
        time.sleep(0.005)
    alive = process.process.is_alive()
    process.process.kill()
    ended = process.wait(10)
    assert alive, f"the run ended before it came to {place}: {ended}"
    assert place == "any time" or paused.exists(), f"the run never came to {place}"


def go_on(options: TrainOptions) -> TrainOptions:
    """The settings of the run's next start."""
    import dataclasses

    out = Path(str(options.run.out))
    resume = out if checkpoints_in(out) else None
    return dataclasses.replace(options, run=dataclasses.replace(options.run, resume=resume))


def kill_and_finish(options: TrainOptions, places: list[str], marks: Path, longest: float) -> None:
    """Kills the run at each of the places in turn, and lets it end. ``longest`` is how many seconds it gets before a
    kill at any time."""
    draw, out = random.Random(0), Path(str(options.run.out))
    for place in places:
        before = newest_step(out)
        kill(go_on(options), place, draw, marks, longest)
        assert newest_step(out) >= before, place
    train_better(go_on(options))
    assert not [file for file in out.iterdir() if file.name.endswith(".tmp")]


def assert_equal_runs(whole: Path, broken: Path) -> None:
    assert losses_of(whole) == losses_of(broken)
    first, second = (load_checkpoint(folder) for folder in (whole, broken))
    assert first["step"] == second["step"]
    for part in ("model", "optimizer"):
        mine, theirs = (dict(_tensors(state[part])) for state in (first, second))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert first["best"] == second["best"]
    best = [torch.load(folder / "best.pt", weights_only=True) for folder in (whole, broken)]
    assert best[0]["step"] == best[1]["step"] == first["best"]["step"]


def _tensors(tree: Any, name: str = "") -> Any:
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}.{key}")
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _tensors(value, f"{name}.{number}")


@pytest.fixture
def short(changed: Change) -> TrainOptions:
    """A checkpoint at every step, with dropout, random crops and an average of the weights."""
    return changed(checkpoint_every=1, ema=0.9, epochs=2)


def test_three_kills_lose_nothing(short: TrainOptions, changed: Change, tmp_path: Path) -> None:
    begin = time.monotonic()
    whole = train_better(changed(short, out=tmp_path / "whole"))
    seconds = time.monotonic() - begin
    places = ["any time", "half written", "renamed"]
    kill_and_finish(changed(short, out=tmp_path / "killed"), places, tmp_path, seconds / 2)
    assert_equal_runs(whole, tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_lose_nothing(short: TrainOptions, changed: Change, tmp_path: Path) -> None:
    longer = changed(short, epochs=80)
    begin = time.monotonic()
    whole = train_better(changed(longer, out=tmp_path / "whole"))
    seconds = time.monotonic() - begin
    # 30 while saving, five at each place, and 20 at any time
    places = [*PLACES * 5, *["any time"] * 20]
    random.Random(1).shuffle(places)
    kill_and_finish(changed(longer, out=tmp_path / "killed"), places, tmp_path, seconds / 40)
    assert_equal_runs(whole, tmp_path / "killed")


def test_a_best_checkpoint_that_a_kill_prevented_is_made_up_for(
    short: TrainOptions, changed: Change, tmp_path: Path
) -> None:
    options = changed(short, out=tmp_path / "run", epochs=1)
    out = train(options)
    (out / "best.pt").unlink()
    train(go_on(options))
    assert torch.load(out / "best.pt", weights_only=True)["step"] == 4
