"""The settings of a training run: plain dataclasses, which are its flags, and are stored in its checkpoints.

Defaults are the published ones of Deformable DETR (Zhu et al. 2021, section 5 and the official code).
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from ...common.fields import build
from ...common.options import (
    Above,
    AtLeast,
    Between,
    Checked,
    Device,
    Metavar,
    NotNegative,
    Options,
    Positive,
    ReadFile,
    ReadFolder,
    ReadPath,
    Reads,
    Share,
    Word,
    WriteFolder,
)
from ...common.text import shown
from ...kernels.diagnostics.options import AttnBackend
from ...models.catalog import TRANSFORMERS, TrainedName, config_of
from ...models.configs import check_fields
from ...models.inference.image_size import Size, size_of
from ..data.augmentation import options as augmentation
from ..data.layouts import YAML, HeldOut, SplitName, find_split

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
# how a run's config.yaml begins
SETTINGS_HEAD = "# Every setting of this run"

T = TypeVar("T")
# the batch size that is to be found
AUTO = 0
Rate = Annotated[float, AtLeast(0)]


@dataclass(frozen=True)
class Source(Options):
    """Where the images are. --data DIR is in the format of COCO, YOLO or Pascal VOC; which one is found by looking."""

    data: ReadPath | None = None
    """A folder of images with boxes, in any layout of docs/data.md; or a YOLO data.yaml, or a COCO file, in it."""
    train_images: ReadFolder | None = None
    """Folder of the training images, instead of --data's."""
    train_annotations: ReadFile | None = None
    """Annotation file of the training images, instead of --data's."""
    val_images: ReadFolder | None = None
    """Folder of the validation images, instead of --data's."""
    val_annotations: ReadFile | None = None
    """Annotation file of the validation images, instead of --data's."""
    val_share: Share | None = None
    """Where there is one set of images: hold out this share (0.2) for validation, with its share of every class."""
    split_seed: NotNegative = 0
    """Which images --val-share holds out; the same seed, the same images."""
    data_format: Literal["auto", "coco", "voc", "yolo"] = "auto"
    """The format that counts, in a folder that holds several."""

    def split(self, name: SplitName) -> tuple[Path, Path]:
        """A split's files, which exist: the folder that names of images are relative to, and the annotations.

        With ``val_share`` those of the one set that is divided.

        Raises:
            ValueError: not named, or the split is not in --data, or it is and val_share is given.
            FileNotFoundError: named, and not there.
        """
        whole = self.val_share is not None
        if whole and (self.val_images or self.val_annotations):
            raise ValueError("val_share: expected none beside --val-images and --val-annotations")
        name = "train" if whole else name
        images, annotations = getattr(self, f"{name}_images"), getattr(self, f"{name}_annotations")
        both = f"both --{name}-images DIR and --{name}-annotations FILE"
        if images is None or annotations is None:
            if self.data is None:
                raise ValueError(
                    f"no {name} data: name a folder in COCO's, YOLO's or Pascal VOC's format with --data, or {both}"
                )
            kind = None if self.data_format == "auto" else self.data_format
            found = find_split(self.data, name, annotations, data_format=kind, whole=whole and annotations is None)
            if found[1].suffix in YAML and (images or annotations):
                raise ValueError(f"{found[1]} is a YOLO data set: name {both} beside it, or neither")
            images, annotations = images or found[0], annotations or found[1]
        if not annotations.exists():
            raise FileNotFoundError(f"annotation file {annotations} does not exist")
        if not images.is_dir():
            raise FileNotFoundError(f"image folder {images} does not exist")
        return images, annotations

    def held_out(self) -> HeldOut | None:
        """How the one set of images is divided; None where its files say that."""
        return None if self.val_share is None else HeldOut(self.val_share, self.split_seed)

    def divided_as(self, trained: "Source") -> "Source":
        """The same with the share and seed of ``trained`` where none are given here and both name the same data.

        All of ``trained`` where no data are named here.
        """
        if not any(self._paths()):
            return trained
        mine, theirs = ([None if path is None else path.resolve() for path in one._paths()] for one in (self, trained))
        if self.val_share is not None or mine != theirs:
            return self
        return dataclasses.replace(self, val_share=trained.val_share, split_seed=trained.split_seed)

    def _paths(self) -> list[Path | None]:
        return [self.data, self.train_images, self.train_annotations, self.val_images, self.val_annotations]


