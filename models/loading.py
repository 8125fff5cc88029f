"""Detectors out of weights in any format: rebuilt whole, or started from what fits."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .catalog import MODELS, config_of
from .detector import Detector
from .formats import Source, check_fit, config_of_source, read_source
from .size import Size
from .zoo import build_model, config_from_plain, plain_config

# parameters that depend on the data's classes and the number of queries, and may be made anew
HEADS = ("class_embed", "query_embed", "linear_class", "query_pos", "box_predictor")

# what happens to images where nothing beside the weights tells their size
_PUBLISHED = Size()
WITHOUT_SIZE = (
    f"without --image-size, detecting resizes them to {_PUBLISHED.short} pixels, at most {_PUBLISHED.longest}"
)

# what may differ between weights and the name they are said to be of: none of it decides a parameter of the body
_FREE = ("num_classes", "backbone_frozen", "dropout", "aux_loss")


@dataclass(frozen=True)
class Start:
    """What a model took of weights in another file."""

    source: Path
    format: str
    """``official``, ``huggingface``, ``msdeform`` or ``training``."""
    loaded: list[str]
    fresh: list[str]
    """Parameters that kept their fresh initialisation."""
    ignored: list[str]
    """Names in the file that the model has no use for: other shapes, other parts, no weights at all."""

    def sentences(self) -> list[str]:
        lines = [f"{len(self.loaded)} tensors loaded from {self.source} ({self.format} format)"]
        for what, names in (("initialised anew", self.fresh), ("ignored", self.ignored)):
            if names:
                lines.append(f"{len(names)} {what}: {', '.join(names)}")
        return lines


def load_model(path: str | Path, *, attn_backend: str = "auto", name: str | None = None) -> Detector:
    """A detector out of a checkpoint in any format (`formats`), with its weights and classes, in evaluation mode.

    Args:
        path: an official ``.pth``, a folder or file of Hugging Face's or ours, or a checkpoint of ``msdeform
            train``, or a run's folder for its best.
        attn_backend: the operator's backend, held by every deformable attention.
        name: of `list_models`, the model that the weights are of; needed where they lie alone, without a
            configuration or the official command line beside them, and held against those where there are.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is damaged, of no detector, of another one than `name`, or alone and without a `name`.
    """
    return model_of_source(read_source(Path(path)), attn_backend=attn_backend, name=name)


def model_of_source(source: Source, *, attn_backend: str = "auto", name: str | None = None) -> Detector:
    """`load_model` of weights that are read already; raises ValueError as it does."""
    model = build_model(settle_config(source, name), attn_backend=attn_backend)
    check_fit(model.state_dict(), source.weights, source.path)
    model.load_state_dict(source.weights)
    if source.categories is not None:
        model.categories = list(source.categories)
    model.input_size = source.input_size
    return model.eval()


def settle_config(source: Source, name: str | None = None) -> dict[str, Any]:
    """The configuration of a source's detector, of its own or by `name`; raises ValueError as `load_model`."""
    named = None if name is None else config_of(name)
    if named is not None:
        _check_family(source, named.family, f"{name} is")
    if source.config is not None:
        _check_family(source, source.config.get("family"), "its configuration is of")
    elif named is None:
        fitting = ", ".join(sorted(model for model, config in MODELS.items() if config.family == source.family))
        raise ValueError(
            f"{source.path} says nothing of its {source.family}'s structure; name the model it is of: {fitting}"
        )
    config = config_of_source(source, None if named is None else plain_config(named))
    # values that no detector can have are the source's mistake, and named with it
    try:
        own = config_from_plain(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source.path}: {error}") from None
    if named is not None:
        for field in dataclasses.fields(named):
            expected, came = getattr(named, field.name), getattr(own, field.name)
            if field.name not in _FREE and expected != came:
                raise ValueError(
                    f"{source.path} is not of {name}: {field.name}: expected {expected!r}, got {came!r} "
                    "by the configuration beside the weights"
                )
    return config


def init_from(model: nn.Module, path: Path) -> Start:
    """Loads weights as a start for other data; leaves heads that do not fit as they are.

    Args:
        path: weights in any format that `formats.read_source` reads, or a run's folder for its best checkpoint.

    Raises:
        FileNotFoundError, ValueError: no such file; or anything but heads differs.
    """
    return start_from(model, read_source(path))


def start_from(model: nn.Module, source: Source) -> Start:
    """`init_from` of weights that are read already."""
    weights, own = source.weights, model.state_dict()
    fitting = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    fresh = sorted(own.keys() - fitting.keys())
    # frozen norms count no batches; the count only matters to norms without a momentum, which no model here has
    fresh = [name for name in fresh if not name.endswith("num_batches_tracked")]
    wrong = [name for name in fresh if not any(head in name for head in HEADS)]
    if wrong:
        name = wrong[0]
        came = tuple(weights[name].shape) if name in weights else "nothing"
        raise ValueError(
            f"{source.path} is a checkpoint of another model: {len(wrong)} parameters beside the heads do not fit, "
            f"the first {name}: expected {tuple(own[name].shape)}, got {came}"
        )
    model.load_state_dict(fitting, strict=False)
    ignored = sorted([*source.ignored, *(weights.keys() - fitting.keys())])
    return Start(source.path, source.format, sorted(fitting), fresh, ignored)


def _check_family(source: Source, family: Any, who: str) -> None:
    if source.family != family:
        raise ValueError(f"{source.path} holds the weights of a {source.family}; {who} a {family}")
