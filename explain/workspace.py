"""What a command that explains works on: a model, its data, and the folder for what is written, beside the model's run.

Text tables that several commands write are made here, too.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..common.device import choose_device
from ..common.files import check_writable
from ..integrations.detectors.detector import TransformersDetector, is_of_transformers
from ..models.families.detector import Detector
from ..models.inference.image_size import Size
from ..models.options import DetectorOptions
from ..train.config.options import TrainOptions
from ..train.data.annotations import Category
from ..train.data.dataset import CocoDetection
from ..train.engine.build import settle_backend
from ..train.engine.checkpoint import Trained, load_trained
from ..train.evaluation.detect import data_of
from .options import AnyDetectorOptions, DataOptions, of_transformers


def trained_model(options: DetectorOptions) -> Trained:
    """The checkpoint's model, one of ours, on its device. Errors are those of `load_trained`, and for others."""
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    model: object = trained.model
    if isinstance(model, TransformersDetector):
        raise ValueError(
            f"checkpoint: {options.checkpoint} is a detector of transformers, which msdeform explain takes, and this "
            "command does not"
        )
    return trained


def any_trained_model(options: AnyDetectorOptions) -> Trained:
    """The model that the options name, ours or of transformers, on its device.

    Errors are those of `load_trained` and of `TransformersDetector.from_pretrained`.
    """
    device, checkpoint = choose_device(options.device), options.checkpoint
    if checkpoint is not None:
        try:
            return load_trained(checkpoint, device, options.attn_backend, options.model)
        except ValueError as error:
            # of an architecture of ours, with something that ours does not have
            if of_transformers(checkpoint) and checkpoint.is_dir() and not is_of_transformers(checkpoint):
                raise ValueError(f"{error}; --model {checkpoint} takes it as transformers has it") from None
            raise
    assert options.model is not None
    backend = settle_backend(device, options.attn_backend)
    model = TransformersDetector.from_pretrained(options.model, attn_backend=backend).to(device)
    categories = [Category(label, name) for label, name in enumerate(model.categories or [])]
    # of a detector, explanations ask what `Predictor` has
    return Trained(cast(Detector, model), Path(options.model).name, categories, TrainOptions(), backend, device, None)


@dataclass(frozen=True, eq=False)
class DetectorOnData:
    """A model, and the annotated images that it is measured on."""

    trained: Trained
    data: CocoDetection
    size: Size
    """What images are resized to."""
    category_ids: Sequence[int | None]
    """The data's, of the model's labels; None for a label that the data lacks."""
    of_images: int
    """How many the data set has, of which `data` may be the first."""
    about: dict[str, Any]
    """What all this is, for reports."""

    def __str__(self) -> str:
        """In a phrase, for the first line that is printed."""
        trained, count = self.trained, len(self.data)
        step = "" if trained.step is None else f" at step {trained.step}"
        some = f"{count} images" if count == self.of_images else f"the first {count} of {self.of_images} images alone"
        return f"{trained.name}{step}, {trained.attn_backend} on {trained.device}, {some}"


def with_data(trained: Trained, options: DataOptions) -> DetectorOnData:
    """The model with the validation images that the options name. Errors are those of `data_of`."""
    data, size, ids = data_of(trained, options.source, options.image_size, progress=options.progress)
    of_images = len(data)
    data.rows = data.rows[: options.limit]
    about = {
        "checkpoint": str(getattr(options, "checkpoint", None) or options.model),
        "model": trained.name,
        "step": trained.step,
        "data": str(data.annotations.path),
        "images": len(data),
        "of_images": of_images,
        "image_size": [size.short, size.longest],
    }
    return DetectorOnData(trained, data, size, ids, of_images, about)


def default_folder(checkpoint: Path | None, name: str) -> Path:
    """``name`` in the folder of the run that a checkpoint is of, or in the current folder for other weights."""
    if checkpoint is None:
        return Path(name)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return folder / name if (folder / "log.jsonl").is_file() else Path(name)


def checked(folder: Path) -> Path:
    """The folder, not made yet. Raises ValueError where it cannot be written or made."""
    try:
        check_writable(folder, "folder")
    except ValueError as error:
        raise ValueError(f"out: {error}") from None
    return folder


def digest_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 of all weights and their names, in hexadecimal digits."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def place_for(image: Path, out: Path | None, checkpoint: Path | None, model: str | None = None) -> tuple[Path, str]:
    """The folder for what is said of an image, and what the names of its files begin with.

    Of an image x.jpg those are ``explanations/x`` in the run's folder, and x. Where another image of that name has been
    explained there, or the same in another model, it is x-2, and so on: neither overwrites the other. Raises ValueError
    where the folder cannot be written to.
    """
    own, number, name = (digest_of(image), str(checkpoint or model)), 1, image.stem
    while True:
        folder = out or default_folder(checkpoint, "explanations") / name
        try:
            about = json.loads((folder / f"{name}-explanation.json").read_text(encoding="utf-8"))
            explained = about["image_sha256"], about["checkpoint"]
        except (OSError, ValueError, KeyError, TypeError):  # none is there, or it does not say of which image
            explained = own
        if explained == own:
            return checked(folder), name
        number += 1
        name = f"{image.stem}-{number}"


def aligned(rows: Sequence[Sequence[str]], align: str = "<") -> list[str]:
    """Rows of cells as lines with columns of one width: the first to the left, others as `align`, "<" or ">", says."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{align if place else '<'}{widths[place]}}" for place, cell in enumerate(row)).rstrip()
        for row in rows
    ]
