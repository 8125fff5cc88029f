"""A step that was not finite, done again: the answer names what was wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.cli import main
from msdeform.kernels import registry
from msdeform.train.commands.replay import ReplayOptions, replay
from msdeform.train.config.options import TrainOptions
from msdeform.train.engine.run import train
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log
from tests.train.processes import run_processes

Change = Callable[..., TrainOptions]
Spoil = Callable[[Training, list[Any]], None]


def spoil_step(monkeypatch: pytest.MonkeyPatch, step: int, spoil: Spoil) -> None:
    """Calls ``spoil`` with the training and its samples before ``step`` is done."""
    original = Training.step

    def spoiled(self: Training, samples: list[Any], **wishes: bool) -> Any:
        if self.steps_done + 1 == step:
            spoil(self, samples)
        return original(self, samples, **wishes)

    monkeypatch.setattr(Training, "step", spoiled)


def told(options: TrainOptions, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, **how: Any) -> list[str]:
    """What replay says of a run's second step, its last."""
    with monkeypatch.context() as patch:
        spoil_step(patch, 2, spoil)
        out = train(options)
    (event,) = [event for event in read_log(out / "log.jsonl") if event["event"] == "nonfinite"]
    assert event["step"] == 2
    return replay(ReplayOptions(out / event["batch"], device="cpu", **how))


