"""What became of the flags of the official main.py, Deformable DETR's and DETR's.

python -m msdeform.train.config.official_flags --with_box_refine --num_queries 500     # prints our command for theirs
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ...models.catalog import MODELS, config_of
from .options import parse_overrides

BASE_MODEL = "deformable_detr_r50"  # what the official defaults make

# official name -> words of our command line, with VALUE where the flag takes one, and a note; None where there is
# nothing here, of which the note says why
FLAGS: dict[str, tuple[str | None, str]] = {
    "lr": ("--lr VALUE", "DETR's is 1e-4"),
    "lr_backbone": ("--lr-backbone VALUE", "DETR's is 1e-5"),
    "lr_linear_proj_mult": ("--lr-factor-offsets VALUE", ""),
    "batch_size": ("--batch-size VALUE", "on a device; --total-batch-size is reached by adding up gradients"),
    "weight_decay": ("--weight-decay VALUE", ""),
    "epochs": ("--epochs VALUE", "DETR's is 300"),
    "lr_drop": ("--lr-drop VALUE", "one drop; officially one after every so many epochs"),
    "clip_max_norm": ("--clip VALUE", ""),
    "with_box_refine": ("--override with_box_refine=true", "or --model deformable_detr_r50_refine"),
    "two_stage": ("--override two_stage=true", "or --model deformable_detr_r50_two_stage"),
    "backbone": ("--override backbone=VALUE", "or a --model with r101 in its name"),
    "dilation": ("--override dilation=true", "or a --model with dc5 in its name"),
    **{
        name: (f"--override {name}=VALUE", "")
        for name in (
            *("position_embedding", "num_feature_levels", "enc_layers", "dec_layers", "dim_feedforward", "hidden_dim"),
            *("dropout", "nheads", "num_queries", "dec_n_points", "enc_n_points"),
        )
    },
    "pre_norm": ("--override pre_norm=true", "DETR's main.py alone"),
    "no_aux_loss": ("--override aux_loss=false", ""),
    "coco_path": ("--data VALUE", ""),
    "output_dir": ("--out VALUE", ""),
    "device": ("--device VALUE", ""),
    "seed": ("--seed VALUE", "the official one differs from process to process"),
    "resume": (
        "--resume VALUE",
        "a run of ours; from an official file, --init-from trains on and `msdeform eval --checkpoint FILE --data DIR` "
        "evaluates",
    ),
    "eval": ("--eval", ""),
    "num_workers": ("--workers VALUE", ""),
    "cache_mode": ("--cache-images files", ""),
    "lr_backbone_names": (None, "fixed: the backbone, by the official name backbone.0"),
    "lr_linear_proj_names": (None, "fixed: reference_points and sampling_offsets, as its default"),
    **dict.fromkeys(("lr_drop_epochs", "remove_difficult"), (None, "the official code does not read it either")),
    "position_embedding_scale": (None, "2π; the official code does not read it either"),
    "sgd": (None, "AdamW is the one optimizer, as published"),
    **dict.fromkeys(
        ("frozen_weights", "masks", "mask_loss_coef", "dice_loss_coef", "coco_panoptic_path"),
        (None, "boxes only, no masks"),
    ),
    **dict.fromkeys(
        ("set_cost_class", "set_cost_bbox", "set_cost_giou", "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef"),
        (None, "the published weight is fixed, in models/losses/criterion.py"),
    ),
    "focal_alpha": (None, "fixed at the published 0.25"),
    "eos_coef": (None, "DETR's main.py alone; fixed at the published 0.1"),
    "dataset_file": (None, "COCO's format and YOLO's are told apart by what --data holds"),
    "start_epoch": (None, "the checkpoint knows where it stopped"),
    **dict.fromkeys(("world_size", "dist_url"), (None, "DETR's main.py alone; torchrun and srun say so")),
}


def counterpart(name: str) -> str | None:
    """For an official name that is not ours, what is here instead, as half a sentence; None for any other name."""
    name = name.lstrip("-").replace("-", "_")
    if name not in FLAGS:
        return None
    ours, note = FLAGS[name]
    if ours is None:
        return f"the official --{name} has no counterpart here: {note}"
    ours = ours.removesuffix(" VALUE")
    if ours == f"--{name.replace('_', '-')}":
        return None
    return f"the official --{name} is {ours} here{f', {note}' if note.startswith('or ') else ''}"


def translate(words: Sequence[str]) -> list[str]:
    """Our words for a command line of Deformable DETR's main.py.

    What it says of the model becomes the name of a published one if it is that, else ``--override``.

    Raises:
        ValueError: a flag that is not an official one, lacks its value, or has no counterpart; a model that cannot be.
    """
    translated: list[str] = []
    overrides: list[str] = []
    queue = list(words)
    while queue:
        word, _, value = queue.pop(0).partition("=")
        name = word.removeprefix("--")
        if name not in FLAGS or not word.startswith("--"):
            raise ValueError(f"{word}: expected a flag of the official main.py")
        ours, _ = FLAGS[name]
        if ours is None:
            raise ValueError(counterpart(name))
        if "VALUE" in ours and not value:
            if not queue:
                raise ValueError(f"{word}: expected a value")
            value = queue.pop(0)
        first, *rest = (part.replace("VALUE", value) for part in ours.split())
        if first == "--override":
            overrides += rest
        else:
            translated += [first, *rest]
    config = dataclasses.replace(config_of(BASE_MODEL), **parse_overrides(tuple(overrides)))
    named = next((name for name, each in MODELS.items() if each == config), None)
    return ["--model", *([named] if named else [BASE_MODEL, "--override", *overrides]), *translated]


if __name__ == "__main__":
    try:
        print("msdeform train", shlex.join(translate(sys.argv[1:])))
    except ValueError as wrong:
        sys.exit(f"{Path(__file__).stem}: {wrong}")
