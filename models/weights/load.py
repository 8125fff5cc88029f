"""What detector weights in any format are of, and a model started from those of them that fit."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...common.text import printable, shown
from ..catalog import MODELS, TRANSFORMERS, config_of
from ..configs import Config
from ..inference.image_size import Size
from .formats import Source, config_of_source

# parameters that may be made anew, each with what its shape depends on
HEADS = {
    "class_embed": "classes",
    "query_embed": "numbers of queries",
    "linear_class": "classes",
    "query_pos": "numbers of queries",
    "box_predictor": "classes",
    "enc_score_head": "classes",
    # of transformers, for denoising and for LW-DETR's queries
    "denoising_class_embed": "classes",
    "enc_out_class_embed": "classes",
}

# what happens to images where nothing beside the weights tells their size
_PUBLISHED = Size()
WITHOUT_SIZE = (
    f"without --image-size, detecting resizes them to {_PUBLISHED.short} pixels, at most {_PUBLISHED.longest}"
)

# not of the model that a name stands for: the classes are the data's, and norms follow the weights
_OF_THE_DATA = ("num_classes", "backbone_frozen")
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

    input_size: Size | None = None
    """What images were resized to when the weights were trained, where the file says so."""

    note: str | None = None
    """What is worth knowing of the weights."""

    def sentences(self) -> list[str]:
        lines = [f"{len(self.loaded)} tensors loaded from {self.source} ({self.format} format)"]
        for head, differing in HEADS.items():
            count = sum(re.search(rf"\b{head}\b", name) is not None for name in self.fresh)
            if count:
                lines.append(f"new: {head} ({count} tensors), because the {differing} differ")
        unused = Counter(name.split(".")[0] for name in set(self.ignored) - set(self.fresh))
        if unused:
            lines.append(
                f"not used: {', '.join(f'{part} ({count} tensors)' for part, count in sorted(unused.items()))}"
            )
        return lines if self.note is None else [*lines, self.note]


def settle_config(source: Source, name: str | None = None) -> Config:
    """The configuration of a source's detector, of its own or by `name`; raises ValueError as `zoo.load_model`."""
    if (source.config or {}).get("family") == TRANSFORMERS:
        raise ValueError(
            f"{source.path} is a detector of transformers; "
            "msdeform.integrations.detectors.detector.TransformersDetector.from_pretrained loads it"
        )
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
    config = config_of_source(source, None if named is None else named.to_dict())
    # the size of one that was named is no claim of the file's
    own = config_that_fits(config, source.weights if source.config is not None else None, source.path)
    if named is not None:
        for field in dataclasses.fields(named):
            expected, came = getattr(named, field.name), getattr(own, field.name)
            if field.name not in _FREE and expected != came:
                raise ValueError(
                    f"{source.path} is not of {name}: {field.name}: expected {expected!r}, got {came!r} "
                    "by the configuration beside the weights"
                )
    return own


def config_that_fits(described: Mapping[str, Any], weights: Mapping[str, Tensor] | None, path: Path) -> Config:
    """The configuration of a detector that is not larger than its weights.

    The detector is made before its parameters are held against the weights, and may take any memory otherwise. Raises
    ValueError for one that is larger, and as `Config.from_dict`, whose mistakes are the file's.
    """
    try:
        config = Config.from_dict(described)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {printable(str(error)[:500])}") from None
    if weights is None:
        return config
    least, held = config.least_parameters, sum(tensor.numel() for tensor in weights.values())
    if least > held:
        raise ValueError(
            f"{path} is not what its configuration says: that is of a detector of {least} parameters or more, "
            f"and the weights are {held}"
        )
    return config


def nearest_model(source: Source) -> tuple[str, dict[str, Any]] | None:
    """The name of `list_models` whose detector a source's differs least from, and its settings that differ.

    Of a run, the name that it was given, if there still is one. Settings of the data, as the number of classes, are
    left out. None where nothing beside the weights tells their structure.
    """
    if source.config is None or source.config.keys() == {"family"}:  # a command line of other things
        return None
    own = config_that_fits(config_of_source(source), source.weights, source.path)
    named = None if source.training is None else source.training.get("model_name")
    fields = [field.name for field in dataclasses.fields(own) if field.name not in _OF_THE_DATA]
    found = {
        name: {field: getattr(own, field) for field in fields if getattr(own, field) != getattr(config, field)}
        for name, config in MODELS.items()
        if type(config) is type(own)
    }
    if named in found:
        return named, found[named]
    return min(found.items(), key=lambda item: len(item[1]), default=None)


def start_from(model: nn.Module, source: Source) -> Start:
    """Loads weights as a start for other data; leaves heads that do not fit as they are.

    But where every class has a score of its own (``model.focal``), each new class begins as the mean of the old ones,
    which tells objects from what is none.

    Raises ValueError if anything but heads differs.
    """
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
    begun = _mean_classes(weights, own, fresh) if getattr(model, "focal", False) else {}
    model.load_state_dict(fitting | begun, strict=False)
    ignored = sorted([*source.ignored, *(weights.keys() - fitting.keys())])
    return Start(source.path, source.format, sorted(fitting), fresh, ignored, source.input_size)


def _mean_classes(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], fresh: list[str]) -> dict[str, Tensor]:
    """Heads that score other classes than the weights': a row for each, the mean of the weights' rows."""
    scoring = [name for name in fresh if re.search(r"(?<!denoising_)class_embed\b|enc_score_head", name)]
    pairs = {name: (weights[name], own[name]) for name in scoring if name in weights}
    return {
        name: old.float().mean(dim=0, keepdim=True).expand_as(new).to(new.dtype)
        for name, (old, new) in pairs.items()
        if old.shape[1:] == new.shape[1:]
    }


def _check_family(source: Source, family: Any, who: str) -> None:
    if source.family != family:
        raise ValueError(f"{source.path} holds the weights of a {source.family}; {who} a {shown(family)}")
