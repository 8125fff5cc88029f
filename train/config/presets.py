"""Settings to start from: ``--preset NAME``. Each says where its numbers come from, and what is our own choice.

Every flag, and every line of a ``--config`` file, changes what a preset sets; what it does not set keeps its default.
"""

from dataclasses import dataclass
from typing import Any

from ...common.options import suggest


@dataclass(frozen=True)
class Preset:
    """A recipe under a name."""

    summary: str
    source: str
    """Where the numbers are from, and which are chosen here."""
    settings: dict[str, Any]
    """By name of the setting, whatever its group."""


# the rest are the defaults
DEFORMABLE_50: dict[str, Any] = {"lr_backbone": 2e-5}
DETR_300: dict[str, Any] = {
    "epochs": 300,
    "lr_drop": 200,
    "lr": 1e-4,
    "lr_backbone": 1e-5,
    "total_batch_size": 64,
    "batch_size": 4,
    "model": "detr_r50",
}

_OFFICIAL = "the official script of this name, its main.py, and the README: total batch 32"
_DETR_PAPER = "Carion et al. 2020, section 4: 16 GPUs with 4 images each"


def _official(summary: str, model: str) -> Preset:
    return Preset(summary, _OFFICIAL, {**DEFORMABLE_50, "model": model})


PRESETS = {
    "r50_deformable_detr": _official("Deformable DETR, four scales; published AP 44.5", "deformable_detr_r50"),
    "r50_deformable_detr_single_scale": _official(
        "Deformable DETR, the map of stride 32 alone; published AP 39.4", "deformable_detr_r50_single_scale"
    ),
    "r50_deformable_detr_single_scale_dc5": _official(
        "Deformable DETR, one map, of stride 16 by dilation; published AP 41.5", "deformable_detr_r50_single_scale_dc5"
    ),
    "r50_deformable_detr_plus_iterative_bbox_refinement": _official(
        "boxes refined by every decoder layer; published AP 46.2", "deformable_detr_r50_refine"
    ),
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": _official(
        "boxes refined, and queries from the encoder's proposals; published AP 46.9", "deformable_detr_r50_two_stage"
    ),
    "deformable-50": Preset(
        "50 epochs, for whichever Deformable DETR --model names",
        "Zhu et al. 2021, section 5, and the official main.py",
        DEFORMABLE_50,
    ),
    "detr-300": Preset("DETR with its 300 epochs", _DETR_PAPER, DETR_300),
    "detr-500": Preset(
        "DETR with the 500 epochs of its published table",
        f"{_DETR_PAPER}; 500 epochs with the drop at 400",
        {**DETR_300, "epochs": 500, "lr_drop": 400},
    ),
    "dc5-plus-50": Preset(
        "DETR-DC5+, focal loss and 300 queries, with 50 epochs; published AP 36.2",
        "Zhu et al. 2021 give the epochs, the loss and the queries; neither paper gives rates, drop or batch: here "
        "DETR's rates and total batch, one image on a device, as DETR's README has it for DC5, and the drop at 40 of "
        "Deformable DETR",
        {**DETR_300, "epochs": 50, "lr_drop": 40, "batch_size": 1, "model": "detr_r50_dc5_plus"},
    ),
    "finetune": Preset(
        "from published weights to your own classes",
        "chosen here, by custom and not by measurement: a quarter of the published rates, half the batch",
        {
            "model": "deformable_detr_r50_two_stage",
            "init_from": "published",
            "epochs": 30,
            "total_batch_size": 16,
            "batch_size": 2,
            "lr": 5e-5,
            "lr_backbone": 5e-6,
            "schedule": "cosine",
            "warmup_steps": 200,
            "ema": 0.999,
            "patience": 8,
        },
    ),
    "debug": Preset(
        "a tiny model, small images, at most 20 steps: does everything run?",
        "chosen here to be quick on a CPU; it learns nothing worth having",
        {
            "model": "deformable_detr_tiny",
            "image_size": 96,
            "augment": "flip",
            "workers": 0,
            "epochs": 2,
            "max_steps": 20,
            "total_batch_size": 4,
            "batch_size": 2,
            "lr": 1e-3,
            "schedule": "constant",
            "dry_steps": 0,
            "log_every": 1,
            "pictures": 2,
        },
    ),
}


def preset(name: str) -> Preset:
    """The recipe of a name. Raises ValueError for one that there is not, with the nearest."""
    if name not in PRESETS:
        every = f"there are {', '.join(PRESETS)}"
        raise ValueError(suggest(f"preset: none is called {name!r}", name.lower(), PRESETS, every))
    return PRESETS[name]


def list_presets() -> str:
    """What ``--preset list`` prints."""
    return "\n".join(f"{name}\n    {each.summary}" for name, each in PRESETS.items())
