"""Several processes: the same training as one, whatever goes wrong in one of them is told by all."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.models.weights.formats import checkpoints_in
from msdeform.train.config.options import TrainOptions
from msdeform.train.engine.checkpoint import load_checkpoint
from msdeform.train.engine.distributed import process_group
from msdeform.train.engine.run import train
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log
from tests.train.processes import Ended, run_processes, start_processes

Change = Callable[..., TrainOptions]

# in float64 the order of sums is all that differs; training amplifies that by less than this in so few steps
EQUAL = 1e-9
COMPARED = ("loss", "loss_ce", "loss_bbox", "loss_giou", "class_error", "cardinality_error", "grad_norm")


@pytest.fixture
def exact(changed: Change) -> TrainOptions:
    """Two epochs of two steps of four images: no dropout, one size, norms that do not look at the batch."""
    return changed(
        augment="flip",
        override=("dropout=0", "backbone_frozen=true"),
        total_batch_size=4,
        batch_size=4,
        precision="fp64",
        timeout=2.0,
        schedule="constant",  # whose rates do not depend on the length of the run
    )


def steps_of(folder: Path) -> dict[int, dict[str, float]]:
    steps = [event for event in read_log(folder / "log.jsonl") if event["event"] == "step"]
    return {step["step"]: {name: step[name] for name in COMPARED} for step in steps}


def metrics_of(folder: Path) -> dict[int, dict[str, float]]:
    ignored = ("event", "time", "seconds")
    epochs = [event for event in read_log(folder / "log.jsonl") if event["event"] == "epoch"]
    return {epoch["step"]: {k: v for k, v in epoch.items() if k not in ignored} for epoch in epochs}


def assert_same_training(first: Path, second: Path) -> None:
    steps, others = steps_of(first), steps_of(second)
    assert steps.keys() == others.keys()
    for step, values in steps.items():
        assert others[step] == pytest.approx(values, rel=EQUAL), step
    metrics, others = metrics_of(first), metrics_of(second)
    assert metrics.keys() == others.keys() != set()
    for step, numbers in metrics.items():
        classes, other = numbers.pop("per_class"), others[step].pop("per_class")
        assert other == pytest.approx(classes, rel=EQUAL)
        assert others[step] == pytest.approx(numbers, rel=EQUAL)


def no_failures(ended: list[Ended]) -> None:
    assert [end.code for end in ended] == [0] * len(ended), [end.error for end in ended]


def test_two_processes_train_as_one(exact: TrainOptions, changed: Change, tmp_path: Path) -> None:
    train(changed(exact, out=tmp_path / "one"))
    # with accumulation in each, and activations computed again
    two = changed(exact, out=tmp_path / "two", batch_size=1, checkpointing="all", bucket=True)
    no_failures(run_processes(2, train, two))
    assert_same_training(tmp_path / "one", tmp_path / "two")
    # one process goes on with what two have begun
    again = changed(exact, out=tmp_path / "two", resume=tmp_path / "two", epochs=3)
    longer = changed(exact, out=tmp_path / "longer", epochs=3)
    train(again)
    train(longer)
    assert_same_training(tmp_path / "longer", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "nodes"), [(4, 1), (4, 2), (3, 1)])
def test_any_number_of_processes_train_as_one(
    exact: TrainOptions, changed: Change, tmp_path: Path, size: int, nodes: int
) -> None:
    # 8 images in steps of 4: three processes have unequal parts
    train(changed(exact, out=tmp_path / "one"))
    started = start_processes(size, train, changed(exact, out=tmp_path / "many"), nodes=nodes)
    no_failures([process.wait(240) for process in started])
    assert_same_training(tmp_path / "one", tmp_path / "many")
    # and as many go on on another number
    no_failures(run_processes(2, train, changed(exact, out=tmp_path / "many", resume=tmp_path / "many", epochs=3)))
    train(changed(exact, out=tmp_path / "longer", epochs=3))
    assert_same_training(tmp_path / "longer", tmp_path / "many")


def failing_in(rank: int, options: TrainOptions) -> None:
    original = Training.batches

    def batches(self: Training, *arguments: Any) -> Any:
        for number, samples in enumerate(original(self, *arguments)):
            if self.group.rank == rank and number == 1:
                raise OSError("the disk of this machine is gone")
            yield samples

    Training.batches = batches  # type: ignore[method-assign]
    train(options)


def test_a_process_that_fails_is_named_by_the_others(exact: TrainOptions) -> None:
    ended = run_processes(2, failing_in, 1, exact)
    assert [end.code for end in ended] == [1, 1]
    assert "the disk of this machine is gone" in ended[1].error
    assert "another process ended: process 1 on " in ended[0].error
    assert "failed: the disk of this machine is gone" in ended[0].error


def late_in(rank: int, seconds: float, options: TrainOptions) -> None:
    original = Training.batches

    def batches(self: Training, *arguments: Any) -> Any:
        for number, samples in enumerate(original(self, *arguments)):
            if self.group.rank == rank and number == 3:
                time.sleep(seconds)
            yield samples

    Training.batches = batches  # type: ignore[method-assign]
    train(options)


def test_a_process_that_does_not_come_is_named_in_time(exact: TrainOptions, changed: Change) -> None:
    # three seconds; the first steps are given four times as long
    ended = run_processes(2, late_in, 1, 8.0, changed(exact, timeout=0.05))
    assert ended[0].code == 1
    assert "another process did not come within 0.05 minutes: process 1 of 2 on " in ended[0].error, ended[0].error
    assert "was last seen loading images, step 3" in ended[0].error


def nan_in(rank: int, options: TrainOptions) -> list[float]:
    with process_group(options.compute) as group:
        training = Training(options, group=group)
        results = []
        for samples in training.batches():
            if group.rank == rank and training.steps_done == 1:
                samples[0] = (samples[0][0], {**samples[0][1], "boxes": samples[0][1]["boxes"] * float("nan")})
            result = training.step(samples)
            assert result is not None
            results.append((result["finite"], training.blamed))
        weight = next(training.model.parameters())
        return [results, bool(torch.isfinite(weight).all())]


def test_all_skip_a_step_that_is_not_finite_in_one(exact: TrainOptions) -> None:
    ended = run_processes(2, nan_in, 1, exact)
    no_failures(ended)
    expected = [[(1.0, []), (0.0, [1]), (1.0, []), (1.0, [])], True]
    assert [end.result for end in ended] == [expected, expected]


def signalled_in(rank: int, options: TrainOptions) -> None:
    original = Training.step

    def step(self: Training, *arguments: Any, **wishes: bool) -> Any:
        result = original(self, *arguments, **wishes)
        if self.group.rank == rank and self.steps_done == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return result

    Training.step = step  # type: ignore[method-assign]
    train(options)


def test_a_signal_to_one_stops_all_and_saves(exact: TrainOptions, changed: Change, tmp_path: Path) -> None:
    options = changed(exact, eval_every=5)
    ended = run_processes(2, signalled_in, 1, options)
    assert [end.code for end in ended] == [75, 75], [end.error for end in ended]
    out = Path(str(options.run.out))
    state = load_checkpoint(checkpoints_in(out)[-1])
    assert state["step"] == 2
    assert len(state["random_states"]) == 2
    stopped = [event for event in read_log(out / "log.jsonl") if event["event"] == "stopped"]
    assert [(event["step"], event["signal"]) for event in stopped] == [(2, "SIGUSR1")]


def with_its_own_rate(options: TrainOptions) -> None:
    import dataclasses

    rate = 1e-3 * (1 + int(os.environ["RANK"]))
    train(dataclasses.replace(options, optim=dataclasses.replace(options.optim, lr=rate)))


def test_processes_with_other_settings_are_told_not_left_to_hang(exact: TrainOptions) -> None:
    ended = run_processes(2, with_its_own_rate, exact)
    assert [end.code for end in ended] == [1, 1]
    assert "process 1 has another optim than process 0" in ended[0].error
    assert "'lr': 0.002" in ended[0].error
    assert ended[1].error == ""  # one voice


def test_what_cannot_be_divided_is_refused_once(exact: TrainOptions, changed: Change) -> None:
    ended = run_processes(2, train, changed(exact, total_batch_size=1))
    assert [end.code for end in ended] == [1, 1]
    expected = "total-batch-size: expected at least one image for each of 2 processes, got 1"
    assert [end.error for end in ended] == [expected, ""]
