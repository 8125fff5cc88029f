"""Models for training: made anew by name, on a device and with a backend settled."""

import json
from pathlib import Path
from typing import Any

import torch

from ..kernels import registry
from ..models.backbone import TORCHVISION
from ..models.detector import Detector
from ..models.zoo import config_of, create_model
from .config import Model


def settle_backend(device: torch.device, attn_backend: str) -> str:
    """The backend that will run on ``device``: ``auto`` is settled once, here, and the model holds the answer.

    Raises:
        BackendUnavailable: the named backend cannot run there.
    """
    return registry.resolve_for(device, backend=None if attn_backend == "auto" else attn_backend)


def new_model(options: Model, num_classes: int, device: torch.device) -> tuple[Detector, str, bool]:
    """Makes the model that the options name.

    Returns:
        The model on ``device``, its backend, and whether its backbone has trained weights.

    Raises:
        ValueError: unknown model or setting.
        FileNotFoundError, OSError: weights that are not there, or cannot be downloaded.
    """
    backend = settle_backend(device, options.attn_backend)
    weights = backbone_weights(options)
    model = create_model(
        options.model,
        num_classes=num_classes,
        attn_backend=backend,
        backbone_weights=weights,
        **parse_overrides(options.override),
    )
    return model.to(device), backend, weights is not None


def backbone_weights(options: Model) -> str | Path | None:
    """What ``create_model`` is given: ``auto`` means trained weights for the published models and none for others.

    A model that starts from a checkpoint (``--init-from``) needs no other weights.
    """
    if options.backbone_weights == "auto":
        return "imagenet" if config_of(options.model).backbone in TORCHVISION and options.init_from is None else None
    if options.backbone_weights == "none":
        return None
    if options.backbone_weights == "imagenet":
        return "imagenet"
    return Path(options.backbone_weights)


def parse_overrides(words: tuple[str, ...]) -> dict[str, Any]:
    """``num_queries=100 two_stage=true backbone=resnet18`` as a dictionary; values are JSON, or else text.

    Raises:
        ValueError: a word without ``=``.
    """
    overrides = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"override: expected NAME=VALUE, such as num_queries=100, got {word!r}")
        try:
            overrides[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            overrides[name] = value
    return overrides
