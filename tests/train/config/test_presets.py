"""The recipes: their settings exist, and are the published ones."""

import dataclasses
from pathlib import Path

import pytest

from msdeform.cli import main
from msdeform.models.catalog import MODELS
from msdeform.train.config.options import Recipe, TrainOptions
from msdeform.train.config.presets import PRESETS, list_presets, preset
from msdeform.train.config.resolve import resolve

PAPER = {
    "r50_deformable_detr": "deformable_detr_r50",
    "r50_deformable_detr_single_scale": "deformable_detr_r50_single_scale",
    "r50_deformable_detr_single_scale_dc5": "deformable_detr_r50_single_scale_dc5",
    "r50_deformable_detr_plus_iterative_bbox_refinement": "deformable_detr_r50_refine",
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": "deformable_detr_r50_two_stage",
}


@pytest.mark.parametrize("name", [name for name, each in PRESETS.items() if not each.needs_weights])
def test_a_preset_is_a_command_line_of_its_own(name: str) -> None:
    options = resolve(["--preset", name])
    assert options.model.model in MODELS
    assert (
        options
        == dataclasses.replace(preset(name), recipe=Recipe(name))
        == dataclasses.replace(resolve(PRESETS[name].flags.split()), recipe=Recipe(name), model=preset(name).model)
    )
    assert PRESETS[name].summary
    assert PRESETS[name].source


def test_a_preset_for_weights_asks_for_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^init-from: preset finetune-small starts from weights; name them"):
        resolve(["--preset", "finetune-small"])
    model = ["--model", "deformable_detr_tiny"]  # who names a model of ours starts it anew
    assert resolve(["--preset", "finetune-small", *model]).optim == preset("finetune-small").optim
    (tmp_path / "x.pth").touch()
    weights = ["--init-from", str(tmp_path / "x.pth"), *model]
    assert resolve(["--preset", "finetune-small", *weights]).model.init_from == tmp_path / "x.pth"


@pytest.mark.parametrize("name", PAPER)
def test_the_official_configurations_are_the_defaults_with_their_models(name: str) -> None:
    options = resolve(["--preset", name])
    assert options.model.model == PAPER[name]
    # of which one leaves to the start of the backbone what the official code always has
    assert options.optim.lr_backbone == 2e-5
    same = dataclasses.replace(options.optim, lr_backbone=None)
    rest = dataclasses.replace(options, recipe=TrainOptions().recipe, model=TrainOptions().model, optim=same)
    assert rest == TrainOptions()


def test_the_recipes_of_detr() -> None:
    for name, epochs, drop in (
        ("detr-300", 300, 200),
        ("detr-500", 500, 400),
        ("dc5-plus-50", 50, 40),
    ):
        options = resolve(["--preset", name])
        assert (options.batch.epochs, options.schedule.lr_drop, options.batch.total_batch_size) == (epochs, drop, 64)
        optim = options.optim
        assert (optim.lr, optim.lr_backbone, optim.weight_decay, optim.clip) == (1e-4, 1e-5, 1e-4, 0.1)
    assert "neither paper gives" in PRESETS["dc5-plus-50"].source


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--preset", "list", "--lr", "1"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{list_presets()}\n"
    for name, each in PRESETS.items():
        assert f"{name}\n    {each.summary}\n" in f"{list_presets()}\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fine-tune", "preset: none is called 'fine-tune'; did you mean finetune?"),
        ("Detr-300", "preset: none is called 'Detr-300'; did you mean detr-300?"),
        (
            "r50_deformable_detr_plus_iterative_bbox_refinement_plus_two_stage",
            "did you mean r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage?",
        ),
        ("zzz", "preset: none is called 'zzz'; there are r50_deformable_detr, "),
    ],
)
def test_an_unknown_preset_is_told(capsys: pytest.CaptureFixture[str], name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="^preset: none is called"):
        preset(name)
    assert main(["train", "--preset", name]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("msdeform train: --preset: ")
    assert error.count("\n") == 1