@dataclass(frozen=True)
class Input(Options):
    """How images are read and augmented."""

    image_size: Annotated[int, AtLeast(32)] | None = None
    """Longest side in pixels, for small images or quick runs; published sizes (800, at most 1333) when not given."""
    augment: Annotated[str, Checked(augmentation.check), Metavar("NAME|FILE")] = "official"
    """official: flip, random sizes, random crops, as published; light: flip, small changes of scale, place and colour;
    turns: light, and turns by 90 degrees; strong: mosaics, crops, strong colours; flip; none; or a .yaml file that
    lists transforms, as docs/augmentation.md explains."""
    square: bool = False
    """Stretch every image to a square of --image-size; models of transformers that are trained on squares ask for it by
    themselves."""
    bad_data: Literal["fatal", "skip"] = "fatal"
    """What an unreadable image or a wrong annotation does: end the run, or be left out and listed once by its id."""
    overfit: NotNegative = 0
    """Train and evaluate on the first N training images, not augmented, 20 passes an epoch: does it learn at all?"""

    def __post_init__(self) -> None:
        # frozen; what a file says is kept, not where it was
        object.__setattr__(self, "augment", augmentation.written_out(self.augment))
        super().__post_init__()
        if self.square and self.image_size is None:
            raise ValueError("square: expected --image-size beside it, the side of the squares, got none")

    @property
    def size(self) -> Size:
        """What evaluation resizes to, and training's sizes derive from."""
        return size_of(self.image_size, square=self.square)


@dataclass(frozen=True)
class Loading(Options):
    """How images get from the disk to the model."""

    workers: NotNegative = 2
    """Processes that decode images, for each process that trains; 0 decodes in the training process."""
    prefetch: Positive = 2
    """Batches that each worker makes ahead."""
    cache_images: Literal["none", "files", "pixels"] = "none"
    """Keep images in memory for the workers: files as on disk, or pixels, decoded; each process keeps its share."""
    bucket: bool = False
    """Batches of images of like shape, wide or tall, so that less of a batch is padding."""


@dataclass(frozen=True)
class Model(Options):
    """What is trained."""

    model: TrainedName = "deformable_detr_r50"
    """A name of msdeform.list_models(); or transformers, for the detector of that library that --init-from names."""
    override: tuple[str, ...] = ()
    """Changes to the model's own settings, such as num_queries=100 dec_layers=3."""
    attn_backend: AttnBackend = "auto"
    """Implementation of the deformable attention; chosen once, printed and recorded."""
    backbone_weights: Annotated[str, Reads("file", ("auto", "imagenet", "none"))] = "auto"
    """imagenet (downloads), none, or a state dict file; auto: imagenet for published models, else none."""
    init_from: Annotated[Path, Reads("path", ("published", "none"), hub=True)] | None = None
    """Start from weights of any format, a run's best, or OWNER/NAME of the Hugging Face Hub, and from their model
    without --model; heads for other classes are made anew; published: the authors' weights, downloaded; none: random
    weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        overrides = parse_overrides(self.override)
        if self.model == TRANSFORMERS:
            if str(self.init_from) in ("None", "none", "published"):
                raise ValueError(
                    "model: transformers stands for the detector of some weights; name them: --init-from FOLDER, or "
                    "OWNER/NAME of the Hugging Face Hub"
                )
            return
        config = config_of(self.model)
        try:
            check_fields(type(config), overrides)
            dataclasses.replace(config, **overrides)
        except ValueError as error:
            raise ValueError(f"override: {shown(error, 1000)}") from None


def parse_overrides(words: tuple[str, ...]) -> dict[str, Any]:
    """``num_queries=100 two_stage=true backbone=resnet18`` as a dictionary; values are JSON, or else text.

    Raises:
        ValueError: a word without ``=``.
    """
    overrides = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"override: expected NAME=VALUE, such as num_queries=100, got {shown(word)!r}")
        try:
            overrides[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            overrides[name] = value
    return overrides


def _check_batch_size(name: str, value: int) -> None:
    if value < AUTO:
        raise ValueError(f"{name}: expected at least 1, or auto, got {value}")


@dataclass(frozen=True)
class Batch(Options):
    """How long, and how many images at a time."""

    epochs: Positive = 50
    """Passes over the training images."""
    max_steps: Positive | None = None
    """Stop after so many optimizer steps, even within an epoch."""
    total_batch_size: Positive = 32
    """Images to an optimizer step, over all processes; the published total."""
    batch_size: Annotated[int, Checked(_check_batch_size), Word("auto", AUTO), Metavar("N|auto")] = 2
    """Images on a device at once, 2 as published; gradients of several such batches add up to the total's, exactly.
    auto, or 0: the most that fit into memory, found by trying before the run, and stored."""
    seed: NotNegative = 42
    """Of weights, order, augmentation and dropout."""


@dataclass(frozen=True)
class Optim(Options):
    """AdamW, and what happens to gradients and weights around it."""

    lr: Rate = 2e-4
    """Learning rate of the transformer and the heads."""
    lr_backbone: Rate | None = None
    """Of the backbone: lr / 10 with trained weights, lr without, when not given."""
    lr_factor_offsets: Rate = 0.1
    """Of sampling offsets and reference points, relative to lr."""
    weight_decay: Rate = 1e-4
    """AdamW's, on all parameters."""
    clip: Rate = 0.1
    """Largest norm of the gradient; 0 for no limit."""
    ema: Annotated[float, Above(0, "a decay such as 0.9997,", below=1)] | None = None
    """Also keep a moving average of the weights, of this decay (0.9997): it is evaluated, and what is loaded later."""


