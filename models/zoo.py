"""Detectors by name, each with the losses that go with it."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from .catalog import check_fields, config_of
from .configs import FAMILIES, Config, DeformableDetrConfig, DetrConfig, DetrDemoConfig, FasterRcnnConfig
from .families.deformable_detr import DeformableDetr
from .families.deformable_transformer import DeformableTransformer
from .families.detector import Detector
from .families.detr import Detr
from .families.detr_demo import DetrDemo
from .families.detr_transformer import DetrTransformer
from .families.faster_rcnn import FasterRcnn, FasterRcnnCriterion
from .layers.backbone import Backbone, load_backbone_weights
from .layers.position import make_position
from .losses.criterion import SetCriterion


def create_model(
    name: str,
    *,
    num_classes: int = 91,
    attn_backend: str = "auto",
    pretrained: bool | str | Path = False,
    backbone_weights: str | Path | None = None,
    **overrides: Any,
) -> Detector:
    """A detector by name, randomly initialised but for its backbone, or with its published weights.

    `pretrained` True takes the weights that its authors trained on COCO (`published`: downloaded once, each file held
    against its hash); a path takes those of a local file or folder in any format (`formats`). Their classes are
    COCO's 91 category ids; for another `num_classes` or `num_queries`, heads that do not fit keep their random
    initialisation, and everything else is loaded.

    `backbone_weights` is None (random, nothing frozen), ``"imagenet"`` (torchvision's, downloaded once) or a file of
    a state dict; with weights, batch norm, stem and first stage are frozen, as published. `overrides` are fields of
    the family's configuration (`configs`); `attn_backend` is the operator's backend, held by every deformable
    attention.

    Raises ValueError for an unknown name or field, or one that does not fit; FileNotFoundError, ValueError or
    ConnectionError for weights that are not there, don't fit or can't be downloaded.
    """
    base = config_of(name)
    check_fields(type(base), overrides)
    if pretrained is not False:
        if backbone_weights is not None:
            raise ValueError("backbone_weights: expected None beside pretrained, whose weights have a backbone")
        return _pretrained(base, name, pretrained, num_classes, attn_backend, overrides)
    if backbone_weights is not None:
        overrides.setdefault("backbone_frozen", True)
    config = dataclasses.replace(base, num_classes=num_classes, **overrides)
    model = build_model(config, attn_backend=attn_backend)
    if backbone_weights is not None:
        load_backbone_weights(body_of(model), config.backbone, backbone_weights)
    return model


def _pretrained(
    base: Config, name: str, weights: str | Path | bool, num_classes: int, attn_backend: str, overrides: dict[str, Any]
) -> Detector:
    # these build models themselves
    from .weights.formats import read_source
    from .weights.load import start_from
    from .weights.pretrained import coco_names, fetch

    source = read_source(fetch(name) if isinstance(weights, bool) else Path(weights))
    overrides.setdefault("backbone_frozen", source.backbone_frozen)
    model = build_model(dataclasses.replace(base, num_classes=num_classes, **overrides), attn_backend=attn_backend)
    start = start_from(model, source)
    model.input_size = source.input_size
    if not any("class" in name for name in start.fresh):
        model.categories = source.categories or (coco_names() if num_classes == len(coco_names()) else None)
    return model


def build_model(config: Config | dict[str, Any], *, attn_backend: str = "auto") -> Detector:
    """The randomly initialised detector that `config`, or its `plain_config` from a checkpoint, describes.

    Raises ValueError for an unknown family, a field that its configuration does not have, or a value that does not
    fit.
    """
    if isinstance(config, dict):
        config = config_from_plain(config)
    if isinstance(config, DeformableDetrConfig):
        model: Detector = _deformable_detr(config, attn_backend)
    elif isinstance(config, DetrConfig):
        model = _detr(config)
    elif isinstance(config, DetrDemoConfig):
        model = _detr_demo(config)
    else:
        backbone = Backbone(config.backbone, 4, frozen=config.backbone_frozen)
        model = FasterRcnn(backbone, num_classes=config.num_classes)
    model.config = config
    return model


def plain_config(model: Detector | Config) -> dict[str, Any]:
    """A model's configuration, or that itself, as JSON's values, with its ``family``; `build_model` takes it.

    Raises ValueError for a model built from parts by hand, which has none.
    """
    config = _known_config(model) if isinstance(model, Detector) else model
    return {"family": config.family, **dataclasses.asdict(config)}


def _known_config(model: Detector) -> Config:
    if model.config is None:
        raise ValueError("model: expected one made by name or from a configuration, got one built from parts by hand")
    return model.config


def config_from_plain(plain: dict[str, Any]) -> Config:
    """What `plain_config` gave. Raises ValueError as `build_model`."""
    fields = dict(plain)
    family = fields.pop("family", DeformableDetrConfig.family)
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    check_fields(FAMILIES[family], fields)
    return FAMILIES[family](**fields)


def create_criterion(model: str | Config | Detector) -> SetCriterion | FasterRcnnCriterion:
    """The losses of a detector, given itself, its configuration or its name, with the published weights.

    Raises ValueError for an unknown name, or a model without a configuration.
    """
    if isinstance(model, str):
        config = config_of(model)
    elif isinstance(model, Detector):
        config = _known_config(model)
    else:
        config = model
    if isinstance(config, FasterRcnnConfig):
        return FasterRcnnCriterion()
    return SetCriterion(
        aux_layers=config.dec_layers - 1 if config.aux_loss else 0,
        two_stage=isinstance(config, DeformableDetrConfig) and config.two_stage,
        focal=config.focal,
    )


def _backbone(config: DeformableDetrConfig | DetrConfig | DetrDemoConfig, n_maps: int) -> Backbone:
    return Backbone(config.backbone, n_maps, frozen=config.backbone_frozen, dilation=config.dilation)


def _deformable_detr(config: DeformableDetrConfig, attn_backend: str) -> DeformableDetr:
    transformer = DeformableTransformer(
        hidden_dim=config.hidden_dim,
        nheads=config.nheads,
        num_levels=config.num_feature_levels,
        num_queries=config.num_queries,
        enc_layers=config.enc_layers,
        dec_layers=config.dec_layers,
        dim_feedforward=config.dim_feedforward,
        dropout=config.dropout,
        enc_n_points=config.enc_n_points,
        dec_n_points=config.dec_n_points,
        with_box_refine=config.with_box_refine,
        two_stage=config.two_stage,
        pre_norm=config.pre_norm,
        attn_backend=attn_backend,
    )
    return DeformableDetr(
        _backbone(config, min(config.num_feature_levels, 3)),
        make_position(config.position_embedding, config.hidden_dim, centred=True),
        transformer,
        num_classes=config.num_classes,
        aux_loss=config.aux_loss,
    )


def _detr(config: DetrConfig) -> Detr:
    transformer = DetrTransformer(
        hidden_dim=config.hidden_dim,
        nheads=config.nheads,
        enc_layers=config.enc_layers,
        dec_layers=config.dec_layers,
        dim_feedforward=config.dim_feedforward,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
    )
    return Detr(
        _backbone(config, 1),
        make_position(config.position_embedding, config.hidden_dim, centred=False),
        transformer,
        num_classes=config.num_classes,
        num_queries=config.num_queries,
        focal=config.focal,
        aux_loss=config.aux_loss,
    )


def _detr_demo(config: DetrDemoConfig) -> DetrDemo:
    transformer = nn.Transformer(
        config.hidden_dim,
        config.nheads,
        config.enc_layers,
        config.dec_layers,
        config.dim_feedforward,
        config.dropout,
        batch_first=True,
    )
    # torch's nested tensors are a prototype, of which it warns on every padded batch
    transformer.encoder.use_nested_tensor = False
    return DetrDemo(_backbone(config, 1), transformer, num_classes=config.num_classes, num_queries=config.num_queries)


def body_of(model: Detector) -> nn.Module:
    """The ResNet of a detector, whose children have torchvision's names."""
    if isinstance(model, FasterRcnn):
        return model.detector.backbone.body
    if isinstance(model, DetrDemo):
        return model.backbone
    return model.get_submodule("backbone.0.body")
