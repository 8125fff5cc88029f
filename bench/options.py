"""Options of the benchmark's commands, and the names that they take. Nothing here needs PyTorch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from ..cli import COMMANDS
from ..common.options import (
    Bare,
    Metavar,
    Positional,
    ReadFile,
    ReadFolder,
    ReadPath,
    WriteFile,
    WriteFolder,
    Writes,
    at_least,
    between,
    nearest,
)
from ..kernels.diagnostics.options import BACKENDS, Architecture, BackendName, DtypeName
from ..models.catalog import check_model
from .harness.records import RESULTS
from .operator.cases import CASES, Locations
from .static.counts import DECODER, ENCODER, CountedDtype

FunctionName = Literal["ms_deform_attn", "fused_ms_deform_attn", "MSDeformAttn"]
FUNCTIONS: tuple[FunctionName, ...] = get_args(FunctionName)
AloneName = Literal["fused_ms_deform_attn", "ms_deform_attn"]
"""functions without a module around them"""
IMPLEMENTATIONS = (
    *("reference", "triton", "triton-deterministic", "triton-cells", "cuda", "cpu", "deformops", "deformops-fp32acc"),
    *("official", "mmcv", "dcnv4", "transformers", "core", "embedding-bag", "onnxruntime", "openvino"),
    *("reference-compiled", "core-compiled"),
)
"""implementations of the operator, in the order of the tables; the first is the usual baseline"""
CPU_IMPLEMENTATIONS = (
    *("cpu", "reference", "core", "transformers", "deformops", "mmcv", "embedding-bag", "onnxruntime", "openvino"),
)
"""those that run on a CPU, ours first"""
CPU_ONLY_IMPLEMENTATIONS = ("cpu", "embedding-bag", "onnxruntime", "openvino")
"""those that are measured on a CPU alone"""
COMPILED_IMPLEMENTATIONS = tuple(name for name in IMPLEMENTATIONS if name.endswith("-compiled"))
StepDtype = Literal["float32", "bfloat16"]
"""dtypes of a detector's step; bfloat16: autocast"""
STEP_DTYPES: tuple[StepDtype, ...] = get_args(StepDtype)
STEP_OPTIONS = (
    *("baseline", "channels_last", "compile", "checkpointing encoder", "checkpointing all", "accumulation"),
    *("mixed shapes", "mixed shapes, bucket"),
)
"""ways to run a training step"""
CacheName = Literal["none", "files", "pixels"]
TrainingPart = Literal["loading", "memory", "step"]
Counted = Literal["triton", "cuda"]
COUNTED_IMPLEMENTATIONS: tuple[Counted, ...] = get_args(Counted)
COUNTED_CASES = (ENCODER, DECODER)
EXPLAINED_MODELS = ("deformable_detr_r50", "detr_r50")
EXPORTED_MODELS = (
    *("detr_tiny", "detr_mini", "deformable_detr_tiny", "deformable_detr_mini", "detr_demo"),
    *("deformable_detr_r50_two_stage", "deformable_detr_r50", "deformable_detr_r50_refine", "deformable_detr_r50_dc5"),
    *("deformable_detr_r50_single_scale", "deformable_detr_r50_single_scale_dc5"),
    *("detr_r50", "detr_r50_dc5", "detr_r50_dc5_plus"),
)
SEARCHED_CASES = ("encoder-800x1066-b2", "decoder-800x1066")

Name = Annotated[str, Metavar("NAME")]
Count = Annotated[int, Metavar("N")]
Results = tuple[ReadPath, ...]
Rows = Annotated[Path, Writes("path"), Metavar("DIR")]
RecordedIn = Annotated[Path, Writes("folder"), Bare(RESULTS), Metavar("DIR")]


