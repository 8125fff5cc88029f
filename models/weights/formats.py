"""Weights in the formats that exist in the world, read under the official names, and written.

========== ============================================================================ =========================
format     on disk                                                                      written by
========== ============================================================================ =========================
official   a .pth file: ``{model, args, ...}``, or a bare state dict                      the official code
huggingface a folder: config.json, preprocessor_config.json, model.safetensors; or        transformers
           model.safetensors only
msdeform   a folder: config.json and model.safetensors                                  `save_msdeform`, the Hub
training   a .pt file: weights, configuration, classes and all that a run needs to       ``msdeform train``
           resume; or a run's folder, for its best
========== ============================================================================ =========================

Ours is a folder, not one file with its configuration inside, because the Hub, transformers and their tools all look
for exactly these two names, and the configuration stays readable and editable without a program.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...common.files import BEST, atomic_file, checkpoints_in, read_json, told_of
from ...common.text import printable, shown
from ..inference.image_size import ExactSize, Size, size_of
from .files import is_state_dict, read_file
from .huggingface import family_of, from_huggingface, is_huggingface, to_huggingface
from .huggingface_config import (
    config_from_args,
    config_from_huggingface,
    config_to_huggingface,
    hf_backbone,
    preprocesses_otherwise,
    preprocessor_of,
    read_size,
    size_from_args,
    size_of_preprocessor,
)

T = TypeVar("T")

FORMAT = "msdeform-model-1"
TRAINING_FORMAT = "msdeform-checkpoint-1"

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# how images are resized and normalised, in the form that transformers' image processors read
PREPROCESSOR_FILE = "preprocessor_config.json"

# what a profiler left in the official code's checkpoints
_COUNTERS = ("total_params", "total_ops")
# transformers' norms are constants, but the published files keep some of the counts of those they were made from
_HF_COUNTERS = (*_COUNTERS, "num_batches_tracked")


_MOST_CLASSES = 1_000_000  # of which names are kept


@dataclass(frozen=True)
class Source:
    """Weights as they were found."""

    path: Path
    format: str
    """``official``, ``huggingface``, ``msdeform`` or ``training``."""
    weights: dict[str, Tensor]
    """By official names; on the CPU."""
    config: dict[str, Any] | None = None
    """The detector's, as `Config.from_dict` takes it, where the source has one."""
    categories: list[str] | None = None
    """Names of the classes, where the source has them."""
    input_size: Size | None = None
    """What images were resized to in training, where the source says so."""
    ignored: list[str] = field(default_factory=list)
    """Names in the source that are no weights."""
    training: dict[str, Any] | None = None
    """The whole checkpoint, of ``msdeform train``."""
    thresholds: list[float] | None = None
    """The minimum score of each class, by label, where the source has them."""

    @property
    def family(self) -> str:
        return family_of(self.weights)

    @property
    def backbone_frozen(self) -> bool:
        """Are the batch norms constants? Those that learn count their batches."""
        return not any(name.endswith("num_batches_tracked") for name in self.weights)


def read_source(path: Path) -> Source:
    """Reads weights in any of the formats; what format they are in is told by their content.

    Of a run's folder its ``best.pt``, or, where there is none that is whole, its newest checkpoint; ``Source.path``
    says which.

    Raises:
        FileNotFoundError: there is no such file, or nothing in the folder.
        ValueError: it is damaged, or no detector's; one sentence, which names the file.
    """
    if path.is_dir():
        if (path / WEIGHTS_FILE).is_file():
            return _read_safetensors(path / WEIGHTS_FILE, path)
        best = path / BEST
        if best.is_file():
            try:
                return read_source(best)
            except ValueError as error:
                if not checkpoints_in(path):
                    raise
                print(f"passing over {best}: {error}", file=sys.stderr)
        if checkpoints_in(path):
            return newest_whole(path, read_source)
        raise FileNotFoundError(
            f"{path}: expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, or a run's with {BEST} or "
            "checkpoint-*.pt, found neither"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path, path)
    return source_of(read_file(path), path)


