"""Settings to start from: ``--preset NAME``. Each says where its numbers come from, and what is our own choice.

Every flag, and every line of a ``--config`` file, changes what a preset sets; what it does not set keeps its default.
"""

from dataclasses import dataclass

from ...common.command_line import parse
from ...common.text import suggest
from .options import TrainOptions


@dataclass(frozen=True)
class Preset:
    """A recipe under a name."""

    summary: str
    source: str
    """Where the numbers are from, and which are chosen here."""
    flags: str
    """As on the command line; the rest are the defaults."""
    needs_weights: bool = False
    """Is it for weights that the user has to name?"""


# the rest are the defaults, which are the published ones
_DEFORMABLE_50 = "--lr-backbone 2e-5"
_DETR = "--model detr_r50 --lr 1e-4 --lr-backbone 1e-5 --total-batch-size 64 --batch-size 4"
_OFFICIAL = "the official script of this name, its main.py, and the README: total batch 32"
_DETR_PAPER = "Carion et al. 2020, section 4: 16 GPUs with 4 images each"

PRESETS = {
    "r50_deformable_detr": Preset(
        "Deformable DETR, four scales; published AP 44.5", _OFFICIAL, f"--model deformable_detr_r50 {_DEFORMABLE_50}"
    ),
    "r50_deformable_detr_single_scale": Preset(
        "Deformable DETR, the map of stride 32 alone; published AP 39.4",
        _OFFICIAL,
        f"--model deformable_detr_r50_single_scale {_DEFORMABLE_50}",
    ),
    "r50_deformable_detr_single_scale_dc5": Preset(
        "Deformable DETR, one map, of stride 16 by dilation; published AP 41.5",
        _OFFICIAL,
        f"--model deformable_detr_r50_single_scale_dc5 {_DEFORMABLE_50}",
    ),
    "r50_deformable_detr_plus_iterative_bbox_refinement": Preset(
        "boxes refined by every decoder layer; published AP 46.2",
        _OFFICIAL,
        f"--model deformable_detr_r50_refine {_DEFORMABLE_50}",
    ),
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": Preset(
        "boxes refined, and queries from the encoder's proposals; published AP 46.9",
        _OFFICIAL,
        f"--model deformable_detr_r50_two_stage {_DEFORMABLE_50}",
    ),
    "deformable-50": Preset(
        "50 epochs, for whichever Deformable DETR --model names",
        "Zhu et al. 2021, section 5, and the official main.py",
        _DEFORMABLE_50,
    ),
    "detr-300": Preset("DETR with its 300 epochs", _DETR_PAPER, f"{_DETR} --epochs 300 --lr-drop 200"),
    "detr-500": Preset(
        "DETR with the 500 epochs of its published table",
        f"{_DETR_PAPER}; 500 epochs with the drop at 400",
        f"{_DETR} --epochs 500 --lr-drop 400",
    ),
    "dc5-plus-50": Preset(
        "DETR-DC5+, focal loss and 300 queries, with 50 epochs; published AP 36.2",
        "Zhu et al. 2021 give the epochs, the loss and the queries; neither paper gives rates, drop or batch: here "
        "DETR's rates and total batch, one image on a device, as DETR's README has it for DC5, and the drop at 40 of "
        "Deformable DETR",
        f"{_DETR} --model detr_r50_dc5_plus --batch-size 1 --epochs 50 --lr-drop 40",
    ),
    "finetune": Preset(
        "from published weights to your own classes",
        "chosen here, by custom and not by measurement: a quarter of the published rates, half the batch",
        "--model deformable_detr_r50_two_stage --init-from published --epochs 30 --total-batch-size 16 --lr 5e-5 "
        "--lr-backbone 5e-6 --schedule cosine --warmup-steps 200 --ema 0.999 --patience 8",
    ),
    "scratch": Preset(
        "a small detector of your own classes from random weights, on a CPU",
        "the best of seven on held-out photographs of blood cells (docs/photographs.md)",
        "--model deformable_detr_mini --backbone-weights none --image-size 320 --augment light --epochs 80 "
        "--total-batch-size 8 --batch-size 8 --lr 1e-3 --lr-factor-offsets 0.5 --schedule constant --warmup-steps 100 "
        "--ema 0.998 --eval-every 10 --workers 1 --precision bf16 --channels-last",
    ),
    "finetune-small": Preset(
        "a small detector of transformers to your own classes, on a CPU; --init-from names it",
        "chosen here by one run of ten epochs (docs/photographs.md)",
        "--epochs 25 --total-batch-size 8 --batch-size 8 --lr 1e-3 --lr-backbone 5e-4 --augment light "
        "--schedule cosine --warmup-steps 50 --ema 0.99 --eval-every 5 --workers 1",
        needs_weights=True,
    ),
    "debug": Preset(
        "a tiny model, small images, at most 20 steps: does everything run?",
        "chosen here to be quick on a CPU; it learns nothing worth having",
        "--model deformable_detr_tiny --image-size 96 --augment flip --workers 0 --epochs 2 --max-steps 20 "
        "--total-batch-size 4 --lr 1e-3 --schedule constant --dry-steps 0 --log-every 1 --pictures 2",
    ),
}


def preset(name: str) -> TrainOptions:
    """The settings of a preset. Raises ValueError for one that there is not, with the nearest."""
    if name not in PRESETS:
        every = f"there are {', '.join(PRESETS)}"
        raise ValueError(suggest(f"preset: none is called {name!r}", name.lower(), PRESETS, every))
    return parse(TrainOptions, PRESETS[name].flags.split(), f"preset {name}")


def list_presets() -> str:
    """What ``--preset list`` prints."""
    return "\n".join(f"{name}\n    {each.summary}" for name, each in PRESETS.items())
