"""Checkpoints: one file holds all that a run needs to go on bit for bit, and all that predicting needs.

A file is written beside its place, synced, and renamed, so that a kill leaves the one before it whole. Everything in
it is plain values and tensors: it loads with ``weights_only=True`` and so runs no code.
"""

import os
import random
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ...common.files import BEST, atomic_file, told_of
from ...integrations.detectors.detector import TransformersDetector, is_of_transformers
from ...models.export.runtime import ExportedDetector, is_exported
from ...models.families.detector import Detector
from ...models.weights.files import is_state_dict, read_file, tensors_in
from ...models.weights.formats import TRAINING_FORMAT, checkpoints_in, newest_whole, read_source
from ...models.weights.load import WITHOUT_SIZE
from ..config.options import SETTINGS_HEAD, TrainOptions, from_plain
from ..data.annotations import Category
from .build import load_any_model, settle_backend


def random_state() -> dict[str, Any]:
    """The state of every global generator, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    _, keys, *rest = np.random.get_state()  # noqa: NPY002  # libraries may draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """What random_state returned, put back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` to ``path``, whole or not at all."""
    with atomic_file(path) as file:
        torch.save({"format": TRAINING_FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; of a folder, the newest whole one in it. Raises as `read_saved`."""
    if path.is_dir():
        return newest_whole(path, load_checkpoint)
    state = read_saved(path, "checkpoint", TRAINING_FORMAT)
    kinds = {"model_config": dict, "options": dict, "categories": list, "model_name": str, "step": int}
    odd = [name for name, kind in kinds.items() if not isinstance(state.get(name, kind()), kind)]
    odd += ["options"] if any(True for _ in tensors_in(state.get("options", {}))) else []
    if odd or not is_state_dict(state.get("model", {})):
        raise ValueError(f"checkpoint {path} is damaged: {(*odd, 'model')[0]} is not of the type that a run writes")
    return state


def read_saved(path: Path, kind: str, file_format: str) -> dict[str, Any]:
    """What a run saved, as a ``kind`` of file.

    Raises FileNotFoundError where there is none, ValueError for one that is damaged or of another format.
    """
    state = read_file(path, kind)
    if not isinstance(state, dict) or state.get("format") != file_format:
        raise ValueError(f"{path} was not written by `msdeform train`; expected a file with format {file_format!r}")
    return state


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return folder / f"checkpoint-{step:08d}.pt"


def run_folder(options: TrainOptions) -> Path:
    """Where a run writes: ``--out``, the folder of what it resumes, or a new one named by model and time."""
    run = options.run
    if run.resume is not None:
        return run.out or (run.resume if run.resume.is_dir() else run.resume.parent)
    return run.out or Path("runs") / f"{options.model.model}-{datetime.now():%Y%m%d-%H%M%S}"


def refuse_another_run(options: TrainOptions, out: Path, step: int) -> None:
    """Raises ValueError where `out` holds another run's checkpoints, or later ones than the step to resume from.

    So it does where files of a run's names are there that no run wrote.
    """
    files, resume = checkpoints_in(out), options.run.resume
    if resume is None:
        if files:
            raise ValueError(f"{out} holds a run already; resume it with --resume {out}, or name another --out")
        for name, begin in (("config.yaml", SETTINGS_HEAD), ("log.jsonl", '{"event": ')):
            file = out / name
            if file.is_file():
                with open(file, encoding="utf-8", errors="replace") as opened:
                    head = opened.read(len(begin))
                if head not in ("", begin):
                    raise ValueError(
                        f"out: {file} would be written over, and was not written by msdeform train; name another --out"
                    )
        return
    if files and not out.samefile(resume if resume.is_dir() else resume.parent):
        raise ValueError(f"{out} holds a run already, and not that of {resume}; name another --out")
    later = [file for file in files if file.name > checkpoint_path(out, step).name]
    if later and resume.is_file():
        raise ValueError(
            f"{resume.name} is not the newest checkpoint of {out}, which holds {later[-1].name} as well; "
            "name another --out, or remove the later ones"
        )
    for file in later:  # damaged, or they would have been taken; by their step they would count as the newest
        os.replace(file, file.with_name(f"damaged-{file.name}"))


def keep_best(checkpoint: Path) -> None:
    """Makes ``best.pt`` beside a checkpoint the same file, which stays when the other name goes."""
    temporary = checkpoint.with_name(f".{BEST}.{os.getpid()}.tmp")
    try:
        try:
            os.link(checkpoint, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(checkpoint, temporary)
        os.replace(temporary, checkpoint.with_name(BEST))
    finally:
        temporary.unlink(missing_ok=True)


@dataclass
class Trained:
    """A model out of a checkpoint, ready to detect."""

    model: Detector
    """Or a `TransformersDetector` or an `ExportedDetector`, which have all that evaluation and prediction ask for."""
    name: str
    categories: list[Category]
    """By label: of a run, its data set's; else numbered as the labels, with the names that are known."""
    options: TrainOptions
    attn_backend: str
    """Resolved for ``device``; of an exported file, the engine that runs it."""
    device: torch.device
    step: int | None
    """Of the run; None for weights that ``msdeform train`` did not write."""


def load_trained(path: Path, device: torch.device, attn_backend: str = "auto", name: str | None = None) -> Trained:
    """Rebuilds the model of a checkpoint in any format (`models.formats`), in evaluation mode.

    Args:
        path: the checkpoint, or a run's folder for its best; stderr then tells which file that is. Of a file of
            ``msdeform export`` (.onnx, .xml, .pt2), what its engine runs on the CPU, whatever the other arguments say.
        device: where the model will be.
        attn_backend: implementation of the deformable attention.
        name: of `list_models`, for weights without a description beside them.

    Raises:
        FileNotFoundError, ValueError: as models.zoo.load_model; a name beside a model of transformers.
        RuntimeError: for a model of transformers, which is not installed.
        BackendUnavailable: the named backend cannot run on ``device``.
    """
    if is_of_transformers(path):
        return _of_transformers(path, device, attn_backend, name)
    if is_exported(path):
        return _of_file(path)
    source = read_source(path)
    if source.path != path:
        print(f"checkpoint: {source.path}", file=sys.stderr)
    if source.input_size is None:
        print(f"{path} does not say to what size images were resized in training: {WITHOUT_SIZE}", file=sys.stderr)
    backend = settle_backend(device, attn_backend)
    model = cast(Detector, load_any_model(source, attn_backend=backend, name=name).to(device))
    state = source.training
    if state is None:
        names = model.categories or [str(label) for label in range(model.require_config().num_classes)]
        categories = [Category(label, own) for label, own in enumerate(names)]
        return Trained(model, name or path.name, categories, TrainOptions(), backend, device, None)
    with told_of(source.path, "checkpoint"):
        categories = [Category(**category) for category in state["categories"]]
        options = from_plain(TrainOptions, state["options"])
        name, step = str(state["model_name"]), state["step"]
    model.categories, model.input_size = [category.name for category in categories], options.input.size
    model.thresholds = source.thresholds
    return Trained(model, name, categories, options, backend, device, step)


def _of_file(path: Path) -> Trained:
    """The detector of a file of ``msdeform export``, which an engine of its own runs on the CPU."""
    model = ExportedDetector(path)
    categories = [Category(label, own) for label, own in enumerate(model.categories or [])]
    detector = cast(Detector, model)
    return Trained(detector, model.kind, categories, TrainOptions(), model.engine, torch.device("cpu"), None)


def _of_transformers(path: Path, device: torch.device, attn_backend: str, name: str | None) -> Trained:
    """The detector of a folder that transformers wrote."""
    if name is not None:
        raise ValueError(f"model: {path} says itself what it is, a model of transformers; leave --model out")
    backend = settle_backend(device, attn_backend)
    model = cast(Detector, TransformersDetector.from_pretrained(path, attn_backend=backend).to(device))
    categories = [Category(label, own) for label, own in enumerate(model.categories or [])]
    return Trained(model, path.name, categories, TrainOptions(), backend, device, None)
