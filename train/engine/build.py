"""Models for training: made anew by name, on a device and with a backend settled."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...kernels import registry
from ...models.catalog import config_of
from ...models.configs import TORCHVISION
from ...models.families.detector import Detector
from ...models.weights.formats import Source, read_source
from ...models.weights.load import Start, nearest_model, start_from
from ...models.weights.pretrained import fetch, published_of
from ...models.zoo import build_model, create_model
from ..config.options import Model, flatten, parse_overrides


def settle_backend(device: torch.device, attn_backend: str) -> str:
    """The backend that will run on ``device``: ``auto`` is settled once, here, and the model holds the answer.

    Raises:
        BackendUnavailable: the named backend cannot run there.
    """
    return registry.resolve_for(device, backend=None if attn_backend == "auto" else attn_backend)


@dataclass(frozen=True)
class Built:
    """A model for training."""

    model: Detector
    backend: str
    """Of its deformable attention, settled."""
    backbone_trained: bool
    """Does its backbone start from trained weights? It learns ten times slower then."""
    start: Start | None = None
    """What --init-from gave."""


def new_model(options: Model, num_classes: int, device: torch.device) -> Built:
    """Makes the model that the options name, on ``device``.

    Raises:
        ValueError: unknown model or setting; weights of another model.
        FileNotFoundError, OSError: weights that are not there, or cannot be downloaded.
    """
    backend = settle_backend(device, options.attn_backend)
    overrides = parse_overrides(options.override)
    source = _source_to_start_from(options)
    if source is not None:
        # as they were trained: statistics that were constants stay constants
        overrides.setdefault("backbone_frozen", source.backbone_frozen)
    weights = options.backbone_weights
    if weights == "auto":  # trained weights for the published models, where no others are loaded and none are refused
        of_torchvision = config_of(options.model).backbone in TORCHVISION
        weights = "imagenet" if of_torchvision and options.init_from is None else "none"
    of_backbone = {"none": None, "imagenet": "imagenet"}.get(weights, Path(weights))
    model = create_model(
        options.model, num_classes=num_classes, attn_backend=backend, backbone_weights=of_backbone, **overrides
    )
    start = None
    if source is not None:
        try:
            start = start_from(model, source)
        except ValueError as error:
            advice, own = "name its model with --model, and its settings with --override", nearest_model(source)
            if own is not None:
                advice = f"without --model, its own is taken, {own[0]}{' with other settings' if own[1] else ''}"
            raise ValueError(f"{error}; {advice}") from None
    return Built(model.to(device), backend, of_backbone is not None or source is not None, start)


def with_model_of_start(options: Model) -> Model:
    """The same with the model that ``init_from`` is of, whose differences from its name come before other overrides.

    Unchanged where there is no such file, or nothing in it tells its model. Raises ValueError, FileNotFoundError as
    `read_source`.
    """
    source = None if str(options.init_from) == "published" else _source_to_start_from(options)
    found = None if source is None else nearest_model(source)
    if found is None:
        return options
    name, differing = found
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in differing.items()]
    return replace(options, model=name, override=(*words, *options.override))


def _source_to_start_from(options: Model) -> Source | None:
    """The weights that ``init_from`` names, fetched where they are published."""
    path = options.init_from
    if path is None or str(path) == "none":
        return None
    if str(path) == "published":
        try:
            published_of(options.model, "init_from")
        except ValueError as error:
            way_out = "start from a file: --init-from PATH; or from random weights: --init-from none"
            raise ValueError(f"{error}; {way_out}") from None
        path = fetch(options.model, "init_from", "--init-from PATH; or start from random weights: --init-from none")
    return read_source(path)


def model_of_checkpoint(state: dict[str, Any], path: Path, options: Model, device: torch.device) -> Built:
    """The model that a run's checkpoint describes, without its weights; nothing is downloaded for it.

    Raises ValueError if the options name another one.
    """
    if options.model != state["model_name"]:
        raise ValueError(f"{path} is a checkpoint of another model: {state['model_name']}, not {options.model}")
    before = tuple(dict(flatten(state["options"])).get("override", ()))
    if options.override != before:
        mine, theirs = (" ".join(words) or "nothing" for words in (options.override, before))
        raise ValueError(f"{path} is a checkpoint of another model: --override was {theirs}, and is {mine}")
    backend = settle_backend(device, options.attn_backend)
    config = state["model_config"]
    model = build_model({"family": "deformable_detr", **config}, attn_backend=backend).to(device)
    return Built(model, backend, state.get("backbone_trained", bool(config.get("backbone_frozen"))))
