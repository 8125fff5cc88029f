"""``--init-from``: which weights a run starts from, and of which model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.cli import main
from msdeform.models.weights import pretrained
from msdeform.models.weights.convert import convert
from msdeform.train.config.options import TrainOptions
from msdeform.train.config.resolve import resolve
from msdeform.train.engine.build import new_model
from msdeform.train.engine.checkpoint import load_checkpoint, save_checkpoint
from msdeform.train.engine.state import Training
from tests.models.huggingface import randomise

CPU = torch.device("cpu")


@pytest.fixture
def run(options: TrainOptions, changed: Any) -> Path:
    """A run's folder, of a model that differs from every name."""
    training = Training(changed(override=("hidden_dim=128", "backbone_frozen=true", "num_queries=9")))
    randomise(training.model)
    folder = Path(str(options.run.out))
    save_checkpoint(folder / "checkpoint-00000003.pt", training.state())
    return folder


def words(shapes: Path, *rest: object) -> list[str]:
    usual = ["--data", str(shapes), "--image-size", "64", "--device", "cpu", "--attn-backend", "reference"]
    usual += ["--workers", "0", "--no-progress", "--no-tensorboard", "--dry-steps", "0", "--pictures", "0"]
    return ["train", *usual, "--max-steps", "1", *map(str, rest)]


@pytest.mark.parametrize("to", [None, "msdeform", "huggingface", "official"])
def test_a_run_starts_from_the_model_of_its_weights(run: Path, shapes: Path, tmp_path: Path, to: str | None) -> None:
    if to is not None:
        convert(run, tmp_path / to, to)
    source = run if to is None else tmp_path / to
    # the preset names a model too, which is not what was asked for
    start = ["--preset", "finetune", "--init-from", source, "--override", "dropout=0.0", "--out", tmp_path / "second"]
    assert main(words(shapes, *start)) == 0
    state, before = load_checkpoint(tmp_path / "second"), load_checkpoint(run)
    config = {name: value for name, value in state["model_config"].items() if name not in ("dropout", "num_classes")}
    assert config == {name: before["model_config"][name] for name in config}
    assert state["model_config"]["dropout"] == 0.0
    # the next run repeats it, from its file of settings
    again = resolve(["--config", str(tmp_path / "second" / "config.yaml")])
    assert again.model.override == tuple(state["options"]["model"]["override"])


def test_another_model_is_refused_with_the_way_out(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--init-from", run, "--model", "deformable_detr_tiny", "--out", tmp_path / "second"]
    assert main(words(shapes, *start)) == 1
    error = capsys.readouterr().err
    assert "is a checkpoint of another model: " in error
    assert error.endswith("; without --model, its own is taken, deformable_detr_tiny with other settings\n")
    torch.save(load_checkpoint(run)["model"], tmp_path / "bare.pth")
    assert main(words(shapes, "--init-from", tmp_path / "bare.pth", *start[2:])) == 1
    assert capsys.readouterr().err.endswith("; name its model with --model, and its settings with --override\n")


def test_none_starts_from_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_from_url", lambda *_: pytest.fail("downloaded"))
    options = resolve(["--preset", "finetune", "--init-from", "none"])
    assert options.model.model == "deformable_detr_r50_two_stage"
    built = new_model(options.model, 3, CPU)
    assert (built.start, built.backbone_trained) == (None, False)


def test_published_weights_that_cannot_be_had_name_the_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_, **__: None)
    assert main(words(shapes, "--preset", "finetune", "--out", tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert error.startswith("msdeform train: --init-from: the weights of deformable_detr_r50_two_stage could not be ")
    assert error.endswith("name it: --init-from PATH; or start from random weights: --init-from none\n")
    assert "pretrained" not in error


def test_another_size_of_images_is_said(
    run: Path, shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "those weights were trained on images of at most 64 pixels, this run uses 96; --image-size changes that\n"
    for size in (64, 96):
        command = words(shapes, "--init-from", run, "--out", tmp_path / str(size), "--image-size", size)
        assert main([word for word in command if word != "--no-progress"]) == 0
        assert (said in capfd.readouterr().err) == (size == 96)


def test_a_run_of_a_model_that_no_longer_has_its_name_is_a_start(run: Path) -> None:
    file = run / "checkpoint-00000003.pt"
    state = load_checkpoint(file)
    save_checkpoint(file, {**state, "model_name": "deformable_detr_former"})
    assert resolve(["--init-from", str(run)]).model.model == "deformable_detr_tiny"


def test_a_backbone_that_cannot_be_had_names_the_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert main(words(shapes, "--model", "detr_r50", "--out", tmp_path / "run")) == 1
    assert "--backbone-weights PATH" in capsys.readouterr().err


def test_a_model_without_published_weights_is_told_the_way_out(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--preset", "finetune", "--model", "deformable_detr_tiny", "--out", tmp_path / "run"]
    assert main(words(shapes, *start)) == 1
    error = capsys.readouterr().err
    assert error.startswith("msdeform train: --init-from: no weights of deformable_detr_tiny are known; ")
    assert error.endswith("; start from a file: --init-from PATH; or from random weights: --init-from none\n")
