"""The published table of Zhu et al. 2021 (tables 1 and 2): COCO val2017, total batch of 32, a V100."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row as published; AP in percent."""

    model: str
    """of :func:`msdeform.list_models`"""
    title: str
    epochs: int
    ap: float
    ap_s: float
    ap_m: float
    ap_l: float
    parameters_m: int
    """millions"""
    flops_g: int
    """1e9 multiply-adds"""
    hours: int
    """of training"""
    hours_per_epoch: float
    fps: float
    fps_4: float
    """at batch 4"""


PUBLISHED = (
    Published(
        "fasterrcnn_resnet50_fpn", "Faster R-CNN + FPN", 109, 42.0, 26.6, 45.4, 53.4, 42, 180, 380, 3.5, 25.6, 28.0
    ),
    Published("detr_r50", "DETR", 500, 42.0, 20.5, 45.8, 61.1, 41, 86, 2000, 4.0, 27.0, 38.3),
    Published("detr_r50_dc5", "DETR-DC5", 500, 43.3, 22.5, 47.3, 61.1, 41, 187, 7000, 14.0, 11.4, 12.4),
    Published("detr_r50_dc5", "DETR-DC5", 50, 35.3, 15.2, 37.5, 53.6, 41, 187, 700, 14.0, 11.4, 12.4),
    Published("detr_r50_dc5_plus", "DETR-DC5+", 50, 36.2, 16.3, 39.2, 53.9, 41, 187, 700, 14.0, 11.4, 12.4),
    Published(
        "deformable_detr_r50_single_scale",
        "Deformable DETR, single scale",
        *(50, 39.4, 20.6, 43.0, 55.5, 34, 78, 160, 3.2, 27.0, 42.4),
    ),
    Published(
        "deformable_detr_r50_single_scale_dc5",
        "Deformable DETR, single scale, DC5",
        *(50, 41.5, 24.1, 45.3, 56.0, 34, 128, 215, 4.3, 22.1, 29.4),
    ),
    Published("deformable_detr_r50", "Deformable DETR", 50, 44.5, 27.1, 47.6, 59.6, 40, 173, 325, 6.5, 15.0, 19.4),
    Published(
        "deformable_detr_r50_refine",
        "+ iterative bounding box refinement",
        *(50, 46.2, 28.3, 49.2, 61.5, 41, 173, 325, 6.5, 15.0, 19.4),
    ),
    Published(
        "deformable_detr_r50_two_stage",
        "++ two-stage",
        *(50, 46.9, 29.6, 50.1, 61.6, 41, 173, 340, 6.8, 14.5, 18.8),
    ),
)
MODELS = tuple(dict.fromkeys(row.model for row in PUBLISHED))
REDUCED_MODELS = ("deformable_detr_tiny", "detr_tiny")
"""what stands for them where there is no GPU"""


def published_as(model: str) -> Published | None:
    """The first published row of a model, or None. Its size and speed are those of every other one."""
    return next((row for row in PUBLISHED if row.model == model), None)
