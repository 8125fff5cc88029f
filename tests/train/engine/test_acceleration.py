"""What makes a step smaller or faster, and computes the same."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from msdeform.models.weights.formats import checkpoints_in
from msdeform.train.config.options import TrainOptions
from msdeform.train.engine.checkpoint import load_checkpoint
from msdeform.train.engine.run import run_steps, train
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log

Change = Callable[..., TrainOptions]
Gradients = dict[str, torch.Tensor]


def gradients(options: TrainOptions) -> tuple[dict[str, float], Gradients]:
    """Of the first step; clipping and the optimizer leave them in place, scaled."""
    training = Training(options)
    result = training.step(next(training.batches()))
    assert result is not None
    return result, {name: p.grad for name, p in training.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model", ["deformable_detr_tiny", "detr_tiny"])
def test_activations_computed_again_give_the_same_gradients(changed: Change, model: str) -> None:
    # with dropout, which must fall on the same numbers, and several layers, which share them out
    override = ("dropout=0.3", "enc_layers=2", "dec_layers=2")
    base = changed(model=model, override=override, precision="fp64", batch_size=1)
    result, expected = gradients(base)
    assert len(expected) > 50
    for mode in ("encoder", "all"):
        again, found = gradients(changed(base, checkpointing=mode))
        assert again == pytest.approx(result, rel=1e-12)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-15, msg=name)


@pytest.mark.parametrize(("mode", "layers"), [("encoder", 2), ("all", 5)])
def test_layers_are_computed_twice_where_asked(
    changed: Change, monkeypatch: pytest.MonkeyPatch, mode: str, layers: int
) -> None:
    training = Training(changed(override=("enc_layers=2", "dec_layers=3"), checkpointing=mode))
    calls = []
    for side in (training.model.transformer.encoder, training.model.transformer.decoder):
        for layer in side.layers:
            layer.linear1.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    training.step(next(training.batches()))
    assert len(calls) == 5 + layers
    calls.clear()
    with torch.no_grad():
        training.model.eval()(torch.zeros(1, 3, 64, 64))
    assert len(calls) == 5


def test_a_model_without_a_transformer_has_nothing_to_compute_again(changed: Change) -> None:
    options = changed(model="fasterrcnn_tiny", override=(), checkpointing="all")
    with pytest.raises(ValueError, match="checkpointing: expected a model with a transformer, got FasterRcnn"):
        Training(options)


@pytest.mark.parametrize(
    "model", ["deformable_detr_tiny", "detr_tiny", pytest.param("fasterrcnn_tiny", marks=pytest.mark.slow)]
)
def test_channels_last_computes_the_same(changed: Change, model: str) -> None:
    base = changed(model=model, override=(), augment="flip")
    result, expected = gradients(base)
    options = changed(base, channels_last=True)
    again, found = gradients(options)
    assert again["loss"] == pytest.approx(result["loss"], rel=1e-5)
    assert again["grad_norm"] == pytest.approx(result["grad_norm"], rel=1e-3)
    training, plain = Training(options), Training(base)
    assert training.model.state_dict().keys() == plain.model.state_dict().keys()
    assert found.keys() == expected.keys()
    kernels = [p for name, p in training.model.named_parameters() if "body.layer4" in name and p.dim() == 4]
    assert any(p.shape[-1] > 1 and p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")


@compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_computes_the_same_and_goes_on_uncompiled(changed: Change, tmp_path: Path) -> None:
    # one size, so that little is compiled
    base = changed(augment="none", override=("dropout=0",), max_steps=2, checkpointing="encoder")
    plain = train(changed(base, out=tmp_path / "plain"))
    out = train(changed(base, out=tmp_path / "compiled", compile=True))
    losses = [
        [event["loss"] for event in read_log(folder / "log.jsonl") if event["event"] == "step"]
        for folder in (plain, out)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    state = load_checkpoint(checkpoints_in(out)[-1])
    assert state["model"].keys() == load_checkpoint(plain)["model"].keys()
    train(changed(base, out=out, resume=out, max_steps=3))
    assert load_checkpoint(out)["step"] == 3


@compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["detr_tiny", "fasterrcnn_tiny"])
def test_other_models_compile(changed: Change, model: str) -> None:
    base = changed(model=model, augment="none", override=())
    assert run_steps(changed(base, compile=True), 2) == pytest.approx(run_steps(base, 2), rel=1e-3)