@dataclass(frozen=True)
class Schedule(Options):
    """The learning rates over the run."""

    schedule: Literal["step", "cosine", "constant"] = "step"
    """step: a tenth from --lr-drop on; cosine: to --lr-end over the run."""
    lr_drop: NotNegative = 40
    """Epoch of the step."""
    lr_end: Annotated[float, Between(0, 1, "what is left of the rates")] = 0.0
    """What is left of the rates at the end of cosine, as a factor."""
    warmup_steps: NotNegative = 0
    """Steps over which the rates rise linearly from zero."""


@dataclass(frozen=True)
class Compute(Options):
    """Where it runs, and how."""

    device: Device = "auto"
    """auto (CUDA where there is one; with several processes, each its own), cpu, cuda, cuda:1, ..."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """bf16 and fp16 run the model under autocast, locations and losses in float32; fp64 is for comparing backends."""
    compile: bool = False
    """Compile backbone and transformer with torch.compile; the first steps take minutes."""
    channels_last: bool = False
    """Run the backbone with channels as the last dimension in memory."""
    checkpointing: Literal["none", "encoder", "all"] = "none"
    """Compute activations of the encoder's layers, or of the decoder's too, again in the backward pass: less memory."""
    deterministic: bool = False
    """Only operations that give the same bits in every run; one that cannot says so."""
    sync_bn: bool = False
    """Statistics of batch norms that are not frozen over all processes (CUDA)."""
    dist_backend: Literal["auto", "nccl", "gloo"] = "auto"
    """What processes talk by: NCCL on CUDA, gloo elsewhere."""
    timeout: Annotated[float, Above(0, "minutes")] = 5.0
    """Minutes that processes wait for another before they give up; four times as many at the start and to evaluate."""


@dataclass(frozen=True)
class Run(Options):
    """What is kept of it, and when it ends."""

    out: WriteFolder | None = None
    """Folder for checkpoints and logs; runs/MODEL-DATE when not given."""
    resume: Annotated[Path, Reads("path", ("auto",))] | None = None
    """Go on from a checkpoint, or a run's newest, with its settings; auto: from --out's newest, if it has one."""
    eval: bool = False
    """With --resume: evaluate and stop."""
    checkpoint_every: Positive | None = None
    """Steps between checkpoints, beside the one after each epoch."""
    keep: Positive = 2
    """Newest checkpoints to keep; best.pt, of the highest AP, stays beside them."""
    eval_every: Positive = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    patience: Positive | None = None
    """End after so many evaluations in a row without a higher AP."""
    max_nonfinite: Positive = 5
    """Give up after so many steps in a row whose loss or gradient was not finite; each is skipped."""
    dry_steps: NotNegative = 2
    """Steps on images of the largest size before the run, to estimate its time and memory; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval and self.resume is None:
            raise ValueError("eval: expected --resume CHECKPOINT beside it, to say what to evaluate")


