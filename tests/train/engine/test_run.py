"""A run to its end, or to a sentence: what is kept, what is refused, what can be gone on with."""

import contextlib
import errno
import functools
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.common.command_line import command
from msdeform.common.files import in_use
from msdeform.models.weights.formats import checkpoints_in, read_source
from msdeform.models.zoo import load_model
from msdeform.train.config.options import TrainOptions
from msdeform.train.data.synthetic.options import SynthOptions
from msdeform.train.data.synthetic.synth import make_dataset
from msdeform.train.engine import checkpoint, run
from msdeform.train.engine.checkpoint import checkpoint_path, load_checkpoint, load_trained, save_checkpoint
from msdeform.train.engine.distributed import process_group
from msdeform.train.engine.run import failure_sentence, run_steps, train
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log
from tests.train.processes import run_processes, start

Change = Callable[..., TrainOptions]


def scripted(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Makes evaluations find these APs, one after another."""
    left = list(scores)
    monkeypatch.setattr(run, "evaluate", lambda *_: {"AP": left.pop(0), "AP50": 0.0})


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_log(folder / "log.jsonl") if event["event"] == name]


def best_step(folder: Path) -> int:
    return torch.load(folder / "best.pt", weights_only=True)["step"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training and two validation images."""
    out = tmp_path_factory.mktemp("data") / "pair"
    make_dataset(SynthOptions(out, train=2, val=2, size=64, classes=3, progress=False))
    return out


@pytest.fixture
def quick(changed: Change, pair: Path, tmp_path: Path) -> TrainOptions:
    """Epochs of a single step."""
    return changed(data=pair, augment="none", epochs=4, out=tmp_path / "run")


def test_the_best_remains_when_older_checkpoints_go(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.3, 0.2, 0.3, 0.1)
    out = train(changed(quick, keep=2))
    assert [file.name for file in checkpoints_in(out)] == ["checkpoint-00000003.pt", "checkpoint-00000004.pt"]
    assert best_step(out) == 1  # the first of equals
    assert load_checkpoint(out)["best"] == {"AP": 0.3, "step": 1}


def test_checkpoints_hold_the_thresholds_of_their_evaluation(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [{"AP": ap, "AP50": ap, "thresholds": [ap, 0.5, 0.6]} for ap in (0.1, 0.3)]
    monkeypatch.setattr(run, "evaluate", lambda *_: found.pop(0))
    out = train(changed(quick, epochs=2))
    assert load_checkpoint(checkpoint_path(out, 1))["thresholds"] == [0.1, 0.5, 0.6]
    for path in (out, out / "best.pt"):
        trained = load_trained(path, torch.device("cpu"), "reference")
        assert trained.model.thresholds == load_model(path).thresholds == [0.3, 0.5, 0.6]
    assert not any("thresholds" in event for event in events(out, "epoch"))  # nothing for a curve
    resumed = Training(changed(quick, epochs=3, resume=out), load_checkpoint(out))
    assert resumed.thresholds == [0.3, 0.5, 0.6]
    old = load_checkpoint(out)
    del old["thresholds"]  # as they were before there were any
    assert Training(changed(quick, epochs=3, resume=out), old).thresholds is None
    save_checkpoint(out / "best.pt", old)
    assert load_model(out).thresholds is None


def test_a_runs_folder_stands_for_its_best(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, 0.0, 0.2, 0.3, 0.1)
    out = train(changed(quick, progress=True))
    # the first has none before it to be better than
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("validation:")]
    assert ["best so far" in line for line in said] == [False, True, True, False]
    cpu = torch.device("cpu")
    assert load_trained(out, cpu, "reference").step == 3
    assert capfd.readouterr().err == f"checkpoint: {out / 'best.pt'}\n"
    assert read_source(out).path == out / "best.pt"
    assert load_checkpoint(out)["step"] == 4  # which is what --resume goes by
    assert load_trained(checkpoint_path(out, 4), cpu, "reference").step == 4
    assert capfd.readouterr().err == ""
    (out / "best.pt").write_bytes(b"half of a file")
    assert load_trained(out, cpu, "reference").step == 4
    assert f"passing over {out / 'best.pt'}: " in capfd.readouterr().err


def test_the_newest_is_the_best_of_those_that_find_nothing(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.0, 0.0, 0.0)
    out = train(changed(quick, patience=2))  # which they count for all the same
    assert best_step(out) == load_checkpoint(out)["step"] == 3


def test_seconds_are_logged_as_those_of_one_step(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(run.time, "perf_counter", lambda: float(next(ticks)))
    scripted(monkeypatch, 0.0)
    out = train(changed(quick, epochs=9, eval_every=9, log_every=4, checkpoint_every=None))
    steps = events(out, "step")
    assert [(event["step"], event["steps"]) for event in steps] == [(1, 1), (4, 3), (8, 4)]
    # each step takes its two looks at the clock
    assert [event["step_s"] for event in steps] == [1.0, 1.0, 1.0]


def test_patience_ends_a_run_which_stays_ended(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = changed(quick, patience=2, progress=True, epochs=6)
    with monkeypatch.context() as patch:
        scripted(patch, 0.1, 0.3, 0.2, 0.3)
        out = train(options)
    assert load_checkpoint(out)["step"] == 4
    assert "no higher AP in 2 evaluations: the run ends at step 4" in capfd.readouterr().err
    assert events(out, "end")[0]["step"] == 4
    scripted(monkeypatch)  # nor is there anything to evaluate
    train(changed(options, resume=out))
    assert load_checkpoint(out)["step"] == 4
    # with more patience it goes on, and remembers how long there was none better
    scripted(monkeypatch, 0.2)
    train(changed(options, resume=out, patience=3))
    assert load_checkpoint(out)["step"] == 5


class PowerCut(Exception):
    """What nobody catches."""


def test_an_evaluation_that_was_prevented_is_made_up(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any) -> Any:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(run, "evaluate", cut)
        with pytest.raises(PowerCut):
            train(quick)
    out = Path(str(quick.run.out))
    assert [event["event"] for event in read_log(out / "log.jsonl")] == ["start", "step"]
    scripted(monkeypatch, 0.5, 0.1)
    train(changed(quick, resume=out, epochs=2))
    assert [event["step"] for event in events(out, "epoch")] == [1, 2]
    assert best_step(out) == 1
    # one that was done is not done again, also at the very end
    train(changed(quick, resume=out, epochs=2))
    assert len(events(out, "epoch")) == 2


def test_evaluations_come_every_so_many_epochs_and_at_the_end(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.1, 0.2)
    out = train(changed(quick, eval_every=2, max_steps=3))
    assert [event["step"] for event in events(out, "epoch")] == [2, 3]


def train_slowly(options: TrainOptions, ready: Path) -> None:
    """Trains, and stops in the midst of it to be seen; worker processes are at work."""
    original = Training.step

    def step(self: Training, *arguments: Any, **wishes: bool) -> Any:
        result = original(self, *arguments, **wishes)
        ready.touch()
        time.sleep(600)
        return result

    Training.step = step  # type: ignore[method-assign]
    train(options)


def test_a_folder_in_use_is_refused_and_free_after_a_kill(quick: TrainOptions, changed: Change, tmp_path: Path) -> None:
    options = changed(quick, max_steps=1, eval_every=9)
    running = start(train_slowly, changed(quick, workers=2), tmp_path / "ready")
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        who = rf"process {running.process.pid} on \S+, since 20"
        with pytest.raises(ValueError, match=f"run is in use by {who}.*; name another"):
            train(options)
    finally:
        running.process.kill()
        running.process.join()
    out = Path(str(quick.run.out))
    (out / ".checkpoint-00000001.pt.123.tmp").write_bytes(b"what the kill left")
    train(options)  # at once, whatever its workers do
    assert not list(out.glob(".*.tmp"))
    assert load_checkpoint(out)["step"] == 1


def lock_and_fork(folder: Path) -> int:
    """Takes the folder, and ends; a process that it has started, as those that load images, lives on."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_use(folder))
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        stack.pop_all()
    return child


def test_a_worker_that_outlives_its_parent_does_not_keep_the_folder(tmp_path: Path) -> None:
    child = start(lock_and_fork, tmp_path).wait().result
    try:
        with in_use(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_going_back_needs_a_folder_of_its_own(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripted(monkeypatch, 0.2, 0.1, 0.1, 0.1)
    out = train(changed(quick, epochs=2))
    earlier = out / "checkpoint-00000001.pt"
    with pytest.raises(
        ValueError, match=r"01\.pt is not the newest checkpoint of .*, which holds checkpoint-00000002\.pt"
    ):
        train(changed(quick, resume=earlier, epochs=2))
    other = train(changed(quick, resume=earlier, epochs=2, out=tmp_path / "other"))
    assert [file.name for file in checkpoints_in(other)] == ["checkpoint-00000002.pt"]
    train(changed(quick, resume=out / "checkpoint-00000002.pt", epochs=3))
    assert load_checkpoint(out)["step"] == 3


def full_after(count: int) -> Callable[..., None]:
    """A torch.save that finds room for so many checkpoints."""
    save, left = torch.save, [count]

    def limited(state: Any, file: Any) -> None:
        if left[0] == 0:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        save(state, file)

    return limited


def test_a_full_disk_ends_a_run_with_the_way_on(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, *[0.1] * 4)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full_after(3))
        with pytest.raises(RuntimeError) as told:
            train(quick)
    out = Path(str(quick.run.out))
    assert str(told.value) == (
        f"no room to write {out} at step 2 (No space left on device); "
        f"resume it with: {command('train', '--resume', out / 'checkpoint-00000002.pt')}"
    )
    assert load_checkpoint(out)["step"] == 2
    assert not list(out.glob(".*.tmp"))


def test_a_disk_that_is_full_when_the_file_is_synced(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RuntimeError, match="no room to write .* at step 1 .*quota exceeded.*; there is no checkpoint"):
        train(quick)
    assert not checkpoints_in(Path(str(quick.run.out)))


def train_with_room(options: TrainOptions, step: int, room: int) -> None:
    """Trains; after a step, no file may be larger than ``room`` bytes."""
    original = Training.step

    def limited(self: Training, *arguments: Any, **wishes: bool) -> Any:
        result = original(self, *arguments, **wishes)
        if self.steps_done == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        return result

    Training.step = limited  # type: ignore[method-assign]
    train(options)


def test_a_file_that_cannot_grow_leaves_the_last_checkpoint_whole(quick: TrainOptions, changed: Change) -> None:
    options = changed(quick, eval_every=9)
    ended = start(train_with_room, options, 2, 100_000).wait()
    out = Path(str(quick.run.out))
    assert ended.code == 1
    assert ended.error.startswith(f"no room to write {out} at step 2 ("), ended.error
    assert ended.error.endswith(f"resume it with: {command('train', '--resume', out / 'checkpoint-00000001.pt')}")
    assert len(ended.error.splitlines()) == 1
    assert load_checkpoint(out)["step"] == 1
    assert not list(out.glob(".*.tmp"))


def kill_a_worker(options: TrainOptions) -> None:
    """Trains; between the first steps, a process that loads images is killed."""
    original = Training.step

    def step(self: Training, *arguments: Any, **wishes: bool) -> Any:
        if self.steps_done == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
            time.sleep(0.5)
        return original(self, *arguments, **wishes)

    Training.step = step  # type: ignore[method-assign]
    train(options)


def test_a_worker_that_is_killed_is_told(changed: Change, tmp_path: Path) -> None:
    ended = start(kill_a_worker, changed(workers=1, out=tmp_path / "run", checkpoint_every=1)).wait()
    assert ended.code == 1
    assert ended.error.startswith("a process that loads images was killed at step 1, as a rule for want of memory: try")
    assert "fewer --workers, or less --cache-images (DataLoader worker (pid" in ended.error
    assert ended.error.endswith(f"msdeform train --resume {tmp_path / 'run' / 'checkpoint-00000001.pt'}")


@pytest.mark.parametrize(("batch_size", "advice"), [(2, "lower --batch-size, and"), (1, "try --checkpointing all")])
def test_out_of_memory_names_what_to_lower(
    changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, advice: str
) -> None:
    original = Training._backward

    def limited(self: Training, *arguments: Any) -> Any:
        if self.steps_done == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")
        return original(self, *arguments)

    monkeypatch.setattr(Training, "_backward", limited)
    with pytest.raises(RuntimeError) as told:
        train(changed(out=tmp_path / "run", checkpoint_every=2, batch_size=batch_size))
    sentence = str(told.value)
    assert sentence.startswith(f"out of memory at step 2 with --batch-size {batch_size}: {advice}")
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB.); resume it with: " in sentence
    assert len(sentence.splitlines()) == 1


def test_defects_keep_their_traceback(changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise IndexError("a defect")

    monkeypatch.setattr(Training, "_backward", broken)
    with pytest.raises(IndexError, match="a defect"):
        train(changed(out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"total_batch_size": 4}, "was trained with --total-batch-size 2 --seed 42, which its place in the data"),
        ({"seed": 43}, "belongs to, and is resumed with 2 and 43; --init-from takes its weights for another run"),
        ({"overfit": 3}, "was trained on 8 images, and now there are 60; --init-from takes its weights for new data"),
    ],
)
def test_another_order_is_refused(changed: Change, fields: dict[str, int], sentence: str) -> None:
    state = Training(changed()).state()
    with pytest.raises(ValueError, match=sentence):
        Training(changed(**fields), state)
    Training(changed(batch_size=1, lr=1e-5, epochs=9), state)  # what may change


def test_an_image_that_cannot_be_read_is_listed_once(
    quick: TrainOptions, changed: Change, pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(pair, tmp_path / "data")
    file = min((data / "train2017").iterdir())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])  # its header is right
    out = train(changed(quick, data=data, bad_data="skip", progress=True, eval_every=9, epochs=2))
    (event,) = events(out, "bad_image")
    assert file.name in event["sentence"]
    assert capfd.readouterr().err.count(f"left out: {event['sentence']}") == 1
    assert load_checkpoint(out)["step"] == 2


def numbers_drawn(options: TrainOptions, resume: Path | None = None) -> tuple[list[float], float]:
    """What dropout would draw in this process, at the start or resumed; and a weight, which is the same for all."""
    with process_group(options.compute) as group:
        training = Training(options, None if resume is None else load_checkpoint(resume), group)
        state = training.state()
        if group.is_main and resume is None:
            checkpoint.save_checkpoint(Path(str(options.run.out)) / "checkpoint-00000000.pt", state)
        return torch.rand(3).tolist(), float(next(training.model.parameters()).detach().sum())


def test_every_process_draws_its_own_numbers_and_goes_on_with_them(changed: Change, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = changed(out=out, total_batch_size=4, timeout=2.0)
    first = [ended.result for ended in run_processes(2, numbers_drawn, options)]
    assert first[0][0] != first[1][0]
    assert first[0][1] == first[1][1]
    assert numbers_drawn(options, out) == first[0]  # one goes on as the first
    again = [ended.result for ended in run_processes(3, numbers_drawn, options, out)]
    assert again[:2] == first
    assert again[2][0] not in (first[0][0], first[1][0])


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_half_precision_trains(changed: Change, tmp_path: Path, precision: str) -> None:
    base = changed(augment="none", override=("dropout=0",), max_steps=3)
    exact = run_steps(base, 2)
    out = train(changed(base, precision=precision, out=tmp_path / "run"))
    steps = events(out, "step")
    assert [step["loss"] for step in steps][:2] == pytest.approx(exact, rel=0.05)
    assert [step["loss"] for step in steps][:2] != exact
    assert steps[-1]["finite"] == 1.0
    state = load_checkpoint(out)
    if precision == "bf16":
        assert "scale" not in steps[0]
        assert state["scaler"] == {}
    else:  # halved at every step that overflowed
        skipped = [sum(1 - step["finite"] for step in steps[: number + 1]) for number in range(3)]
        assert [step["scale"] for step in steps] == [65536 / 2**count for count in skipped]
        assert state["scaler"]["scale"] == steps[-1]["scale"]


def overflow(monkeypatch: pytest.MonkeyPatch, least: float) -> None:
    """Makes gradients infinite wherever the loss scale is above ``least``."""
    original = Training._backward

    def scaled(self: Training, *arguments: Any) -> Any:
        result = original(self, *arguments)
        if self.scaler.get_scale() > least:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return result

    monkeypatch.setattr(Training, "_backward", scaled)


def test_the_search_for_a_loss_scale_is_no_failure(
    quick: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overflow(monkeypatch, 8192.0)
    out = train(changed(quick, precision="fp16", max_nonfinite=1, progress=True, eval_every=9))
    assert [step["scale"] for step in events(out, "step")] == [32768.0, 16384.0, 8192.0, 8192.0]
    assert [step["finite"] for step in events(out, "step")] == [0.0] * 3 + [1.0]
    assert not events(out, "nonfinite")
    assert not list(out.glob("nonfinite-*"))
    said = capfd.readouterr().err
    assert said.count("gradients overflowed fp16, loss scale lowered, step skipped") == 3


def test_a_search_without_end_is_a_failure(changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflow(monkeypatch, 0.0)
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=4.0))
    options = changed(precision="fp16", max_nonfinite=2, out=tmp_path / "run")
    with pytest.raises(RuntimeError, match="not finite in 2 steps in a row, the last 4"):
        train(options)  # at 4 and 2 it searches
    assert [event["step"] for event in events(tmp_path / "run", "nonfinite")] == [3, 4]


@pytest.mark.parametrize("every", [1, 4])
def test_the_log_tells_seconds_of_one_step(quick: TrainOptions, changed: Change, every: int) -> None:
    """However many steps lie between two lines of the log: images a second times seconds a step are images a step."""
    out = train(changed(quick, log_every=every, max_steps=8, epochs=8))
    last = [event for event in read_log(out / "log.jsonl") if event["event"] == "step"][-1]
    assert (last["step"], last["steps"]) == (8, every)
    seconds = last["step_s"] + last["data_s"]
    assert last["images_per_s"] * seconds == pytest.approx(quick.batch.total_batch_size, rel=0.1)


def test_a_loading_process_that_began_the_script_anew_is_told_of(tmp_path: Path) -> None:
    ended = RuntimeError("DataLoader worker (pid(s) 14391) exited unexpectedly")
    sentence = failure_sentence(ended, tmp_path, step=0, batch_size=4)
    assert sentence is not None
    assert "or begin your script with if __name__ == '__main__' (DataLoader worker" in sentence
    killed = failure_sentence(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), tmp_path, 0, 4)
    assert killed is not None
    assert "__main__" not in killed
