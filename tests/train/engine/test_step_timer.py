"""Where a step goes: stages that share out its time, told by hooks."""

import contextlib
from collections.abc import Callable

import pytest
import torch

from msdeform.train.config.options import TrainOptions
from msdeform.train.engine import step_timer
from msdeform.train.engine.state import Training
from msdeform.train.engine.step_timer import STAGES, StepTimer

Change = Callable[..., TrainOptions]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which pass only as a test says."""
    now = [50.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now[0])
    return now


def test_an_inner_stage_does_not_count_for_the_outer(clock: list[float]) -> None:
    told = StepTimer(torch.device("cpu"))
    with told.stage("loss"):  # not yet
        clock[0] += 100
    told.start()
    clock[0] += 1
    with told.stage("loss"):
        clock[0] += 2
        with told.stage("matching"):
            clock[0] += 4
        clock[0] += 8
        with contextlib.suppress(KeyError), told.stage("matching"):
            clock[0] += 16
            raise KeyError
    clock[0] += 32
    told.stop()
    clock[0] += 64
    with told.stage("loss"):
        clock[0] += 128
    seconds = {name: seconds for name, seconds in told.seconds.items() if seconds}
    assert seconds == {"loss": 10, "matching": 20, "other": 33}
    assert sum(told.seconds.values()) == 63
    told.start()  # anew
    told.stop()
    assert not any(told.seconds.values())


def test_the_table_shares_out_the_whole(clock: list[float]) -> None:
    told = StepTimer(torch.device("cpu"))
    told.start()
    with told.stage("backward"):
        clock[0] += 3
    clock[0] += 1
    told.stop()
    assert told.table(steps=2, images=8).splitlines() == [
        "stage          ms a step   share",
        "backward          1500.0   75.0%",
        "other              500.0   25.0%",
        "all               2000.0     2.0 images/s",
    ]


TRANSFORMERS = {"backbone", "encoder", "decoder", "matching", "loss", "backward", "optimiser", "data"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("deformable_detr_tiny", TRANSFORMERS),
        ("detr_tiny", TRANSFORMERS),
        ("detr_demo", TRANSFORMERS),
        pytest.param("fasterrcnn_tiny", TRANSFORMERS - {"encoder", "decoder", "matching"}, marks=pytest.mark.slow),
    ],
)
def test_hooks_tell_the_parts_of_every_model(changed: Change, model: str, expected: set[str]) -> None:
    small = ("backbone=resnet10_tiny", "hidden_dim=32", "nheads=2", "num_queries=10", "enc_layers=1", "dec_layers=1")
    options = changed(model=model, override=small if model == "detr_demo" else (), batch_size=1)
    training = Training(options)
    told = training.step_timer
    told.start()
    for samples, _ in zip(training.batches(), range(2), strict=False):
        training.step(samples)
        assert told._open == ["other"]
    with torch.no_grad():  # an evaluation passes the hooks as well
        training.model.eval()([torch.zeros(3, 64, 64)])
    assert told._open == ["other"]
    told.stop()
    assert expected == {name for name, seconds in told.seconds.items() if seconds > 0} - {"other", "model, other"}
    assert told.seconds.keys() == {*STAGES}