@dataclass(frozen=True)
class Logging(Options):
    """What is shown and logged of it."""

    log_every: Positive = 10
    """Steps between lines in log.jsonl and points in TensorBoard."""
    tensorboard: bool = True
    """Write TensorBoard files beside log.jsonl."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases, if the package wandb is installed."""
    mlflow: str | None = None
    """Also log to this experiment of MLflow, if the package mlflow is installed."""
    pictures: NotNegative = 4
    """Validation images drawn at every evaluation, predictions beside ground truth."""
    progress: bool = True
    """Show a progress bar, and lines where there is no terminal; without it, a run says only what is wrong."""
    profile: NotNegative = 0
    """Profile so many steps after the first three, print where their time goes, write a trace beside the log, stop."""


@dataclass(frozen=True)
class Recipe:
    """Settings to start from, which every other flag changes."""

    preset: str | None = None
    """A published recipe, finetune or debug; --preset list tells them."""
    config: ReadFile | None = None
    """A YAML or TOML file of settings; config.yaml of a run's folder repeats that run."""


@dataclass(frozen=True)
class TrainOptions:
    """Train a detector on data in the format of COCO, YOLO or Pascal VOC.

    Under torchrun or srun every process trains on its share; nothing else is needed."""

    epilog: ClassVar[str] = """examples:
  your own data, from published weights:
      msdeform train --preset finetune --data DIR
  a published recipe on all GPUs of a machine:
      torchrun --nproc-per-node=8 -m msdeform.train --preset r50_deformable_detr --data DIR
  on Slurm, going on by itself after time limits:
      sbatch train/slurm.sbatch --preset r50_deformable_detr --data DIR --out runs/coco
  resume a run that was stopped:
      msdeform train --resume runs/coco
  repeat a run, but for one setting:
      msdeform train --config runs/coco/config.yaml --lr 1e-4
A --config file names its settings as the flags are named. The value None takes a setting back.
docs/training.md explains all of it."""

    recipe: Recipe = field(default_factory=Recipe)
    source: Source = field(default_factory=Source)
    input: Input = field(default_factory=Input)
    loading: Loading = field(default_factory=Loading)
    model: Model = field(default_factory=Model)
    batch: Batch = field(default_factory=Batch)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    compute: Compute = field(default_factory=Compute)
    run: Run = field(default_factory=Run)
    logging: Logging = field(default_factory=Logging)


def to_plain(options: Any) -> dict[str, Any]:
    """A (nested) dataclass as plain values, for JSON and checkpoints: text for paths, lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))


def from_plain(kind: type[T], plain: dict[str, Any]) -> T:
    """The dataclass that to_plain was given; fields it lacks take their defaults, fields unknown are ignored.

    A field is found in whichever group it is, as they have moved between groups.
    """
    flat = dict(flatten(plain))
    if "micro_batch" in flat:  # until the second version of the settings
        flat["total_batch_size"], flat["batch_size"] = flat["batch_size"], flat["micro_batch"]
    if "cache" in flat:
        flat["cache_images"] = "pixels" if flat["cache"] else "none"
    return build(kind, flat)


def merged(options: TrainOptions, settings: dict[str, Any]) -> TrainOptions:
    """``options`` with some settings replaced, by name, whatever their group."""
    return from_plain(TrainOptions, {**dict(flatten(to_plain(options))), **settings})


def with_batch_size(options: TrainOptions, number: int) -> TrainOptions:
    """``options`` with so many images on a device at once."""
    return dataclasses.replace(options, batch=dataclasses.replace(options.batch, batch_size=number))


def flatten(plain: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of all groups, which have no name twice."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from flatten(value)
        else:
            yield name, value