def _known(option: str, what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: {nearest(what, name, known)}")


def _models(option: str, names: Sequence[str]) -> None:
    for name in names:
        check_model(name, option)


def _above_0(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a number above 0, got {value:g}")


def _image(name: str, text: str, example: str) -> None:
    sides = re.fullmatch(r"(\d+)x(\d+)", text)
    if sides is None or min(map(int, sides.groups())) < 32:
        raise ValueError(f"{name}: expected HEIGHTxWIDTH of at least 32 pixels, such as {example}, got {text}")


def _rows(out: Path | None) -> None:
    """Rows go to a folder, in which a file is named after day and device, or to a file ``*.jsonl``."""
    if out is not None and out.is_file() and out.suffix != ".jsonl":
        raise ValueError(f"out: expected a folder, got the file {out}")
    if out is not None and out.is_dir() and out.suffix == ".jsonl":
        raise ValueError(f"out: expected a folder, or a file that ends in .jsonl, got the folder {out}")


@dataclass(frozen=True)
class CpuOptions:
    """Time the operator's implementations on a CPU, all of them in turn, with one thread and with more.

    Without --cases and --backends, encoders of other image areas are timed with the backend cpu alone, too.
    """

    cases: tuple[Name, ...] = ()
    """Some of the cases by name; those of a CPU when not given."""
    backends: tuple[Name, ...] = ()
    """Some of the implementations by name, or MODULE:FUNCTION of yours; all that run on a CPU when not given."""
    dtypes: tuple[DtypeName, ...] = ("float32", "bfloat16")
    """Dtypes of value."""
    functions: tuple[AloneName, ...] = ("fused_ms_deform_attn",)
    """Functions to time; the fused one computes locations and softmax, too."""
    threads: tuple[Count, ...] = ()
    """Numbers of threads, one after the other; 1 and PyTorch's own number when not given."""
    seconds: float = 2.0
    """About how long all implementations together take turns, for a direction and a number of threads, in seconds."""
    rounds: Count = 3
    """Least rounds of turns, whatever time they take."""
    limit: float = 120.0
    """Seconds after which an implementation that does not answer is stopped."""
    out: Rows | None = None
    """Folder for the rows."""
    again: bool = False
    """Measure cells that are recorded already, too."""

    def __post_init__(self) -> None:
        _known("cases", "case", self.cases, list(CASES))
        _known("backends", "backend", [name for name in self.backends if ":" not in name], IMPLEMENTATIONS)
        for count in self.threads:
            at_least("threads", count, 1)
        at_least("seconds", self.seconds, 0)
        at_least("rounds", self.rounds, 2)
        _above_0("limit", self.limit)
        _rows(self.out)


@dataclass(frozen=True)
class CpuCodeOptions:
    """Count the instructions that the CPU kernels spend on a point, in their machine code for this processor.

    Of the fused function with four levels of four points, on the usual way: what is rare is not followed.
    """

    channels: tuple[Count, ...] = (16, 32, 64)
    """Channels of a head."""
    dtypes: tuple[StepDtype, ...] = ("float32", "bfloat16")
    """Dtypes of value."""

    def __post_init__(self) -> None:
        for count in self.channels:
            between("channels", count, 1, 256)


@dataclass(frozen=True)
class FirstCallOptions:
    """Time the first call of the operator on a CPU in a new process, beside its second.

    What was compiled before and lies on the disk is used, as in any process. Importing PyTorch and msdeform comes
    before the first call, and has columns of its own.
    """

    case: Name = "encoder-200x266"
    """Inputs by name."""
    backends: tuple[BackendName, ...] = ()
    """Backends of the operator; those that run on a CPU when not given."""
    dtypes: tuple[DtypeName, ...] = ("float32",)
    """Dtypes of value."""
    times: Count = 3
    """New processes of each; the median counts."""
    out: Rows | None = None
    """Folder for the rows."""

    def __post_init__(self) -> None:
        _known("case", "case", [self.case], list(CASES))
        at_least("times", self.times, 1)
        _rows(self.out)


@dataclass(frozen=True)
class VerifyCompiledOptions:
    """Check the kernels as compiled for a GPU, executed on this machine's CPU.

    Each Triton kernel, both functions, both backwards and every dtype, in a minute or two; the tests in
    ``tests/kernels/compiled`` do more. Every instruction of the PTX that Triton makes is executed, and every access to
    memory checked; the step from PTX to machine code and concurrency are a device's to show.
    """

    arch: Architecture = "sm_90"
    """Compute capability of the GPU that is compiled for, such as sm_90."""
    dtype: DtypeName | None = None
    """Dtype of value; all when not given."""


@dataclass(frozen=True)
class OperatorsOptions:
    """Time the operator's implementations, ours and others', after checking that they are right."""

    cases: tuple[Name, ...] = ()
    """Some of the cases by name; those that suit the machine when not given."""
    backends: tuple[Name, ...] = ()
    """Some of the implementations by name, or MODULE:FUNCTION of yours; all when not given."""
    baseline: Name = "reference"
    """What the others alternate with."""
    locations: tuple[Locations, ...] = ("grid",)
    """Where points are sampled."""
    dtypes: tuple[DtypeName, ...] = ("float32", "bfloat16")
    """Dtypes of value."""
    functions: tuple[FunctionName, ...] = FUNCTIONS
    """Functions to time."""
    quick: bool = False
    """Small shapes; the default where there is no GPU."""
    compiled: bool = False
    """torch.compile of reference and core, too."""
    seconds: float = 0.3
    """About how long each measurement lasts, in seconds."""
    limit: float = 120.0
    """Seconds after which an implementation is stopped; compiling for a CPU takes minutes."""
    threads: Count | None = None
    """Threads of a CPU; PyTorch's own number when not given."""
    out: Rows | None = None
    """Folder for the rows; bench/results when not given, on a CPU and with --quick none."""
    again: bool = False
    """Measure cells that are recorded already, too."""

    def __post_init__(self) -> None:
        _known("cases", "case", self.cases, list(CASES))
        for option, names in (("backends", self.backends), ("baseline", (self.baseline,))):
            _known(option, "backend", [name for name in names if ":" not in name], IMPLEMENTATIONS)
        at_least("seconds", self.seconds, 0)
        _above_0("limit", self.limit)
        at_least("threads", self.threads, 1)
        _rows(self.out)


@dataclass(frozen=True)
class CompareOptions:
    """What became slower or faster from A to B: two commits, machines or backends."""

    before: Annotated[str, Positional("A")]
    """A commit by the first letters of its hash, a machine by a part of its name, or a backend."""
    after: Annotated[str, Positional("B")]
    """Another of the same kind."""
    results: Results = (RESULTS,)
    """Files and folders of recorded rows."""
    threshold: float = 0.05
    """Relative change of a time that matters."""

    def __post_init__(self) -> None:
        at_least("threshold", self.threshold, 0)


@dataclass(frozen=True)
class DispatchOptions:
    """Microseconds of the host for one call of the Triton backend, in stages, on any machine."""

    rounds: Count = 600
    """How often the stages take turns."""
    calls: Count = 3
    """Calls of a stage in its turn."""
    out: RecordedIn | None = None
    """Append the rows there; to bench/results without a value."""

    def __post_init__(self) -> None:
        at_least("rounds", self.rounds, 1)
        at_least("calls", self.calls, 1)


@dataclass(frozen=True)
class ExplainOptions:
    """What an explanation costs beside the model's own forward and backward pass."""

    models: tuple[Name, ...] = EXPLAINED_MODELS
    """Detectors with attention, of msdeform.list_models()."""
    images: tuple[Annotated[str, Metavar("HxW")], ...] = ("800x1333",)
    """Height and width of the image, in pixels."""
    backends: tuple[BackendName, ...] = ()
    """Backends of the operator; on a CPU what auto takes when not given, on a GPU all of its own."""
    times: Count = 3
    """Passes of each, after one to warm up."""
    quick: bool = False
    """Each once: does the command work?"""
    minutes: float = 9.0
    """Minutes after which nothing begins."""
    out: Rows | None = None
    """Folder for the rows."""
    again: bool = False
    """Measure cells that are recorded already, too."""

    def __post_init__(self) -> None:
        _models("models", self.models)
        for model in self.models:
            if model.startswith("fasterrcnn"):
                raise ValueError(f"models: expected a DETR, which has attention to explain, got {model}")
        for image in self.images:
            _image("images", image, "800x1333")
        at_least("times", self.times, 1)
        at_least("minutes", self.minutes, 0)
        _rows(self.out)


@dataclass(frozen=True)
class ExportsOptions:
    """Run exported detectors at every boundary of padding: how far do they differ from the models?"""

    models: tuple[Name, ...] = EXPORTED_MODELS
    """Detectors that take a padding mask, of msdeform.list_models()."""
    images: tuple[Annotated[str, Metavar("HxW")], ...] = ("96x128", "160x224", "250x333")
    """Height and width of the images, in pixels."""
    minutes: float = 9.0
    """Minutes after which nothing begins."""
    out: Rows | None = None
    """Folder for the rows."""
    again: bool = False
    """Measure what is recorded already, too."""

    def __post_init__(self) -> None:
        _models("models", self.models)
        for model in self.models:
            if model.startswith("fasterrcnn"):
                raise ValueError(f"models: expected a DETR, which takes a padding mask, got {model}")
        for image in self.images:
            _image("images", image, "160x224")
        at_least("minutes", self.minutes, 0)
        _rows(self.out)


@dataclass(frozen=True)
class InstructionsOptions:
    """Count what the compiled kernels execute for one (query, head); no GPU needed."""

    arch: Architecture = "90"
    """Compute capability of the GPU that is compiled for, times ten."""
    cases: tuple[Name, ...] = COUNTED_CASES
    """Inputs by name."""
    dtypes: tuple[CountedDtype, ...] = get_args(CountedDtype)
    """Dtypes of value."""
    implementations: tuple[Counted, ...] = COUNTED_IMPLEMENTATIONS
    """Which of ours to count."""
    deformops: ReadFolder | None = None
    """Count deformops' Triton kernels instead: the folder that holds the package, unpacked."""
    official: ReadFile | None = None
    """Count the official kernels instead: Deformable DETR's ms_deform_im2col_cuda.cuh."""
    out: RecordedIn | None = None
    """Append the rows there; to bench/results without a value."""

    def __post_init__(self) -> None:
        _known("cases", "case", self.cases, COUNTED_CASES)
        if self.deformops is not None and self.deformops.is_dir() and not (self.deformops / "deformops").is_dir():
            raise ValueError(f"deformops: expected a folder with the package in it, got {self.deformops}")


@dataclass(frozen=True)
class ModelOptions:
    """What should bound each kernel on an H200, from counts of its execution and moved bytes."""

    results: Results = (RESULTS,)
    """Files and folders of recorded rows."""


@dataclass(frozen=True)
class RenderOptions:
    """Every table and plot of the documentation, drawn anew from the recorded rows."""

    check: bool = False
    """Change nothing; status 1 if something is not up to date."""
    root: ReadFolder = RESULTS.parent.parent
    """Folder of README.md and docs/."""
    results: Results = (RESULTS,)
    """Files and folders of recorded rows."""

    def __post_init__(self) -> None:
        if self.root.is_dir() and not (self.root / "README.md").is_file():
            raise ValueError(f"root: expected a checkout, with README.md and docs/, got {self.root}")


@dataclass(frozen=True)
class RooflineOptions:
    """Recorded speeds under what the device could do, drawn."""

    results: Results = (RESULTS,)
    """Files and folders of recorded rows."""
    out: WriteFile = Path("roofline.svg")
    """SVG file to write."""


@dataclass(frozen=True)
class SeedsOptions:
    """A real training run for every backend and seed: do the backends' APs agree?

    Runs that were stopped resume when the same command is given again.
    """

    model: Name | None = None
    """Detector; deformable_detr_r50 on a GPU and deformable_detr_mini on a CPU when not given."""
    backends: tuple[BackendName, ...] = BACKENDS
    """Backends of the operator; those that cannot run here are left out."""
    seeds: tuple[Count, ...] = (0, 1, 2)
    """Seeds of weights, order and augmentation."""
    data: ReadPath | None = None
    """Data set to train on; a synthetic one when not given."""
    images: Count | None = None
    """Images of a synthetic data set, to train on."""
    image_size: Annotated[int | None, Metavar("PIXELS")] = None
    """Longest side; of synthetic images, both."""
    epochs: Count | None = None
    """Epochs of a run."""
    batch: Count | None = None
    """Images to a step."""
    lr: Annotated[float | None, Metavar("RATE")] = None
    """Learning rate."""
    precision: Literal["fp32", "bf16"] | None = None
    """Numbers that a run computes with."""
    quick: bool = False
    """A tiny detector for seconds: does the command work?"""
    minutes: float = 9.0
    """Minutes after which the run under way is stopped."""
    runs: WriteFolder = Path("runs/seeds")
    """Folder for data and runs."""
    out: Rows | None = None
    """Folder for the rows."""

    def __post_init__(self) -> None:
        if self.model is not None:
            _models("model", [self.model])
        for seed in self.seeds:
            at_least("seeds", seed, 0)
        for name in ("images", "epochs", "batch"):
            at_least(name, getattr(self, name), 1)
        at_least("image_size", self.image_size, 64, "pixels")
        _above_0("lr", self.lr)
        at_least("minutes", self.minutes, 0)
        _rows(self.out)


@dataclass(frozen=True)
class StartupOptions:
    """CPU time of every command before it does anything: ``--help``, a typo, an option out of range."""

    commands: tuple[Annotated[str, Metavar("COMMAND")], ...] = ()
    """Some of the commands by name, one of two words in quotes; all when not given."""
    times: Count = 5
    """Runs of each, after one to warm up; the median counts."""
    out: Rows | None = None
    """Folder for the rows."""

    def __post_init__(self) -> None:
        _known("commands", "command", self.commands, list(COMMANDS))
        at_least("times", self.times, 1)
        _rows(self.out)


@dataclass(frozen=True)
class TrainingOptions:
    """How fast images are loaded, what a training step is made of, and what settings change."""

    parts: tuple[TrainingPart, ...] = get_args(TrainingPart)
    """What to measure: images a second of the loader, memory of its workers, stages of a training step."""
    data: ReadPath | None = None
    """Data set to load; synthetic images when not given."""
    workers: tuple[Count, ...] = (0, 1, 2, 4)
    """Numbers of worker processes."""
    caches: tuple[CacheName, ...] = get_args(CacheName)
    """What the loader keeps in memory."""
    seconds: float = 5.0
    """Seconds of each loader."""
    model: Name | None = None
    """Detector; deformable_detr_r50 on a GPU and deformable_detr_tiny on a CPU when not given."""
    options: tuple[Name, ...] = ()
    """Ways to run a step, by name; on a CPU all but compile when not given."""
    backends: tuple[BackendName, ...] = ()
    """Backends of the operator; on a CPU what auto takes when not given, on a GPU all of its own."""
    dtypes: tuple[StepDtype, ...] = STEP_DTYPES
    """Numbers that a step computes with; bfloat16: autocast."""
    batch: tuple[Count, ...] = ()
    """Images to a pass; on a CPU 2 when not given, else 2 and 4."""
    image: Annotated[str | None, Metavar("HxW")] = None
    """Height and width of an image of a step, in pixels; 800x1066 on a GPU and 128x160 on a CPU when not given."""
    quick: bool = False
    """A few steps of each: does the command work?"""
    minutes: float = 9.0
    """Minutes after which nothing begins."""
    out: Rows | None = None
    """Folder for the rows."""
    again: bool = False
    """Measure cells that are recorded already, too."""

    def __post_init__(self) -> None:
        for count in self.workers:
            at_least("workers", count, 0)
        _above_0("seconds", self.seconds)
        if self.model is not None:
            _models("model", [self.model])
        _known("options", "option", self.options, STEP_OPTIONS)
        for count in self.batch:
            at_least("batch", count, 1)
        if self.image is not None:
            _image("image", self.image, "800x1066")
        at_least("minutes", self.minutes, 0)
        _rows(self.out)


@dataclass(frozen=True)
class TableOptions:
    """Published numbers of the detectors, and ours beside them.

    On a CPU, where detectors take seconds an image, speeds are those of a reduced form unless --no-reduced is said.
    """

    flops: bool = False
    """Parameters, and multiply-adds of an image."""
    speed: bool = False
    """Images a second, forward and end to end."""
    training: bool = False
    """Images a second of training steps."""
    models: tuple[Name, ...] = ()
    """Detectors of msdeform.list_models(); the published ones when not given."""
    backends: tuple[BackendName, ...] = BACKENDS
    """Backends of the operator."""
    dtypes: tuple[StepDtype, ...] = STEP_DTYPES
    """Numbers that are computed with."""
    batch: tuple[Count, ...] = ()
    """Images to a batch; 1 and 4, in training 2 and 4 when not given."""
    compiled: bool = False
    """Under torch.compile, too."""
    reduced: bool | None = None
    """A tiny detector, a small image, which is no result of the method; the default on a CPU."""
    out: Rows | None = None
    """Folder for the rows."""
    again: bool = False
    """Measure cells that are recorded already, too."""

    def __post_init__(self) -> None:
        if self.flops + self.speed + self.training != 1:
            raise ValueError("expected one table to print, --flops, --speed or --training")
        for count in self.batch:
            at_least("batch", count, 1)
        _models("models", self.models)
        _rows(self.out)


@dataclass(frozen=True)
class SearchOptions:
    """The launch parameters of the Triton kernels, side by side, on a GPU."""

    cases: tuple[Name, ...] = SEARCHED_CASES
    """Cases by name."""
    dtypes: tuple[DtypeName, ...] = ("float32", "bfloat16")
    """Dtypes of value."""
    bands: bool = False
    """Only rows of a band of the forward's queries."""
    walks: bool = False
    """Only points of a walk of the sorted backward."""
    seconds: float = 0.5
    """About how long the choices of a case take turns, in seconds."""
    out: Rows | None = None
    """Folder, or file that ends in .jsonl, for the rows; bench/results when not given."""

    def __post_init__(self) -> None:
        _known("cases", "case", self.cases, list(CASES))
        at_least("seconds", self.seconds, 0)
        _rows(self.out)
