"""Models for training: made anew by name, on a device and with a backend settled."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...integrations.detectors.deimv2 import departs
from ...integrations.detectors.detector import TransformersDetector, is_of_transformers
from ...integrations.detectors.training import TransformersConfig, TransformersCriterion
from ...kernels import registry
from ...models.catalog import TRANSFORMERS, config_of
from ...models.configs import TORCHVISION
from ...models.families.detector import Detector
from ...models.families.faster_rcnn import FasterRcnnCriterion
from ...models.inference.image_size import ExactSize, Size
from ...models.losses.criterion import SetCriterion
from ...models.weights.formats import CONFIG_FILE, Source, read_source
from ...models.weights.hub import local_or_downloaded
from ...models.weights.load import Start, config_that_fits, nearest_model, start_from
from ...models.weights.pretrained import fetch, published_of
from ...models.zoo import build_model, create_criterion, create_model, load_model
from ..config.options import Input, Model, TrainOptions, flatten, from_plain, parse_overrides

AnyDetector = Detector | TransformersDetector
"""What can be trained."""

_DEPARTS = (
    "transformers computes DEIMv2 otherwise than its authors' code, so that published weights of Atto and Femto find "
    "little at first; --model transformers --override authors_code=true computes as they do (docs/training.md)"
)


def settle_backend(device: torch.device, attn_backend: str) -> str:
    """The backend that will run on ``device``: ``auto`` is settled once, here, and the model holds the answer.

    Raises:
        BackendUnavailable: the named backend cannot run there.
    """
    return registry.resolve_for(device, backend=None if attn_backend == "auto" else attn_backend)


@dataclass(frozen=True)
class Built:
    """A model for training."""

    model: AnyDetector
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
    if source is not None and (options.model == TRANSFORMERS or _family(source) == TRANSFORMERS):
        return _new_of_transformers(options, source, num_classes, device, backend)
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


def _new_of_transformers(options: Model, source: Source, num_classes: int, device: torch.device, backend: str) -> Built:
    """The detector of transformers that `source` is of, with heads for so many classes."""
    if _family(source) != TRANSFORMERS:
        raise ValueError(f"model: {source.path} is no detector of transformers; without --model, its own is taken")
    if options.model != TRANSFORMERS:
        raise ValueError(f"model: {source.path} is a detector of transformers, not {options.model}; leave --model out")
    described, overrides = TransformersConfig.from_dict(source.config or {}), parse_overrides(options.override)
    model = TransformersDetector.from_config(
        described, source.input_size, backend, num_classes=num_classes, overrides=overrides
    )
    try:
        start = start_from(model, source)
    except ValueError as error:
        raise ValueError(f"{error}; --override has changed its structure") from None
    note = _DEPARTS if departs(model.model.config) else None
    return Built(model.to(device), backend, backbone_trained=True, start=replace(start, note=note))


def new_criterion(model: AnyDetector, processes: int = 1) -> SetCriterion | FasterRcnnCriterion | TransformersCriterion:
    """The losses of a detector, which trains in so many processes.

    Raises ValueError for a model without losses, or whose losses are not for several processes.
    """
    if not isinstance(model, TransformersDetector):
        return create_criterion(model)
    if processes > 1 and model.kind.startswith(("LwDetr", "RfDetr")):
        raise ValueError(
            f"model: the losses of {model.kind} in transformers wait for other processes by themselves, which may do "
            f"another number of passes; expected one process, got {processes}"
        )
    return TransformersCriterion(model.model)


def inputs_of(model: AnyDetector, images: Any, targets: Any) -> tuple[Any, ...]:
    """What the model is called with, for its losses."""
    return (images, targets) if isinstance(model, TransformersDetector) else (images,)


def load_any_model(source: Source, *, attn_backend: str = "auto", name: str | None = None) -> AnyDetector:
    """`zoo.load_model`, which also loads a run's detector of transformers."""
    if _family(source) == TRANSFORMERS:
        return TransformersDetector.from_source(source, attn_backend=attn_backend)
    return load_model(source, attn_backend=attn_backend, name=name)


def build_any_model(state: dict[str, Any], path: Path, size: Size | None, *, attn_backend: str = "auto") -> AnyDetector:
    """`zoo.build_model` of what a run saved, without its weights, which also builds detectors of transformers."""
    config = state["model_config"]
    if config.get("family") == TRANSFORMERS:
        return TransformersDetector.from_config(TransformersConfig.from_dict(config), size, attn_backend)
    return build_model(
        config_that_fits({"family": "deformable_detr", **config}, state["model"], path), attn_backend=attn_backend
    )


def with_model_of_start(options: TrainOptions) -> TrainOptions:
    """The same with the model that ``init_from`` is of, whose differences from its name come before other overrides.

    Of transformers, also with the size of its images, where none is named. Unchanged where there is no such file, or
    nothing in it tells its model. Raises ValueError, FileNotFoundError as `read_source`, ConnectionError for weights
    that the Hub did not give.
    """
    model = options.model
    source = None if str(model.init_from) == "published" else _source_to_start_from(model)
    if source is None:
        return options
    if _family(source) == TRANSFORMERS:
        return replace(options, model=replace(model, model=TRANSFORMERS), input=_fitting(options.input, source))
    found = nearest_model(source)
    if found is None:
        return options
    name, differing = found
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in differing.items()]
    return replace(options, model=replace(model, model=name, override=(*words, *model.override)))


def _fitting(options: Input, source: Source) -> Input:
    """Settings with the size of images that weights were trained with, unless there is one; squares for squares."""
    size = source.input_size
    exact = isinstance(size, ExactSize)
    if options.image_size is not None or size in (None, Size()):
        return replace(options, square=options.square or exact)
    assert size is not None
    if size.short != size.longest:
        what = "side of the square" if exact else "longest side"
        raise ValueError(
            f"image-size: {source.path} was trained on images of {size.short} and {size.longest} pixels, which no "
            f"--image-size stands for; name the {what}"
        )
    return replace(options, image_size=size.longest, square=exact)


def _family(source: Source) -> Any:
    return (source.config or {}).get("family")


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
    path = local_or_downloaded(path)
    if is_of_transformers(path) or (options.model == TRANSFORMERS and (path / CONFIG_FILE).is_file()):
        model = TransformersDetector.from_pretrained(path)
        described = model.require_config().to_dict()
        return Source(path, "huggingface", model.state_dict(), described, model.categories, model.input_size)
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
    size = from_plain(TrainOptions, state["options"]).input.size
    model = build_any_model(state, path, size, attn_backend=backend).to(device)
    return Built(model, backend, state.get("backbone_trained", bool(config.get("backbone_frozen"))))
