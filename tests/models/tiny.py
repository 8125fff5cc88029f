"""One small detector of every family, quick enough to run many times."""

from typing import Any

import torch

from msdeform.models.families.detector import Detector
from msdeform.models.zoo import create_model

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr_tiny", {}),
    "detr focal": ("detr_tiny", {"focal": True}),
    "demo": (
        "detr_demo",
        {
            "backbone": "resnet10_tiny",
            "hidden_dim": 32,
            "nheads": 2,
            "enc_layers": 1,
            "dec_layers": 1,
            "dim_feedforward": 64,
            "num_queries": 10,
            "dropout": 0.0,
        },
    ),
    "deformable": ("deformable_detr_tiny", {}),
    "two-stage": ("deformable_detr_tiny", {"dec_layers": 2, "with_box_refine": True, "two_stage": True}),
    "faster r-cnn": ("fasterrcnn_tiny", {}),
}


def tiny(family: str, **overrides: Any) -> Detector:
    """The family's small detector of 3 classes, always of the same random weights."""
    name, settings = TINY[family]
    torch.manual_seed(0)
    model = create_model(name, **{"num_classes": 3, **settings, **overrides})
    if family == "faster r-cnn":
        # the layers of the second stage are wide: fewer boxes for them
        model.detector.roi_heads.fg_bg_sampler.batch_size_per_image = 16
        model.detector.rpn._post_nms_top_n = {"training": 30, "testing": 30}
    return model