@pytest.fixture
def short(changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    """Two steps, and no evaluation."""
    monkeypatch.setattr("msdeform.train.engine.run.evaluate", lambda *_: {"AP": 0.0, "AP50": 0.0})
    return changed(max_steps=2, out=tmp_path / "run", augment="flip", override=("dropout=0.1", "dec_layers=2"))


def blow_up(name: str, factor: float) -> Spoil:
    """Makes a parameter of the model so large that what follows overflows, but finite."""

    def spoil(training: Training, samples: list[Any]) -> None:
        with torch.no_grad():
            training.model.get_parameter(name).fill_(factor)

    return spoil


def set_infinite(training: Training, samples: list[Any]) -> None:
    with torch.no_grad():
        training.model.get_parameter("transformer.level_embed").fill_(float("inf"))


def test_weights_that_are_not_finite(short: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(short, monkeypatch, set_infinite)
    assert lines[0].startswith("step 2 of deformable_detr_tiny, reference on cpu, fp32; images ")
    assert lines[1] == "the weights themselves are not finite: transformer.level_embed; an earlier step wrote them"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backend of the run is here")
def test_the_backend_of_the_run_may_not_be_here(short: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    told(short, monkeypatch, set_infinite)
    file = next(short.run.out.glob("nonfinite-*.pt"))
    torch.save(torch.load(file, weights_only=False) | {"attn_backend": "cuda"}, file)
    here = registry.resolve_for("cpu", backend=registry.AUTO)
    assert f", {here} on cpu, " in replay(ReplayOptions(file, device="cpu"))[0]
    with pytest.raises(registry.BackendUnavailable, match="backend 'cuda' cannot run"):
        replay(ReplayOptions(file, attn_backend="cuda", device="cpu"))


def test_a_box_that_is_not_a_number(
    short: TrainOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(training: Training, samples: list[Any]) -> None:
        samples[1][1]["boxes"][0, 2] = float("nan")

    lines = told(short, monkeypatch, spoil, out=tmp_path / "drawn")
    image = lines[0].split("images ")[1].split(", ")[1]
    assert [line for line in lines if line.startswith(f"boxes of image {image} are not finite: [[")]
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [line for line in lines if line.startswith("drawn: ")] == [f"drawn: {path}" for path in drawn]
    assert [path.name for path in drawn][1] == f"01-image-{image}.png"
    # the command says the same
    file = next((tmp_path / "run").glob("nonfinite-*.pt"))
    capsys.readouterr()
    assert main(["replay", str(file), "--device", "cpu"]) == 0
    assert f"boxes of image {image} are not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "parameter", "named"),
    [
        (
            "deformable_detr_tiny",
            "transformer.decoder.layers.1.linear1.weight",
            "transformer.decoder.layers.1.linear1",
        ),
        # attention of torch's own calls none of its parts
        (
            "detr_tiny",
            "transformer.encoder.layers.0.self_attn.in_proj_weight",
            "transformer.encoder.layers.0.self_attn",
        ),
    ],
)
def test_an_overflow_is_found_in_the_module_where_it_begins(
    short: TrainOptions, changed: Change, monkeypatch: pytest.MonkeyPatch, model: str, parameter: str, named: str
) -> None:
    lines = told(changed(short, model=model, batch_size=1), monkeypatch, blow_up(parameter, 3e38))
    images = lines[0].split("images ")[1].split(", ")
    assert lines[1:] == [
        f"images {image}: the first that is not finite in the forward pass is the output of {named}" for image in images
    ]
    # in double precision it is no overflow
    (file,) = short.run.out.glob("nonfinite-*.pt")  # type: ignore[union-attr]
    lines = replay(ReplayOptions(file, device="cpu", precision="fp64"))
    assert "fp64" in lines[0]
    assert not any(named in line for line in lines)


class Overflowing(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


def test_a_gradient_that_overflows_is_found_where_the_backward_pass_meets_it_first(
    short: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msdeform.train.commands import replay as module

    name = "transformer.encoder.layers.0.linear2"

    def plant(model: Any) -> Any:
        model.get_submodule(name).register_forward_hook(lambda _, inputs, output: Overflowing.apply(output))
        return model

    # in the run and, as no file holds a hook, when it is done again
    build = module.build_any_model
    monkeypatch.setattr(module, "build_any_model", lambda *arguments, **named: plant(build(*arguments, **named)))
    lines = told(short, monkeypatch, lambda training, samples: plant(training.model))
    assert "gradients are not finite, the first in the backward pass that of" in lines[-1]
    assert lines[-1].endswith((f"{name}.weight", f"{name}.bias"))


def test_a_step_that_is_finite_is_told_so(short: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Training._backward

    def poisoned(self: Training, *arguments: Any) -> Any:
        result = original(self, *arguments)
        return {**result, "loss": result["loss"] * float("nan")} if self.steps_done == 1 else result

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_backward", poisoned)
        out = train(short)
    (file,) = out.glob("nonfinite-*.pt")
    lines = replay(ReplayOptions(file, device="cpu"))
    assert lines[1].endswith("; all is finite")


def test_dropout_falls_on_the_same_numbers(changed: Change, tmp_path: Path) -> None:
    """The loss that replay computes is that of the step, in its passes, with bucketed images and random crops."""
    options = changed(override=("dropout=0.5",), total_batch_size=4, batch_size=2, bucket=True)
    training = Training(options)
    samples = next(training.batches())
    weights = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    result = training.step(samples)
    assert result is not None
    torch.save({**training.replayable(samples), "model": weights}, tmp_path / "nonfinite-step-00000001.pt")
    lines = replay(ReplayOptions(tmp_path / "nonfinite-step-00000001.pt", device="cpu"))
    losses = [float(line.split("loss ")[1].split(";")[0]) for line in lines[1:]]
    assert len(losses) == 2
    assert sum(losses) == pytest.approx(result["loss"], rel=1e-3)  # as printed


def spoiled_in(rank: int, options: TrainOptions) -> None:
    original = Training.step

    def step(self: Training, samples: list[Any], **wishes: bool) -> Any:
        if self.group.rank == rank and self.steps_done == 1:
            samples[0][1]["boxes"][0] = float("nan")
        return original(self, samples, **wishes)

    Training.step = step  # type: ignore[method-assign]
    train(options)


def test_of_two_processes_the_one_that_is_blamed_leaves_its_images(short: TrainOptions, changed: Change) -> None:
    ended = run_processes(2, spoiled_in, 1, changed(short, timeout=2.0))
    assert [end.code for end in ended] == [0, 0], [end.error for end in ended]
    out = Path(str(short.run.out))
    assert [file.name for file in out.glob("nonfinite-*")] == ["nonfinite-step-00000002-process-1.pt"]
    (event,) = [event for event in read_log(out / "log.jsonl") if event["event"] == "nonfinite"]
    assert event["processes"] == [1]
    assert event["batch"] == "nonfinite-step-00000002-process-1.pt"
    lines = replay(ReplayOptions(out / event["batch"], device="cpu"))
    assert [int(image) for image in lines[0].split("images ")[1].split(", ")] == event["image_ids"]
    assert any("are not finite: [[nan" in line for line in lines)


def test_a_wrong_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.pt"
    with pytest.raises(FileNotFoundError, match=r"batch .*x\.pt does not exist"):
        replay(ReplayOptions(file))
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"batch .*x\.pt is damaged or not a batch: "):
        replay(ReplayOptions(file))
    torch.save({"format": "msdeform-checkpoint-1"}, file)
    with pytest.raises(
        ValueError, match=r"x\.pt was not written by .*; expected a file with format .msdeform-replay-1"
    ):
        replay(ReplayOptions(file))
