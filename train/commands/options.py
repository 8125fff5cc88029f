"""The options of the commands of this folder, beside those of training (`config`). Nothing here needs PyTorch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ...common.options import (
    Above,
    AtLeast,
    Between,
    DeviceOption,
    NotNegative,
    Options,
    Positional,
    Positive,
    ProgressOption,
    ReadFile,
    ReadPath,
    Reads,
    Share,
    WriteFile,
    WriteFolder,
)
from ...kernels.diagnostics.options import AttnBackend
from ...models.catalog import ModelName
from ...models.options import DetectorOptions, LoadOptions
from ..config.options import PLOT_SUFFIXES, Input, Source


@dataclass(frozen=True)
class PredictOptions(ProgressOption, DetectorOptions):
    """Detect objects in images, videos and webcams."""

    images: Annotated[tuple[Path, ...], Positional("IMAGE"), Reads("path", patterns=True)] = ()
    """Image and video files, folders of them with their subfolders, and quoted patterns such as "photos/*.jpg"."""
    confidence: Share | None = None
    """Minimum score of a detection that is kept; when not given, that of its class in the checkpoint, where training or
    msdeform eval --save-thresholds wrote it, or 0.5."""
    out: WriteFolder | None = None
    """Folder for the pictures and results; predictions/ in the run's folder by default, or here for weights of no
    run."""
    format: tuple[Literal["coco", "yolo", "voc", "csv"], ...] = ("coco",)
    """Of the results, one or several: predictions.json, labels/, annotations/ and predictions.csv. images.json, which
    lists all images, is always written."""
    tiles: Positive | None = None
    """Also look into overlapping squares of this many pixels, for small objects in large images."""
    overlap: Annotated[float, Between(0, 0.9, "a share")] = 0.2
    """Share of a tile's side that it has in common with the next, at least."""
    flip: bool = False
    """Also look at mirror images, and merge what is found."""
    nms: Share | None = None
    """Of two detections of a class that overlap by more than this, keep the surer alone; 0.7 is customary."""
    batch_size: Positive = 1
    """Images, tiles or frames at once, from as many files as it takes; those of different sizes are padded, which moves
    scores a little."""
    top_k: Positive = 100
    """Most detections of an image."""
    pictures: bool = True
    """Write each image with its detections."""
    video: bool = True
    """Write each video with its detections, as NAME.mp4 without sound."""
    every: Positive = 1
    """Of videos, only each N-th frame."""
    webcam: NotNegative | None = None
    """The webcam of this number, 0 for the first, until Ctrl-C."""
    track: bool = False
    """Number each object through a video, by ByteTrack; needs the packages supervision and trackers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images and self.webcam is None:
            raise ValueError("images: expected at least one image, video or folder, or --webcam N, got none")


@dataclass(frozen=True)
class EvalOptions(ProgressOption, LoadOptions):
    """COCO metrics of a checkpoint, or of detections in a file: thresholds, errors, intervals, and a comparison.

    A run is evaluated on the validation images of its own data where no other are named."""

    checkpoint: ReadPath | None = None
    """A run's checkpoint, or its folder for its best; or official, Hugging Face's or converted weights."""
    results: ReadFile | None = None
    """Instead of a checkpoint: detections in COCO's results format, such as --out or predict wrote."""
    compare: Annotated[tuple[Path, ...], Reads()] = ()
    """Instead of both: A and B, each a checkpoint, a run's folder or detections in a .json file; which one is better,
    if any."""
    source: Source = field(default_factory=Source)
    batch_size: Positive = 1
    """1 is the published protocol; larger is faster, and padding then moves AP in the third digit."""
    limit: Positive | None = None
    """Only the first N images, for a quick look; the numbers are then not the data set's."""
    nms: Share | None = None
    """Of two detections of a class that overlap by more than this, count the surer alone; 0.7 is customary."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 run the model under autocast."""
    coco_eval: Literal["faster", "pycocotools"] = "faster"
    """faster-coco-eval, or pycocotools to check it."""
    workers: NotNegative = 2
    """Processes that decode images."""
    per_class: bool = False
    """Also print AP, AP50 and AR100 of every class, its threshold, and the errors at that."""
    intervals: bool = False
    """Also 95% intervals, from 1000 resamples of the images; --report and --compare always have them."""
    report: WriteFile | None = None
    """Also write one HTML page: thresholds, curves, confusion matrix, calibration, and the worst images with why."""
    pictures: WriteFile | None = None
    """Also draw four images, evenly spaced in the data, with ground truth beside detections; a name in .png or .jpg."""
    worst: NotNegative = 20
    """Of the images with most errors, how many --report and --json have."""
    save_thresholds: bool = False
    """Write the best threshold of every class into the checkpoint, for msdeform predict."""
    out: WriteFile | None = None
    """Also write the detections to this JSON file, in COCO's results format."""
    json: WriteFile | None = None
    """Also write all numbers, those of every class too, and where they come from, to this JSON file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [self.checkpoint is not None, self.results is not None, bool(self.compare)]
        if given.count(True) != 1:
            raise ValueError(
                "checkpoint: expected --checkpoint PATH, or --results FILE, or --compare A B, and only one"
            )
        if self.compare:
            for name in ("out", "report", "pictures", "save_thresholds"):
                if getattr(self, name):
                    raise ValueError(f"{name}: expected --checkpoint with it, got --compare")
        if self.pictures is not None and self.pictures.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"pictures: expected a name that ends in .png or .jpg, got {self.pictures}")
        if self.save_thresholds and self.checkpoint is None:
            raise ValueError("save_thresholds: expected a --checkpoint to write them to, got --results")
        if self.save_thresholds and self.limit is not None:
            raise ValueError(f"save_thresholds: expected all images, got --limit {self.limit}")


@dataclass(frozen=True)
class PlotOptions(Options):
    """Draw the curves of runs, and print what came of them."""

    runs: Annotated[tuple[ReadPath, ...], Positional("RUN")]
    """Folders of runs."""
    out: WriteFile | None = None
    """Picture to write, a png, svg or pdf; plot.png in the run's folder, or in the one that holds all runs, if not
    given."""
    x: Literal["step", "epoch", "hours"] = "step"
    """What the curves are drawn over. hours: those that the run took, without the time it stood still."""
    smooth: Positive | None = None
    """Logged steps to take the running mean of; 1 for none, a twentieth of each run when not given."""
    terms: str | None = None
    """Draw these instead, names in the log with commas between them: loss,loss_giou_0,AP,AP/cat,class_error."""
    group: Literal["seed"] | None = None
    """seed: runs that differ in nothing else become one line, their mean, in a band from the least to the most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.suffix.lower() not in PLOT_SUFFIXES:
            raise ValueError(f"out: expected a name that ends in {', '.join(PLOT_SUFFIXES)}, got {self.out}")


