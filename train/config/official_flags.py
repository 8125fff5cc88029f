"""What became of the flags of the official main.py, Deformable DETR's and DETR's.

python -m msdeform.train.config.official_flags --with_box_refine --num_queries 500     # prints our command for theirs
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...models.catalog import MODELS, config_of
from .options import parse_overrides

BASE_MODEL = "deformable_detr_r50"  # what the official defaults make


@dataclass(frozen=True)
class Flag:
    """An official flag, by its official name."""

    name: str
    ours: str | None = None
    """Words of our command line; the value follows, or stands for VALUE. None: nothing here, and ``note`` says why."""
    note: str = ""
    switch: bool = False
    """Takes no value."""


def _nowhere(note: str, *names: str) -> tuple[Flag, ...]:
    return tuple(Flag(name, note=note) for name in names)


_OVERRIDES = (
    *("position_embedding", "num_feature_levels", "enc_layers", "dec_layers", "dim_feedforward", "hidden_dim"),
    *("dropout", "nheads", "num_queries", "dec_n_points", "enc_n_points"),
)
FLAGS = (
    Flag("lr", "--lr", note="DETR's is 1e-4"),
    Flag("lr_backbone", "--lr-backbone", note="DETR's is 1e-5"),
    Flag("lr_linear_proj_mult", "--lr-factor-offsets"),
    Flag("batch_size", "--batch-size", note="on a device; --total-batch-size is reached by adding up gradients"),
    Flag("weight_decay", "--weight-decay"),
    Flag("epochs", "--epochs", note="DETR's is 300"),
    Flag("lr_drop", "--lr-drop", note="one drop; officially one after every so many epochs"),
    Flag("clip_max_norm", "--clip"),
    Flag("with_box_refine", "--override with_box_refine=true", "or --model deformable_detr_r50_refine", switch=True),
    Flag("two_stage", "--override two_stage=true", "or --model deformable_detr_r50_two_stage", switch=True),
    Flag("backbone", "--override backbone=VALUE", "or a --model with r101 in its name"),
    Flag("dilation", "--override dilation=true", "or a --model with dc5 in its name", switch=True),
    *(Flag(name, f"--override {name}=VALUE") for name in _OVERRIDES),
    Flag("pre_norm", "--override pre_norm=true", "DETR's main.py alone", switch=True),
    Flag("no_aux_loss", "--override aux_loss=false", switch=True),
    Flag("coco_path", "--data"),
    Flag("output_dir", "--out"),
    Flag("device", "--device"),
    Flag("seed", "--seed", note="the official one differs from process to process"),
    Flag(
        "resume",
        "--resume",
        note="a run of ours; from an official file, --init-from trains on and `msdeform eval "
        "--checkpoint FILE --data DIR` evaluates",
    ),
    Flag("eval", "--eval", switch=True),
    Flag("num_workers", "--workers"),
    Flag("cache_mode", "--cache-images files", switch=True),
    *_nowhere("fixed: the backbone, by the official name backbone.0", "lr_backbone_names"),
    *_nowhere("fixed: reference_points and sampling_offsets, as its default", "lr_linear_proj_names"),
    *_nowhere("the official code does not read it either", "lr_drop_epochs", "remove_difficult"),
    *_nowhere("2π; the official code does not read it either", "position_embedding_scale"),
    *_nowhere("AdamW is the one optimizer, as published", "sgd"),
    *_nowhere("boxes only, no masks", "frozen_weights", "masks", "mask_loss_coef", "dice_loss_coef"),
    *_nowhere("boxes only, no masks", "coco_panoptic_path"),
    *_nowhere(
        "the published weight is fixed, in models/losses/criterion.py",
        *("set_cost_class", "set_cost_bbox", "set_cost_giou", "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef"),
    ),
    *_nowhere("fixed at the published 0.25", "focal_alpha"),
    *_nowhere("DETR's main.py alone; fixed at the published 0.1", "eos_coef"),
    *_nowhere("COCO's format and YOLO's are told apart by what --data holds", "dataset_file"),
    *_nowhere("the checkpoint knows where it stopped", "start_epoch"),
    *_nowhere("DETR's main.py alone; torchrun and srun say so", "world_size", "dist_url"),
)
BY_NAME = {flag.name: flag for flag in FLAGS}


def counterpart(name: str) -> str | None:
    """For an official name that is not ours, what is here instead, as half a sentence; None for any other name."""
    flag = BY_NAME.get(name.lstrip("-").replace("-", "_"))
    if flag is None or flag.ours == f"--{flag.name.replace('_', '-')}":
        return None
    if flag.ours is None:
        return f"the official --{flag.name} has no counterpart here: {flag.note}"
    alternative = f", {flag.note}" if flag.note.startswith("or ") else ""
    return f"the official --{flag.name} is {flag.ours} here{alternative}"


def translate(words: Sequence[str]) -> list[str]:
    """Our words for a command line of Deformable DETR's main.py.

    What it says of the model becomes the name of a published one if it is that, else ``--override``.

    Raises:
        ValueError: a flag that is not an official one, lacks its value, or has no counterpart; a model that cannot be.
    """
    ours: list[str] = []
    overrides: dict[str, str] = {}
    queue = list(words)
    while queue:
        word, _, value = queue.pop(0).partition("=")
        flag = BY_NAME.get(word.removeprefix("--"))
        if flag is None or not word.startswith("--"):
            raise ValueError(f"{word}: expected a flag of the official main.py")
        if flag.ours is None:
            raise ValueError(counterpart(flag.name))
        if not flag.switch and not value:
            if not queue:
                raise ValueError(f"{word}: expected a value")
            value = queue.pop(0)
        field, _, fixed = flag.ours.removeprefix("--override ").partition("=")
        if fixed:
            overrides[field] = value if fixed == "VALUE" else fixed
        else:
            ours += [*flag.ours.split(), *([] if flag.switch else [value])]
    changes = [f"{name}={value}" for name, value in overrides.items()]
    config = dataclasses.replace(config_of(BASE_MODEL), **parse_overrides(tuple(changes)))
    named = next((name for name, each in MODELS.items() if each == config), None)
    return ["--model", *([named] if named else [BASE_MODEL, "--override", *changes]), *ours]


if __name__ == "__main__":
    try:
        print("msdeform train", shlex.join(translate(sys.argv[1:])))
    except ValueError as wrong:
        sys.exit(f"{Path(__file__).stem}: {wrong}")
