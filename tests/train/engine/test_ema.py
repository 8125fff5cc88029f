"""The moving average of the weights: what it is, that it is what is evaluated and loaded, and that it is resumed."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from msdeform.train.config.options import TrainOptions
from msdeform.train.engine.checkpoint import load_checkpoint, load_trained
from msdeform.train.engine.optim import decay_at, ema_state, make_ema, restore_ema
from msdeform.train.engine.run import train
from msdeform.train.engine.state import Training

Change = Callable[..., TrainOptions]
Weights = dict[str, torch.Tensor]


def same(first: Weights, second: Weights) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_decay_ramps() -> None:
    assert [decay_at(0.9, updates) for updates in (0, 1, 8, 79, 80, 81, 1000)] == pytest.approx(
        [1 / 10, 2 / 11, 9 / 18, 80 / 89, 0.9, 0.9, 0.9]
    )


def test_it_is_what_one_computes_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    average, expected = make_ema(model, 0.5), {}
    assert not any(parameter.requires_grad for parameter in average.parameters())
    for update in range(12):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.ones_like(tensor) if tensor.dtype == torch.int64 else torch.randn_like(tensor))
        average.update_parameters(model)
        for name, tensor in model.state_dict().items():
            if update == 0 or tensor.dtype == torch.int64:  # counts have no average
                expected[name] = tensor.clone()
            else:
                decay = min(0.5, (1 + update) / (10 + update))
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    found = average.module.state_dict()
    assert found["1.num_batches_tracked"] == 12
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-13, atol=1e-13)
    # and stored and put back
    again = make_ema(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double(), 0.5)
    restore_ema(again, ema_state(average))
    average.update_parameters(model)
    again.update_parameters(model)
    assert same(again.module.state_dict(), average.module.state_dict())


def test_a_run_that_is_resumed_goes_on_with_it_to_the_bit(changed: Change) -> None:
    options = changed(ema=0.99)
    whole = Training(options)
    batches = list(whole.batches())
    for number, samples in enumerate(batches):
        if number == 3:
            state = copy.deepcopy(whole.state())
        whole.step(samples)
    broken = Training(options, state)
    for samples in broken.batches():
        broken.step(samples)
    assert same(broken.model.state_dict(), whole.model.state_dict())
    assert same(broken.detector.state_dict(), whole.detector.state_dict())
    assert not same(whole.detector.state_dict(), whole.model.state_dict())


def test_it_is_what_is_evaluated_and_loaded(changed: Change, tmp_path: Path) -> None:
    options = changed(ema=0.999, epochs=1)
    out = train(options)
    state, trained = load_checkpoint(out), load_trained(out, torch.device("cpu"))
    assert state["ema"]["updates"] == 4
    assert same(trained.model.state_dict(), state["ema"]["weights"])
    assert not same(trained.model.state_dict(), state["model"])
    training = Training(options, state)
    assert training.detector is not training.model
    assert same(training.detector.state_dict(), state["ema"]["weights"])
    assert not training.detector.training


def test_a_step_that_is_not_finite_leaves_it(changed: Change) -> None:
    training = Training(changed(ema=0.9))
    first, second = list(training.batches())[:2]
    training.step(first)
    before = {name: tensor.clone() for name, tensor in training.detector.state_dict().items()}
    second[0][1]["boxes"] = second[0][1]["boxes"] * float("nan")
    result = training.step(second)
    assert result is not None
    assert result["finite"] == 0.0
    assert same(training.detector.state_dict(), before)


def test_it_can_be_asked_for_and_done_without_at_a_resume(changed: Change, tmp_path: Path) -> None:
    out = train(changed(epochs=1))
    state = load_checkpoint(out)
    assert state["ema"] is None
    late = Training(changed(epochs=2, ema=0.99), state)
    assert same(late.detector.state_dict(), state["model"])  # from what there is
    late.step(next(late.batches()))
    assert same(late.detector.state_dict(), late.model.state_dict())
    ended = Training(changed(epochs=2), late.state())
    assert ended.detector is ended.model