@dataclass(frozen=True)
class ShowOptions(ProgressOption):
    """Draw images of a data set as training sees them, and tell what is in it."""

    out: WriteFolder | None = None
    """Folder for images.png, statistics.png and statistics.json, and gaussians.npz with --gaussian; without it, one of
    the data set's name in runs/data."""
    source: Source = field(default_factory=Source)
    input: Input = field(default_factory=Input)
    split: Literal["train", "val"] = "train"
    """Which images; those of val are not augmented."""
    count: Positive = 12
    """Images to draw."""
    repeat: Positive = 1
    """Times to draw each, augmented anew."""
    seed: NotNegative = 42
    """Which images, and their augmentation."""
    gaussian: bool = False
    """Beside each image, draw the Gaussian target map of its boxes, in the colours of their classes."""
    sigma: Annotated[float, Above(0, "a part of a box's size, such as 0.25,")] = 0.25
    """Of those Gaussians: the standard deviation along x as part of a box's width, along y of its height."""


@dataclass(frozen=True)
class ReplayOptions(DeviceOption):
    """Do a step again whose loss or gradient was not finite, and say where that began."""

    batch: Annotated[ReadFile, Positional("BATCH")]
    """A nonfinite-step-*.pt of a run's folder."""
    attn_backend: Literal["same"] | AttnBackend = "same"
    """same: as in the run, or auto where that does not run here; another tells whether the implementation matters."""
    precision: Literal["same", "fp32", "bf16", "fp16", "fp64"] = "same"
    """same: as in the run; another tells whether the precision matters."""
    out: WriteFolder | None = None
    """Also draw the batch's images with their boxes to this folder."""


@dataclass(frozen=True)
class DemoOptions(DeviceOption):
    """Make data, train a small detector, evaluate it and draw what it finds."""

    out: WriteFolder = Path("runs/demo")
    """Folder for everything; data made by an earlier run is used again."""
    train_images: Positive = 1500
    """Images to train on."""
    val_images: Positive = 150
    """Held-out images to evaluate on."""
    epochs: Positive = 7
    """Passes over the training images."""
    size: Annotated[int, AtLeast(64, "pixels")] = 96
    """Width and height of an image, in pixels."""
    seed: NotNegative = 0
    """Of data and training."""
    attn_backend: AttnBackend = "auto"
    """Implementation of the deformable attention."""
    model: ModelName = "deformable_detr_mini"
    """A name of msdeform.list_models()."""
