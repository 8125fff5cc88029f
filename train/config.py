"""The settings of a training run: plain dataclasses, which are its flags, and are stored in its checkpoints.

Defaults are the published ones of Deformable DETR (Zhu et al. 2021, section 5 and the official code).
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from ..models.images import Size

T = TypeVar("T")

AttnBackend = Literal["auto", "reference", "cuda", "triton"]


@dataclass(frozen=True)
class Source:
    """Where the images are. --data DIR stands for DIR/train2017, DIR/val2017 and DIR/annotations/instances_*.json."""

    data: Path | None = None
    """A folder laid out as COCO's."""
    train_images: Path | None = None
    """Folder of the training images, instead of --data's."""
    train_annotations: Path | None = None
    """Annotation file of the training images, instead of --data's."""
    val_images: Path | None = None
    """Folder of the validation images, instead of --data's."""
    val_annotations: Path | None = None
    """Annotation file of the validation images, instead of --data's."""

    def split(self, name: Literal["train", "val"]) -> tuple[Path, Path]:
        """Image folder and annotation file of a split; both exist.

        Raises:
            ValueError: not named.
            FileNotFoundError: named, and not there.
        """
        images, annotations = getattr(self, f"{name}_images"), getattr(self, f"{name}_annotations")
        if self.data is None and (images is None or annotations is None):
            raise ValueError(
                f"no {name} data: name a COCO-format folder with --data DIR, "
                f"or both --{name}-images DIR and --{name}-annotations FILE"
            )
        if self.data is not None:
            if not self.data.is_dir():
                raise FileNotFoundError(f"data directory {self.data} does not exist")
            images = images or self.data / f"{name}2017"
            annotations = annotations or self.data / "annotations" / f"instances_{name}2017.json"
        if not annotations.is_file():
            raise FileNotFoundError(f"annotation file {annotations} does not exist")
        if not images.is_dir():
            raise FileNotFoundError(f"image folder {images} does not exist")
        return images, annotations


@dataclass(frozen=True)
class Input:
    """How images are read and augmented."""

    image_size: int | None = None
    """Longest side in pixels, for small images or quick runs; published sizes (800, at most 1333) when not given."""
    augment: Literal["official", "flip", "none"] = "official"
    """official: flip, random sizes, random crops; flip: flip alone; none: every image as it is."""
    workers: int = 2
    """Processes that decode images; 0 decodes in the training process."""
    cache: bool = False
    """Keep decoded images in memory (sets --workers 0); for data sets of some thousand small images."""
    overfit: int = 0
    """Train and evaluate on the first N training images, not augmented, 20 passes an epoch: does it learn at all?"""

    def __post_init__(self) -> None:
        _at_least("image-size", self.image_size, 32)
        _at_least("workers", self.workers, 0)
        _at_least("overfit", self.overfit, 0)

    @property
    def size(self) -> Size:
        """What evaluation resizes to, and training's sizes derive from."""
        return Size() if self.image_size is None else Size(self.image_size, self.image_size)


@dataclass(frozen=True)
class Model:
    """What is trained."""

    model: str = "deformable_detr_r50"
    """A name of msdeform.list_models()."""
    override: tuple[str, ...] = ()
    """Changes to the model's own settings, such as num_queries=100 dec_layers=3."""
    attn_backend: AttnBackend = "auto"
    """Implementation of the deformable attention; chosen once, printed and recorded."""
    backbone_weights: str = "auto"
    """imagenet (downloads), none, or a state dict file; auto: imagenet for published models, else none."""
    init_from: Path | None = None
    """Start from the weights of this checkpoint; heads for other classes are made anew."""


@dataclass(frozen=True)
class Optim:
    """How it is trained."""

    epochs: int = 50
    """Passes over the training images."""
    max_steps: int | None = None
    """Stop after so many optimizer steps, even within an epoch."""
    batch_size: int = 32
    """Images to an optimizer step (the published total)."""
    micro_batch: int = 4
    """Images on the device at once; gradients add up to those of a whole batch, exactly."""
    lr: float = 2e-4
    """Learning rate of the transformer and the heads."""
    lr_backbone: float | None = None
    """Of the backbone: lr / 10 with trained weights, lr without, when not given."""
    lr_factor_offsets: float = 0.1
    """Of sampling offsets and reference points, relative to lr."""
    weight_decay: float = 1e-4
    """AdamW's, on all parameters."""
    clip: float = 0.1
    """Largest norm of the gradient; 0 for no limit."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """step: a tenth from --lr-drop on; cosine: to zero over the run."""
    lr_drop: int = 40
    """Epoch of the step."""
    warmup_steps: int = 0
    """Steps over which the rates rise linearly from zero."""
    seed: int = 42
    """Of weights, order, augmentation and dropout."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16 runs the model under autocast, losses in float32; fp64 is for comparing backends."""
    max_nonfinite: int = 5
    """Give up after so many steps in a row whose loss or gradient was not finite; each is skipped."""

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "batch_size", "micro_batch", "max_nonfinite"):
            _at_least(name.replace("_", "-"), getattr(self, name), 1)
        for name in ("warmup_steps", "clip", "lr", "seed"):
            _at_least(name.replace("_", "-"), getattr(self, name), 0)


@dataclass(frozen=True)
class Run:
    """What is kept of it."""

    out: Path | None = None
    """Folder for checkpoints and logs; runs/MODEL-DATE when not given."""
    resume: Path | None = None
    """Go on from a checkpoint, or from the newest whole one of a run's folder, with that run's settings."""
    eval: bool = False
    """With --resume: evaluate and stop."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, beside the one after each epoch."""
    keep: int = 2
    """Newest checkpoints to keep."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    log_every: int = 10
    """Steps between lines in log.jsonl and points in TensorBoard."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    tensorboard: bool = True
    """Write TensorBoard files beside log.jsonl."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep", "eval_every", "log_every"):
            _at_least(name.replace("_", "-"), getattr(self, name), 1)
        if self.eval and self.resume is None:
            raise ValueError("eval: expected --resume CHECKPOINT beside it, to say what to evaluate")


@dataclass(frozen=True)
class TrainOptions:
    """Train a detector on a COCO-format data set."""

    source: Source = field(default_factory=Source)
    input: Input = field(default_factory=Input)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def choose_device(name: str) -> torch.device:
    """``auto``, or a device that is there.

    Raises:
        ValueError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def to_plain(options: Any) -> dict[str, Any]:
    """A (nested) dataclass as plain values, for JSON and checkpoints."""
    return {
        f.name: to_plain(value) if dataclasses.is_dataclass(value) else _plain(value)
        for f in dataclasses.fields(options)
        for value in [getattr(options, f.name)]
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def from_plain(kind: type[T], plain: dict[str, Any]) -> T:
    """The dataclass that to_plain was given; fields it lacks take their defaults, fields unknown are ignored."""
    hints = typing.get_type_hints(kind)
    values = {}
    for f in dataclasses.fields(typing.cast(Any, kind)):
        if f.name in plain:
            values[f.name] = _typed(hints[f.name], plain[f.name])
    return kind(**values)


def _typed(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value)
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is not None and Path in choices:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
