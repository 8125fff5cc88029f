"""The official flags: each is in the table, and the official configurations come out as our presets."""

import dataclasses
import re
from pathlib import Path

import pytest

from msdeform.cli import main
from msdeform.models.configs import DeformableDetrConfig, DetrConfig
from msdeform.train.config import presets
from msdeform.train.config.official_flags import FLAGS, counterpart, translate
from msdeform.train.config.options import TrainOptions, flatten, to_plain
from msdeform.train.config.resolve import OPTIONS, resolve

MANUAL = (Path(__file__).parents[3] / "docs" / "training.md").read_text()

# both main.py, Deformable DETR's alone, DETR's alone; kept here so that the table cannot lose one unseen
OFFICIAL = """
lr lr_backbone batch_size weight_decay epochs lr_drop clip_max_norm frozen_weights backbone dilation position_embedding
enc_layers dec_layers dim_feedforward hidden_dim dropout nheads num_queries masks no_aux_loss set_cost_class
set_cost_bbox set_cost_giou mask_loss_coef dice_loss_coef bbox_loss_coef giou_loss_coef dataset_file coco_path
coco_panoptic_path remove_difficult output_dir device seed resume start_epoch eval num_workers

lr_backbone_names lr_linear_proj_names lr_linear_proj_mult lr_drop_epochs sgd with_box_refine two_stage
position_embedding_scale num_feature_levels dec_n_points enc_n_points cls_loss_coef focal_alpha cache_mode

pre_norm eos_coef world_size dist_url
"""

# what configs/*.sh give to main.py
SCRIPTS = {
    "r50_deformable_detr": "",
    "r50_deformable_detr_single_scale": "--num_feature_levels 1",
    "r50_deformable_detr_single_scale_dc5": "--num_feature_levels 1 --dilation",
    "r50_deformable_detr_plus_iterative_bbox_refinement": "--with_box_refine",
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": "--with_box_refine --two_stage",
}
# defaults of Deformable DETR's main.py that are flags or fields here
DEFAULTS = {
    "lr": 2e-4, "lr_backbone": 2e-5, "lr_linear_proj_mult": 0.1, "batch_size": 2, "weight_decay": 1e-4, "epochs": 50,
    "lr_drop": 40, "clip_max_norm": 0.1, "seed": 42, "num_workers": 2,
    "backbone": "resnet50", "position_embedding": "sine", "num_feature_levels": 4, "enc_layers": 6, "dec_layers": 6,
    "dim_feedforward": 1024, "hidden_dim": 256, "dropout": 0.1, "nheads": 8, "num_queries": 300, "dec_n_points": 4,
    "enc_n_points": 4,
}  # fmt: skip


def test_every_official_flag_is_in_the_table_once() -> None:
    assert sorted(FLAGS) == sorted(OFFICIAL.split())


@pytest.mark.parametrize("flag", FLAGS)
def test_what_the_table_says_is_there(flag: str) -> None:
    ours, note = FLAGS[flag]
    if ours is None:
        assert note
        return
    name, *rest = ours.removeprefix("--").split()
    assert name.replace("-", "_") in OPTIONS
    if name == "override":
        fields = {field.name for kind in (DeformableDetrConfig, DetrConfig) for field in dataclasses.fields(kind)}
        assert rest[0].split("=")[0] in fields


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_official_scripts_are_our_presets(name: str) -> None:
    theirs = " ".join(f"--{flag} {value}" for flag, value in DEFAULTS.items() if f"--{flag} " not in SCRIPTS[name])
    words = translate(f"{theirs} {SCRIPTS[name]} --output_dir exps/{name}".split())
    assert words[:2] == ["--model", presets.preset(name).model.model]
    ours = resolve(["--preset", name, "--out", f"exps/{name}"])
    assert dataclasses.replace(resolve(words), recipe=ours.recipe) == ours


def test_other_models_are_overrides() -> None:
    words = translate(["--num_queries", "500", "--no_aux_loss", "--coco_path=.", "--cache_mode", "--eval"])
    assert words == [
        *("--model", "deformable_detr_r50", "--override", "num_queries=500", "aux_loss=false"),
        *("--data", ".", "--cache-images", "files", "--eval"),
    ]
    assert resolve(words[:-1]).loading.cache_images == "files"
    assert translate(["--backbone", "resnet101"]) == ["--model", "deformable_detr_r101"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sgd"], "the official --sgd has no counterpart here: AdamW is the one optimizer, as published"),
        (["--masks"], "the official --masks has no counterpart here: boxes only, no masks"),
        (["--learning_rate", "1"], "--learning_rate: expected a flag of the official main.py"),
        (["epochs", "1"], "epochs: expected a flag of the official main.py"),
        (["--epochs"], "--epochs: expected a value"),
        (["--two_stage"], "two_stage: expected with_box_refine=True beside it, got False"),
    ],
)
def test_what_cannot_be_translated_is_told(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        translate(words)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--coco_path", "unknown option --coco-path; the official --coco_path is --data here"),
        ("--num-workers=4", "unknown option --num-workers; the official --num_workers is --workers here"),
        ("--lr_linear_proj_mult", "the official --lr_linear_proj_mult is --lr-factor-offsets here"),
        ("--hidden_dim", "the official --hidden_dim is --override hidden_dim=VALUE here"),
        (
            "--with_box_refine",
            "is --override with_box_refine=true here, or --model deformable_detr_r50_refine",
        ),
        (
            "--focal_alpha",
            "the official --focal_alpha has no counterpart here: fixed at the published 0.25",
        ),
    ],
)
def test_an_official_flag_is_answered_with_ours(capsys: pytest.CaptureFixture[str], word: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", word, "1"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("msdeform train: unknown option ")
    assert error.endswith(f"{sentence}\n")


def test_a_flag_that_means_the_same_is_no_news() -> None:
    assert counterpart("--lr") is None
    assert counterpart("--lr_backbone") is None
    assert counterpart("--nonsense") is None
    assert FLAGS["lr_backbone"][0] == "--lr-backbone VALUE"


def test_the_manual_holds_both_tables() -> None:
    """On a difference, put what is expected here into docs/training.md."""
    flags = []
    for name, (ours, note) in FLAGS.items():
        shown = "none" if ours is None else f"`{ours.removesuffix(' VALUE')}`"
        flags.append(f"| `--{name}` | {shown} | {note} |")
    assert "\n".join(["| official | here | |", "|---|---|---|", *flags]) in MANUAL
    usual = dict(flatten(to_plain(TrainOptions())))
    recipes = []
    for name, each in presets.PRESETS.items():
        settings = flatten(to_plain(presets.preset(name)))
        changed = [f"{key} {value}" for key, value in settings if value != usual[key]]
        recipes.append(f"| `{name}` | {each.summary} | {', '.join(changed)} | {each.source} |")
    head = ["| preset | what | other than the defaults | source |", "|---|---|---|---|"]
    assert "\n".join([*head, *recipes]) in MANUAL
