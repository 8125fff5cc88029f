"""Detectors by name, by configuration or out of weights, each with the losses that go with it."""

import dataclasses
from pathlib import Path
from typing import Any

from .catalog import config_of
from .configs import Config, DeformableDetrConfig, TransformerConfig, check_fields

# importing a family registers it with `Detector`
from .families import deformable_detr, detr, detr_demo  # noqa: F401
from .families.detector import Detector
from .families.faster_rcnn import FasterRcnnCriterion
from .losses.criterion import SetCriterion
from .weights.backbone import load_backbone_weights
from .weights.formats import Source, read_source
from .weights.load import start_from
from .weights.pretrained import coco_names, fetch


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
    base, source = config_of(name), None
    check_fields(type(base), overrides)
    if pretrained is not False:
        if backbone_weights is not None:
            raise ValueError("backbone_weights: expected None beside pretrained, whose weights have a backbone")
        source = read_source(fetch(name) if isinstance(pretrained, bool) else Path(pretrained))
        overrides.setdefault("backbone_frozen", source.backbone_frozen)
    elif backbone_weights is not None:
        overrides.setdefault("backbone_frozen", True)
    config = dataclasses.replace(base, num_classes=num_classes, **overrides)
    model = Detector.from_config(config, attn_backend=attn_backend)
    if backbone_weights is not None:
        load_backbone_weights(model.body, config.backbone, backbone_weights)
    if source is not None:
        start = start_from(model, source)
        model.input_size = source.input_size
        if not any("class" in name for name in start.fresh):
            model.thresholds = source.thresholds
            model.categories = source.categories or (coco_names() if num_classes == len(coco_names()) else None)
    return model


def build_model(config: Config | dict[str, Any], *, attn_backend: str = "auto") -> Detector:
    """The randomly initialised detector that `config`, or its `to_dict` from a checkpoint, describes.

    Raises ValueError as `Config.from_dict`.
    """
    known = config if isinstance(config, Config) else Config.from_dict(config)
    return Detector.from_config(known, attn_backend=attn_backend)


def load_model(path: str | Path | Source, *, attn_backend: str = "auto", name: str | None = None) -> Detector:
    """A detector out of a checkpoint in any format (`formats`), with its weights and classes, in evaluation mode.

    Args:
        path: an official ``.pth``, a folder or file of Hugging Face's or ours, a checkpoint of ``msdeform train``, a
            run's folder for its best, or what `read_source` made of one of these.
        attn_backend: the operator's backend, held by every deformable attention.
        name: of `list_models`, the model that the weights are of; needed where they lie alone, without a
            configuration or the official command line beside them, and held against those where there are.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is damaged, of no detector, of another one than `name`, or alone and without a `name`.
    """
    source = path if isinstance(path, Source) else read_source(Path(path))
    return Detector.from_source(source, attn_backend=attn_backend, name=name)


def from_pretrained(path_or_repository: str | Path, **settings: Any) -> Detector:
    """A detector of any family out of a folder, file or repository on the Hub: see `Detector.from_pretrained`."""
    return Detector.from_pretrained(path_or_repository, **settings)


def create_criterion(model: str | Config | Detector) -> SetCriterion | FasterRcnnCriterion:
    """The losses of a detector, given itself, its configuration or its name, with the published weights.

    Raises ValueError for an unknown name, or a model without a configuration.
    """
    if isinstance(model, str):
        config = config_of(model)
    else:
        config = model.require_config() if isinstance(model, Detector) else model
    if not isinstance(config, TransformerConfig):
        return FasterRcnnCriterion()
    return SetCriterion(
        aux_layers=config.dec_layers - 1 if config.aux_loss else 0,
        two_stage=isinstance(config, DeformableDetrConfig) and config.two_stage,
        focal=config.focal,
    )
