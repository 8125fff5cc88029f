"""``msdeform.finetune``: the settings of the command by name, and what comes back."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import msdeform
from msdeform.cli import main
from msdeform.models.weights.formats import read_source
from msdeform.train.api import Run
from msdeform.train.engine.checkpoint import load_checkpoint

QUICK: dict[str, Any] = {
    "attn_backend": "reference",
    "device": "cpu",
    "image_size": 64,
    "workers": 0,
    "total_batch_size": 2,
    "dry_steps": 0,
    "pictures": 0,
    "log_every": 1,
    "progress": False,
    "tensorboard": False,
    "max_steps": 3,
    "override": ("num_queries=9",),
}


def test_a_run_is_made_looked_at_and_resumed(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quick = {**QUICK, "init_from": "none", "ema": None, "lr": 1e-3}
    run = msdeform.finetune("deformable_detr_tiny", shapes, out=out, **quick)
    assert (run.folder, load_checkpoint(out)["step"]) == (out, 3)
    options = load_checkpoint(out)["options"]
    # flat names, wherever their group; and the preset's where none is given
    assert (options["optim"]["lr"], options["schedule"]["schedule"], options["optim"]["ema"]) == (1e-3, "cosine", None)
    assert run.metrics["best"].keys() >= {"AP", "AP50", "step"}
    assert run.metrics["last"]["step"] == 3
    steps, losses = run.history.curve("loss")
    assert steps.tolist() == [1, 2, 3]
    assert losses.all()
    assert run.model.categories == [category["name"] for category in load_checkpoint(out)["categories"]]
    assert not run.model.training
    weights = read_source(out / "best.pt").weights
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.model.state_dict().items())

    again = Run(out).resume(max_steps=5)
    assert again.history.steps[-1]["step"] == again.metrics["last"]["step"] == 5
    assert load_checkpoint(out)["options"]["optim"]["lr"] == 1e-3

    # weights bring their model
    other = msdeform.finetune(out, str(shapes), out=tmp_path / "other", preset=None, **{**QUICK, "override": ()})
    assert other.model.config == run.model.config


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"epoch": 3}, ValueError, "finetune: unknown setting epoch; did you mean epochs?"),
        ({"epochs": "many"}, ValueError, "finetune: epochs: expected a whole number, got 'many'"),
        ({"epochs": 0}, ValueError, "epochs: expected at least 1, got 0"),
        (
            {"augment": "much"},
            ValueError,
            "augment: expected official, light, turns, strong, flip, none or a .yaml file, got 'much'",
        ),
        ({"resume": "x"}, ValueError, r"resume is for the command line; Run\(FOLDER\).resume\(\) resumes a run"),
        ({"preset": "finetun"}, ValueError, "preset: none is called 'finetun'; did you mean finetune?"),
        ({"model": "deformable_detr_tny"}, ValueError, "did you mean deformable_detr_tiny"),
        ({"model": "no/where.pt"}, FileNotFoundError, "expected a model's name or weights; no/where.pt does not exist"),
        ({"model": torch.nn.ReLU()}, TypeError, r"expected a name of msdeform.list_models\(\) or weights, got a ReLU"),
        ({"model": ".", "init_from": "published"}, ValueError, "init_from: expected none beside the weights ."),
        ({"data": "nowhere", "init_from": "none"}, FileNotFoundError, "data directory nowhere does not exist"),
        ({"data": 7}, ValueError, "finetune: data: expected text, got 7"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[Exception],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=sentence) as caught:
        msdeform.finetune(**{"model": "deformable_detr_tiny", "data": shapes, **arguments})
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_its_own_arguments_have_the_names_of_settings_or_of_objects() -> None:
    names = ["model", "data", "out", "preset", "options", "callbacks", "transform", "categories", "settings"]
    assert list(inspect.signature(msdeform.finetune).parameters) == names


def test_the_settings_of_a_run_start_another(shapes: Path, tmp_path: Path) -> None:
    first = msdeform.finetune("deformable_detr_tiny", shapes, out=tmp_path / "first", preset=None, **QUICK)
    again = msdeform.Run(str(first.folder)).resume(max_steps=4)
    other = msdeform.finetune(
        "deformable_detr_tiny", shapes, out=tmp_path / "other", options=again.settings, max_steps=3
    )
    one, two = load_checkpoint(first.folder / "checkpoint-00000003.pt"), load_checkpoint(other.folder)
    assert two["step"] == 3
    assert all(one["model"][name].equal(two["model"][name]) for name in one["model"])


def test_a_run_draws_its_curves(shapes: Path, tmp_path: Path) -> None:
    run = msdeform.finetune("deformable_detr_tiny", shapes, out=tmp_path / "run", preset=None, **QUICK)
    figure = run.plot(tmp_path / "curves.png", ["loss", "AP"])
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["loss", "AP"]
    assert Image.open(tmp_path / "curves.png").width > 300
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .png, .svg, .pdf, got curves.gif"):
        run.plot("curves.gif")
    with pytest.raises(ValueError, match="no run has logged 'los'; did you mean loss"):
        run.plot(curves=["los"])


def test_a_run_from_python_is_that_of_the_command_line(shapes: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "preset": "debug", "total_batch_size": 4, "workers": 1, "augment": "strong", "ema": 0.9}
    python = msdeform.finetune("deformable_detr_tiny", shapes, out=tmp_path / "python", callbacks=[Idle()], **settings)
    flags = [word for name, value in settings.items() for word in flag_of(name, value)]
    words = ["--model", "deformable_detr_tiny", "--data", str(shapes), "--out", str(tmp_path / "line"), *flags]
    assert main(["train", *words]) == 0
    one, other = load_checkpoint(python.folder), load_checkpoint(tmp_path / "line")
    assert one["step"] == other["step"] == 3
    for part in ("model", "ema"):
        assert all(tensor.equal(other[part][name]) for name, tensor in one[part].items() if torch.is_tensor(tensor))
    assert one["best"] == other["best"]
    curves = [msdeform.Run(run).history.curve("loss")[1].tolist() for run in (python.folder, tmp_path / "line")]
    assert curves[0] == curves[1]


class Idle(msdeform.Callback):
    """Hears of everything and does nothing."""


def flag_of(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]
