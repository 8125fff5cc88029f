"""Detectors by name."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, cast

from .backbone import Backbone, load_backbone_weights
from .criterion import SetCriterion
from .deformable_detr import DeformableDetr, DeformableDetrConfig

_PUBLISHED = DeformableDetrConfig()

MODELS: dict[str, DeformableDetrConfig] = {
    "deformable_detr_r50": _PUBLISHED,
    "deformable_detr_r50_refine": dataclasses.replace(_PUBLISHED, with_box_refine=True),
    "deformable_detr_r50_two_stage": dataclasses.replace(_PUBLISHED, with_box_refine=True, two_stage=True),
    # trains from random weights on two processor cores in minutes, on images of 128 to 192 pixels
    "deformable_detr_mini": DeformableDetrConfig(
        backbone="resnet18_half",
        num_queries=60,
        num_feature_levels=3,
        enc_layers=1,
        dec_layers=3,
        hidden_dim=128,
        dim_feedforward=512,
        nheads=4,
        enc_n_points=2,
        dec_n_points=2,
        dropout=0.0,
        with_box_refine=True,
        two_stage=True,
    ),
    # for tests: the smallest that has every part
    "deformable_detr_tiny": DeformableDetrConfig(
        backbone="resnet10_tiny",
        num_queries=10,
        num_feature_levels=2,
        enc_layers=1,
        dec_layers=1,
        hidden_dim=32,
        dim_feedforward=64,
        nheads=2,
        enc_n_points=2,
        dec_n_points=2,
        dropout=0.0,
    ),
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return sorted(MODELS)


def create_model(
    name: str,
    *,
    num_classes: int = 91,
    attn_backend: str = "auto",
    backbone_weights: str | Path | None = None,
    **overrides: Any,
) -> DeformableDetr:
    """A detector by name, randomly initialised but for its backbone.

    `backbone_weights` is None (random, nothing frozen), ``"imagenet"`` (torchvision's, downloaded once) or a file of
    a state dict; with weights, batch norm, stem and first stage are frozen, as published. `overrides` are fields of
    `DeformableDetrConfig`; `attn_backend` is the operator's backend, held by every attention module.

    Raises ValueError for an unknown name or field, or one that does not fit; FileNotFoundError, ValueError or
    ConnectionError for weights that are not there, don't fit or can't be downloaded.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(str(name), list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name: expected one of {', '.join(list_models())}, got {name!r}{hint}")
    _check_fields(overrides)
    if backbone_weights is not None:
        overrides.setdefault("backbone_frozen", True)
    config = dataclasses.replace(MODELS[name], num_classes=num_classes, **overrides)
    model = build_model(config, attn_backend=attn_backend)
    if backbone_weights is not None:
        load_backbone_weights(cast(Backbone, model.backbone[0]), config.backbone, backbone_weights)
    return model


def build_model(config: DeformableDetrConfig | dict[str, Any], *, attn_backend: str = "auto") -> DeformableDetr:
    """The randomly initialised detector that `config` describes, or its ``dataclasses.asdict`` (from a checkpoint).

    Raises ValueError for a dict with a field that the configuration does not have, or a value that does not fit.
    """
    if isinstance(config, dict):
        _check_fields(config)
        config = DeformableDetrConfig(**config)
    return DeformableDetr(config, attn_backend=attn_backend)


def create_criterion(config_or_model: DeformableDetrConfig | DeformableDetr) -> SetCriterion:
    """The losses of a detector, or of its configuration, with the published weights."""
    config = config_or_model.config if isinstance(config_or_model, DeformableDetr) else config_or_model
    return SetCriterion(aux_layers=config.dec_layers - 1 if config.aux_loss else 0, two_stage=config.two_stage)


def _check_fields(fields: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(DeformableDetrConfig)]
    for name in fields:
        if name not in known:
            raise ValueError(f"{name}: not a field of the model's configuration, which has {', '.join(known)}")
