"""Checkpoints: one file holds all that a run needs to go on bit for bit, and all that predicting needs.

A file is written beside its place, synced, and renamed, so that a kill leaves the one before it whole. Everything in
it is plain values and tensors: it loads with ``weights_only=True`` and so runs no code.
"""

import dataclasses
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.detector import Detector
from ..models.formats import TRAINING_FORMAT, WEIGHTS_FILE, Source, check_fit, read_source, source_of
from .coco import Category
from .config import TrainOptions, from_plain
from .files import atomic_file

# parameters that depend on the data's classes and the number of queries, and may be made anew by --init-from
HEADS = ("class_embed", "query_embed")


def random_state() -> dict[str, Any]:
    """The state of every global generator, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # libraries may draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """What random_state returned, put back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached)
    )


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` to ``path``, whole or not at all."""
    with atomic_file(path) as file:
        torch.save({"format": TRAINING_FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; of a folder, the newest whole one in it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a checkpoint of ours, or is damaged.
    """
    if not path.is_dir():
        return _load_file(path)
    files = checkpoints_in(path)
    if not files:
        raise FileNotFoundError(f"{path} holds no checkpoint (checkpoint-*.pt)")
    for file in reversed(files):
        try:
            return _load_file(file)
        except ValueError as error:
            print(f"passing over {file}: {error}", file=sys.stderr)
    raise ValueError(f"no checkpoint in {path} is whole")


def _load_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading a damaged file raises nearly anything
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint: {_first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != TRAINING_FORMAT:
        raise ValueError(f"{path} was not written by `msdeform train`; expected a file with format {TRAINING_FORMAT!r}")
    return state


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"))


def remove_old(folder: Path, keep: int) -> None:
    """Leaves the newest ``keep`` checkpoints of a run."""
    for file in checkpoints_in(folder)[:-keep]:
        file.unlink(missing_ok=True)


@dataclass
class Trained:
    """A model out of a checkpoint, ready to detect."""

    model: Detector
    name: str
    categories: list[Category]
    options: TrainOptions
    attn_backend: str
    """Resolved for ``device``."""
    device: torch.device
    step: int


def load_trained(path: Path, device: torch.device, attn_backend: str = "auto") -> Trained:
    """Rebuilds the model of a checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: as load_checkpoint.
        BackendUnavailable: the named backend cannot run on ``device``.
    """
    from .build import rebuild_model

    state = load_checkpoint(path)
    model, backend = rebuild_model(state["model_config"], device, attn_backend)
    load_model_state(model, state["model"], path)
    categories = [Category(**category) for category in state["categories"]]
    options = from_plain(TrainOptions, state["options"])
    model.categories, model.input_size = [category.name for category in categories], options.input.size
    return Trained(
        model=model.eval(),
        name=state["model_name"],
        categories=categories,
        options=options,
        attn_backend=backend,
        device=device,
        step=state["step"],
    )


def load_model_state(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Loads weights that must fit exactly.

    Raises:
        ValueError: they are another model's.
    """
    check_fit(model.state_dict(), weights, path)
    model.load_state_dict(weights)


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


def init_from(model: nn.Module, path: Path) -> Start:
    """Loads weights as a start for other data; leaves heads that do not fit as they are.

    Args:
        path: weights in any format that `formats.read_source` reads, or a run's folder for its newest checkpoint.

    Raises:
        FileNotFoundError, ValueError: no such file; or anything but heads differs.
    """
    source = read_any(path)
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
            f"{path} is a checkpoint of another model: {len(wrong)} parameters beside the heads do not fit, "
            f"the first {name}: expected {tuple(own[name].shape)}, got {came}"
        )
    model.load_state_dict(fitting, strict=False)
    ignored = sorted([*source.ignored, *(weights.keys() - fitting.keys())])
    return Start(path, source.format, sorted(fitting), fresh, ignored)


def read_any(path: Path) -> Source:
    """Weights in any format, and of a run's folder its newest whole checkpoint.

    Raises:
        FileNotFoundError, ValueError: as `formats.read_source` and `load_checkpoint`.
    """
    if path.is_dir() and checkpoints_in(path) and not (path / WEIGHTS_FILE).exists():
        return source_of(load_checkpoint(path), path)
    return read_source(path)


def category_list(categories: list[Category]) -> list[dict[str, Any]]:
    """Categories as plain values; a model's label is an index into this list."""
    return [dataclasses.asdict(category) for category in categories]
