"""The detectors by name: each name's configuration. Nothing here needs PyTorch."""

import dataclasses
from typing import Annotated, Any

from ..common.options import Known, Metavar
from ..common.text import nearest, suggest
from .configs import Config, DeformableDetrConfig, DetrConfig, DetrDemoConfig, FasterRcnnConfig

# the published table, with ResNet-50
_PUBLISHED: dict[str, Config] = {
    "fasterrcnn_resnet50_fpn": FasterRcnnConfig(),
    "detr_r50": DetrConfig(),
    "detr_r50_dc5": DetrConfig(dilation=True),
    # what Zhu et al. 2021 changed for the comparison: focal loss, 300 queries. They don't say how they matched; here
    # as they match Deformable DETR, by the focal cost and its weights
    "detr_r50_dc5_plus": DetrConfig(dilation=True, focal=True, num_queries=300),
    "detr_r50_demo": DetrDemoConfig(),
    "deformable_detr_r50_single_scale": DeformableDetrConfig(num_feature_levels=1),
    "deformable_detr_r50_single_scale_dc5": DeformableDetrConfig(num_feature_levels=1, dilation=True),
    "deformable_detr_r50": DeformableDetrConfig(),
    "deformable_detr_r50_dc5": DeformableDetrConfig(dilation=True),
    "deformable_detr_r50_refine": DeformableDetrConfig(with_box_refine=True),
    "deformable_detr_r50_two_stage": DeformableDetrConfig(with_box_refine=True, two_stage=True),
}

# trains from random weights on two processor cores in minutes, on images of 96 to 192 pixels
_MINI: dict[str, Any] = {
    "backbone": "resnet18_half",
    "num_queries": 60,
    "enc_layers": 1,
    "dec_layers": 3,
    "hidden_dim": 128,
    "dim_feedforward": 512,
    "nheads": 4,
    "dropout": 0.0,
}
# for tests: the smallest that has every part
_TINY: dict[str, Any] = {
    "backbone": "resnet10_tiny",
    "num_queries": 10,
    "enc_layers": 1,
    "dec_layers": 1,
    "hidden_dim": 32,
    "dim_feedforward": 64,
    "nheads": 2,
    "dropout": 0.0,
}
_POINTS: dict[str, Any] = {"enc_n_points": 2, "dec_n_points": 2}


def _with_resnet101(name: str, config: Config) -> tuple[str, Config]:
    renamed = name.replace("_r50", "_r101").replace("resnet50", "resnet101")
    return renamed, dataclasses.replace(config, backbone="resnet101")


MODELS: dict[str, Config] = {
    **_PUBLISHED,
    **dict(_with_resnet101(name, config) for name, config in _PUBLISHED.items()),
    "detr_mini": DetrConfig(**_MINI),
    "detr_tiny": DetrConfig(**_TINY),
    "deformable_detr_mini": DeformableDetrConfig(
        **_MINI, **_POINTS, num_feature_levels=3, with_box_refine=True, two_stage=True
    ),
    "deformable_detr_tiny": DeformableDetrConfig(**_TINY, **_POINTS, num_feature_levels=2),
    "fasterrcnn_tiny": FasterRcnnConfig(backbone="resnet10_tiny"),
}
# the published name of the demo says nothing of its backbone
MODELS["detr_demo"] = MODELS.pop("detr_r50_demo")
MODELS["detr_demo_r101"] = MODELS.pop("detr_r101_demo")


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return sorted(MODELS)


TRANSFORMERS = "transformers"
"""Stands for the name of a model in training: a detector of transformers, whichever the weights are of."""

ModelName = Annotated[str, Known("model", tuple(list_models())), Metavar("NAME")]
"""a name as an option"""

TrainedName = Annotated[str, Known("model", (*list_models(), TRANSFORMERS)), Metavar("NAME")]
"""a name, or `TRANSFORMERS`, as an option"""


def config_of(name: str) -> Config:
    """The configuration behind a name. Raises ValueError for an unknown one, with the nearest that there are."""
    if name not in MODELS:
        usual = str(name).lower().replace("-", "_")
        known = list_models()
        every = f"expected one of {', '.join(known)}"
        raise ValueError(suggest(f"name: no model is called {name!r}", usual, known, every, most=3))
    return MODELS[name]


def check_model(name: str | None, what: str = "model") -> None:
    """Raises ValueError, which begins with the option ``what``, for a name that no detector has, with the nearest."""
    if name is not None and name not in MODELS:
        raise ValueError(f"{what}: {nearest('model', name, list_models())}")