def newest_whole(folder: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of the newest checkpoint of a run that is not damaged; older ones than that aren't opened.

    Raises FileNotFoundError for a folder without any, ValueError if ``read`` refuses them all.
    """
    files = checkpoints_in(folder)
    if not files:
        raise FileNotFoundError(f"{folder} holds no checkpoint (checkpoint-*.pt)")
    for file in reversed(files):
        try:
            return read(file)
        except ValueError as error:
            print(f"passing over {file}: {error}", file=sys.stderr)
    raise ValueError(f"no checkpoint in {folder} is whole")


def source_of(state: Any, path: Path) -> Source:
    """What `torch.load` gave, as a source; ``path`` is where it came from. Raises ValueError as `read_source`."""
    if isinstance(state, dict) and state.get("format") == TRAINING_FORMAT:
        with told_of(path, "checkpoint"):
            return _of_run(state, path)
    content = state.get("model", state) if isinstance(state, dict) else None
    if not is_state_dict(content):
        raise ValueError(f"checkpoint {path}: expected a state dict, bare or under the key 'model'")
    args = state.get("args")
    with told_of(path, "checkpoint"):
        return _source(content, path, None, vars(args) if isinstance(args, argparse.Namespace) else None)


def _of_run(state: dict[str, Any], path: Path) -> Source:
    """Raises ValueError, or nearly anything where it is damaged."""
    categories = [printable(str(category["name"])) for category in state.get("categories", [])]
    config = {"family": "deformable_detr", **state["model_config"]}  # the first versions had one family
    options = state.get("options", {})
    images = options.get("input", options)  # the first versions had no groups
    longest = images.get("image_size")
    if longest is not None and not (isinstance(longest, int) and longest >= 1):
        raise ValueError(f"{path}: image_size: expected a number of pixels, got {shown(longest)}")
    size = size_of(longest, square=images.get("square", False))
    average = state.get("ema")  # what the run evaluated, if it kept one
    weights = state["model"] if average is None else average["weights"]
    if not is_state_dict(weights):
        raise ValueError(f"checkpoint {path}: expected a state dict under the key 'model'")
    thresholds = _thresholds(state, path)
    return Source(path, "training", weights, config, categories or None, size, [], state, thresholds)


def config_of_source(source: Source, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a source's detector: its own, or else ``config``, with the classes that the weights have.

    Raises ValueError if there is neither.
    """
    found = source.config if source.config is not None else config
    if found is None:
        raise ValueError(f"{source.path} says nothing of its {source.family}'s structure; name the model it is of")
    return {**found, "num_classes": _classes(source.weights, found), "backbone_frozen": source.backbone_frozen}


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Raises ValueError naming the first of the weights that a model, whose state dict is `own`, has otherwise."""
    differing = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    odd = sorted(differing) + sorted(own.keys() ^ weights.keys())
    if odd:
        name = odd[0]
        expected, came = (tuple(side[name].shape) if name in side else "nothing" for side in (own, weights))
        raise ValueError(
            f"{path} is a checkpoint of another model: {len(odd)} parameters differ, the first {printable(name)}: "
            f"expected {expected}, got {came}"
        )


def save_official(
    path: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    categories: list[str] | None = None,
    input_size: Size | None = None,
    thresholds: list[float] | None = None,
) -> None:
    """Writes what the official code's ``--resume`` and ``torch.hub`` read, whole or not at all.

    The official code has no fields for names of classes, the size of images and minimum scores; it leaves unknown
    fields of ``args`` alone, so they stand there as ``categories``, ``input_size``, (shortest, at most longest) in
    pixels, and ``thresholds``.
    """
    args = {name: value for name, value in (config or {}).items() if name != "family"}
    if categories is not None:
        args["categories"] = list(categories)
    if input_size is not None:
        args["input_size"] = [input_size.short, input_size.longest]
    if thresholds is not None:
        args["thresholds"] = list(thresholds)
    state: dict[str, Any] = {"model": _plain(weights)}
    if args:
        state["args"] = argparse.Namespace(**args)
    with atomic_file(path) as file:
        torch.save(state, file)


def save_huggingface(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    categories: list[str] | None = None,
    input_size: Size | None = None,
) -> None:
    """Writes what transformers' ``from_pretrained`` reads. Raises ValueError for a detector that it does not have.

    Where `input_size` is known, ``AutoImageProcessor.from_pretrained`` finds it, and the normalisation, there as well.
    """
    theirs = config_to_huggingface(config, categories)
    renamed = to_huggingface(weights, backbone=hf_backbone(config["backbone"]))
    _save_folder(folder, renamed, theirs, None if input_size is None else preprocessor_of(config["family"], input_size))


def save_transformers(folder: Path, source: Source) -> None:
    """Writes a run's detector of transformers as transformers' ``from_pretrained`` and image processors read it."""
    described = source.config or {}
    config = dict(described["config"])
    if source.categories is not None:
        config["id2label"] = {str(label): name for label, name in enumerate(source.categories)}
        config["label2id"] = {name: label for label, name in enumerate(source.categories)}
    size = source.input_size or Size()
    exact = isinstance(size, ExactSize)
    preprocessor = {
        "image_processor_type": described["processor"],
        "do_resize": True,
        "size": {"height": size.height, "width": size.width}
        if isinstance(size, ExactSize)
        else {"shortest_edge": size.short, "longest_edge": size.longest},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": described["mean"],
        "image_std": described["std"],
        "do_pad": not exact,
    }
    weights = {name.removeprefix("model."): tensor for name, tensor in source.weights.items()}
    _save_folder(folder, weights, config, preprocessor)


def save_msdeform(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    categories: list[str] | None = None,
    input_size: Size | None = None,
    thresholds: list[float] | None = None,
) -> None:
    """Writes weights by official names, and the configuration that rebuilds their detector."""
    size = None if input_size is None else [input_size.short, input_size.longest]
    described = {"format": FORMAT, "model": dict(config), "categories": categories, "input_size": size}
    _save_folder(folder, dict(weights), described if thresholds is None else {**described, "thresholds": thresholds})


def save_thresholds(source: Source, thresholds: list[float]) -> None:
    """Writes the minimum score of each class, by label, into a checkpoint of a run or a folder of ours.

    Raises ValueError for weights in another format, which have no place for them.
    """
    check_takes_thresholds(source)
    if source.training is not None:
        with atomic_file(source.path) as file:
            torch.save({**source.training, "thresholds": thresholds}, file)
        return
    path = source.path / CONFIG_FILE if source.path.is_dir() else source.path.with_name(CONFIG_FILE)
    with atomic_file(path) as file:
        file.write((json.dumps({**read_json(path), "thresholds": thresholds}, indent=2) + "\n").encode())


def check_takes_thresholds(source: Source) -> None:
    """Raises ValueError as `save_thresholds`."""
    if source.format not in ("training", "msdeform"):
        raise ValueError(
            f"save_thresholds: expected a run's checkpoint or a folder that msdeform convert --to msdeform wrote, "
            f"got {source.path}, which is of the {source.format} format"
        )


def _save_folder(
    folder: Path, weights: dict[str, Tensor], config: dict[str, Any], preprocessor: dict[str, Any] | None = None
) -> None:
    from safetensors.torch import save

    # without its configuration a folder is not taken for a model, so none is half of one
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    (folder / PREPROCESSOR_FILE).unlink(missing_ok=True)  # of the weights that were there before
    with atomic_file(folder / WEIGHTS_FILE) as file:
        file.write(save(_plain(weights), metadata={"format": "pt"}))
    for name, content in ((PREPROCESSOR_FILE, preprocessor), (CONFIG_FILE, config)):
        if content is not None:
            with atomic_file(folder / name) as file:
                file.write((json.dumps(content, indent=2) + "\n").encode())


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own memory: safetensors takes no two names of one, and no part of a larger one."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}


def _read_safetensors(file: Path, path: Path) -> Source:
    weights = read_file(file)
    # of a lone file, its neighbour counts only where both have the names that belong together
    beside = file.with_name(CONFIG_FILE)
    config = _read_config(beside) if file.name == WEIGHTS_FILE and beside.is_file() else None
    with told_of(file, "checkpoint"):
        source = _source(weights, path, config, None)
    described = file.with_name(PREPROCESSOR_FILE)
    if source.format != "huggingface" or config is None or not described.is_file():
        return source
    preprocessor = read_json(described)
    if preprocesses_otherwise(preprocessor):
        print(f"{described}: images are normalised otherwise than with ImageNet's mean and deviation", file=sys.stderr)
    try:
        size = size_of_preprocessor(preprocessor)
    except ValueError as error:
        raise ValueError(f"{described}: {error}") from None
    if size is None and preprocessor.get("size") is not None and preprocessor.get("do_resize", True):
        shape = f"size {preprocessor['size']} changes the shape of images"
        print(f"{described}: {shape}, which these detectors do not do", file=sys.stderr)
    return replace(source, input_size=size)


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    ours = isinstance(config, dict) and config.get("format") == FORMAT and isinstance(config.get("model"), dict)
    if not ours and not (isinstance(config, dict) and "model_type" in config):
        raise ValueError(
            f"{file}: expected a configuration with format {FORMAT!r}, or of transformers with a model_type"
        )
    return config


def _source(
    content: dict[str, Tensor], path: Path, config: dict[str, Any] | None, args: dict[str, Any] | None
) -> Source:
    """Weights by whichever names, and the config.json or command line beside them."""
    counters = _HF_COUNTERS if is_huggingface(content) else _COUNTERS
    ignored = sorted(name for name in content if name.endswith(counters))
    weights = {name: tensor for name, tensor in content.items() if not name.endswith(counters)}
    if config is not None and config.get("format") == FORMAT:
        try:
            fitted = read_size(config.get("input_size"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        thresholds, names = _thresholds(config, path), _names(config.get("categories"))
        return Source(path, "msdeform", weights, config["model"], names, fitted, ignored, thresholds=thresholds)
    try:
        # before the names, by which no other architecture's weights are told
        ours = None if config is None else config_from_huggingface(config)
        if is_huggingface(weights):
            refine = None if config is None else config.get("with_box_refine")
            weights = from_huggingface(weights, with_box_refine=refine)
            return Source(path, "huggingface", weights, ours, _labels(config), ignored=ignored)
        if config is not None:
            raise ValueError(f"{CONFIG_FILE} is of transformers, but the weights' names are not")
        family = family_of(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {printable(str(error)[:500])}") from None
    if args is None:
        return Source(path, "official", weights, ignored=ignored)
    categories = _names(args.get("categories"))
    known, size = config_from_args(args, family), size_from_args(args)
    try:
        thresholds = _thresholds(args, path)
    except ValueError:  # other programs may have a field of this name too
        thresholds = None
    return Source(path, "official", weights, known, categories, size, ignored, thresholds=thresholds)


def _names(names: Any) -> list[str] | None:
    """Names of classes beside weights, in one line each; None for what is no list of them."""
    return [printable(str(name)) for name in names] if isinstance(names, list) else None


def _labels(config: dict[str, Any] | None) -> list[str] | None:
    """Names of the classes out of a config.json of transformers, by label, unless they are its placeholders."""
    labels = {int(key): printable(str(name)) for key, name in ((config or {}).get("id2label") or {}).items()}
    if not labels or all(name == f"LABEL_{label}" for label, name in labels.items()):
        return None
    if not 0 <= min(labels) <= max(labels) < _MOST_CLASSES:
        raise ValueError(f"id2label: expected labels from 0 to {_MOST_CLASSES - 1}, got {min(labels)} to {max(labels)}")
    # a label without a name has its number's
    return [labels.get(label, str(label)) for label in range(max(labels) + 1)]


def _thresholds(described: Mapping[str, Any], path: Path) -> list[float] | None:
    """The minimum score of each class beside weights, where there are any. Raises ValueError for what is none."""
    found = described.get("thresholds")
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(one, int | float) and 0 <= one <= 1 for one in found):
        raise ValueError(f"{path}: thresholds: expected a number from 0 to 1 for each class, got {shown(found)}")
    return [float(one) for one in found]


def _classes(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """How many classes the head has; one more row of a softmax stands for no object."""
    family = str(config.get("family"))
    rows = {
        "deformable_detr": "class_embed.0.weight",
        "detr": "class_embed.weight",
        "detr_demo": "linear_class.weight",
        "faster_rcnn": "detector.roi_heads.box_predictor.cls_score.weight",
    }.get(family)
    if rows is None:
        raise ValueError(f"family: expected one that is known here, got {family!r:.100}")
    if rows not in weights or not weights[rows].dim():
        raise ValueError(f"weights: expected {rows} of {family}, not found")
    own = family == "deformable_detr" or config.get("focal") is True
    return len(weights[rows]) - (0 if own else 1)
