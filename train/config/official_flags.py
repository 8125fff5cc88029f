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

BASE_MODEL = "deformable_detr_r50"  # what the official defaults make


@dataclass(frozen=True)
class Flag:
    """An official flag, by its official name.

    At most one of ``ours`` and ``override`` is given; with neither there is nothing here, and ``note`` says why.
    """

    name: str
    ours: str | None = None
    """Words of our command line; the value follows, unless they hold one."""
    override: str | None = None
    """Field of the model's configuration; the value follows =, unless it is there."""
    note: str = ""
    switch: bool = False
    """Takes no value."""

    @property
    def answer(self) -> str:
        """Ours, in words."""
        if self.ours is not None:
            return self.ours
        if self.override is not None:
            return f"--override {self.override}" + ("" if "=" in self.override else "=VALUE")
        return "none"


_SEGMENTATION = "boxes only, no masks"
_FIXED = "the published weight is fixed, in models/losses/criterion.py"
_UNREAD = "the official code does not read it either"
_LAUNCHER = "torchrun and srun say so"

FLAGS = (
    Flag("lr", "--lr", note="DETR's is 1e-4"),
    Flag("lr_backbone_names", note="fixed: the backbone, by the official name backbone.0"),
    Flag("lr_backbone", "--lr-backbone", note="DETR's is 1e-5"),
    Flag("lr_linear_proj_names", note="fixed: reference_points and sampling_offsets, as its default"),
    Flag("lr_linear_proj_mult", "--lr-factor-offsets"),
    Flag("batch_size", "--batch-size", note="on a device; --total-batch-size is reached by adding up gradients"),
    Flag("weight_decay", "--weight-decay"),
    Flag("epochs", "--epochs", note="DETR's is 300"),
    Flag("lr_drop", "--lr-drop", note="one drop; officially one after every so many epochs"),
    Flag("lr_drop_epochs", note=_UNREAD),
    Flag("clip_max_norm", "--clip"),
    Flag("sgd", note="AdamW is the one optimizer, as published", switch=True),
    Flag("with_box_refine", override="with_box_refine=true", note="or --model deformable_detr_r50_refine", switch=True),
    Flag("two_stage", override="two_stage=true", note="or --model deformable_detr_r50_two_stage", switch=True),
    Flag("frozen_weights", note=_SEGMENTATION),
    Flag("backbone", override="backbone", note="or a --model with r101 in its name"),
    Flag("dilation", override="dilation=true", note="or a --model with dc5 in its name", switch=True),
    Flag("position_embedding", override="position_embedding"),
    Flag("position_embedding_scale", note=f"2π; {_UNREAD}"),
    Flag("num_feature_levels", override="num_feature_levels"),
    Flag("enc_layers", override="enc_layers"),
    Flag("dec_layers", override="dec_layers"),
    Flag("dim_feedforward", override="dim_feedforward"),
    Flag("hidden_dim", override="hidden_dim"),
    Flag("dropout", override="dropout"),
    Flag("nheads", override="nheads"),
    Flag("num_queries", override="num_queries"),
    Flag("dec_n_points", override="dec_n_points"),
    Flag("enc_n_points", override="enc_n_points"),
    Flag("pre_norm", override="pre_norm=true", note="DETR's main.py alone", switch=True),
    Flag("masks", note=_SEGMENTATION, switch=True),
    Flag("no_aux_loss", override="aux_loss=false", switch=True),
    Flag("set_cost_class", note=_FIXED),
    Flag("set_cost_bbox", note=_FIXED),
    Flag("set_cost_giou", note=_FIXED),
    Flag("mask_loss_coef", note=_SEGMENTATION),
    Flag("dice_loss_coef", note=_SEGMENTATION),
    Flag("cls_loss_coef", note=_FIXED),
    Flag("bbox_loss_coef", note=_FIXED),
    Flag("giou_loss_coef", note=_FIXED),
    Flag("focal_alpha", note="fixed at the published 0.25"),
    Flag("eos_coef", note="DETR's main.py alone; fixed at the published 0.1"),
    Flag("dataset_file", note="COCO's format and YOLO's are told apart by what --data holds"),
    Flag("coco_path", "--data"),
    Flag("coco_panoptic_path", note=_SEGMENTATION),
    Flag("remove_difficult", note=_UNREAD, switch=True),
    Flag("output_dir", "--out"),
    Flag("device", "--device"),
    Flag("seed", "--seed", note="the official one differs from process to process"),
    Flag(
        "resume",
        "--resume",
        note="a run of ours; from an official file, --init-from trains on and `msdeform eval "
        "--checkpoint FILE --data DIR` evaluates",
    ),
    Flag("start_epoch", note="the checkpoint knows where it stopped"),
    Flag("eval", "--eval", switch=True),
    Flag("num_workers", "--workers"),
    Flag("cache_mode", "--cache-images files", switch=True),
    Flag("world_size", note=f"DETR's main.py alone; {_LAUNCHER}"),
    Flag("dist_url", note=f"DETR's main.py alone; {_LAUNCHER}"),
)
BY_NAME = {flag.name: flag for flag in FLAGS}


def counterpart(name: str) -> str | None:
    """For an official name that is not ours, what is here instead, as half a sentence; None for any other name."""
    flag = BY_NAME.get(name.lstrip("-").replace("-", "_"))
    if flag is None or flag.ours == _dashed(flag.name):
        return None
    if flag.answer == "none":
        return f"the official --{flag.name} has no counterpart here: {flag.note}"
    alternative = f", {flag.note}" if flag.note.startswith("or ") else ""
    return f"the official --{flag.name} is {flag.answer} here{alternative}"


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
        if flag.answer == "none":
            raise ValueError(counterpart(flag.name))
        if not flag.switch and not value:
            if not queue:
                raise ValueError(f"{word}: expected a value")
            value = queue.pop(0)
        if flag.override is None:
            ours += [*flag.answer.split(), *([] if flag.switch else [value])]
        else:
            field, _, fixed = flag.override.partition("=")
            overrides[field] = fixed or value
    return ["--model", *_model(overrides), *ours]


def _model(overrides: dict[str, str]) -> list[str]:
    from ..engine.build import parse_overrides

    words = tuple(f"{name}={value}" for name, value in overrides.items())
    config = dataclasses.replace(config_of(BASE_MODEL), **parse_overrides(words))
    named = [name for name, each in MODELS.items() if each == config]
    return named[:1] if named else [BASE_MODEL, "--override", *words]


def markdown() -> str:
    """The table that docs/training.md holds."""
    rows = [f"| `--{flag.name}` | `{flag.answer}` | {flag.note} |".replace("`none`", "none") for flag in FLAGS]
    return "\n".join(["| official | here | |", "|---|---|---|", *rows])


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    try:
        print("msdeform train", shlex.join(translate(sys.argv[1:])))
    except ValueError as wrong:
        sys.exit(f"{Path(__file__).stem}: {wrong}")
