"""Options of the benchmark's commands, and the names that they take. Nothing here needs PyTorch."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from ..cli import COMMANDS
from ..common.options import (
    Above,
    AtLeast,
    Bare,
    Between,
    Checked,
    DeviceOption,
    Known,
    Metavar,
    NotNegative,
    Options,
    Positional,
    Positive,
    ReadFile,
    ReadFolder,
    ReadPath,
    Share,
    WriteFile,
    WriteFolder,
    Writes,
)
from ..common.text import nearest
from ..explain.options import MEASURE_GROUPS, METHODS, Target
from ..kernels.diagnostics.options import BACKENDS, Architecture, BackendName, DtypeName
from ..models.catalog import ModelName
from ..train.config.presets import PRESETS
from .harness.records import RESULTS
from .operator.cases import CASES, Locations
from .static.counts import DECODER, ENCODER, CountedDtype

FunctionName = Literal["ms_deform_attn", "fused_ms_deform_attn", "MSDeformAttn"]
FUNCTIONS: tuple[FunctionName, ...] = get_args(FunctionName)
AloneName = Literal["fused_ms_deform_attn", "ms_deform_attn"]
"""functions without a module around them"""
IMPLEMENTATIONS = (
    *("reference", "gather", "triton", "triton-deterministic", "triton-sorted", "triton-tiles", "cuda", "cpu"),
    *("deformops", "deformops-fp32acc", "official", "hub", "mmcv", "dcnv4", "transformers", "core", "embedding-bag"),
    *("onnxruntime", "openvino"),
    *("reference-compiled", "core-compiled"),
)
"""implementations of the operator, in the order of the tables; the first is the usual baseline"""
CPU_IMPLEMENTATIONS = (
    *("cpu", "reference", "gather", "core", "transformers", "deformops", "mmcv", "embedding-bag"),
    *("onnxruntime", "openvino"),
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
ACCELERATED_MODELS = ("deformable_detr", "grounding_dino", "mask2former", "rt_detr_v2", "d_fine", "deimv2")
"""architectures of transformers"""
PassName = Literal["attention", "forward", "training"]
EXPLAINED_MODELS = ("deformable_detr_r50", "detr_r50")
EXPORTED_MODELS = (
    *("detr_tiny", "detr_mini", "deformable_detr_tiny", "deformable_detr_mini", "detr_demo"),
    *("deformable_detr_r50_two_stage", "deformable_detr_r50", "deformable_detr_r50_refine", "deformable_detr_r50_dc5"),
    *("deformable_detr_r50_single_scale", "deformable_detr_r50_single_scale_dc5"),
    *("detr_r50", "detr_r50_dc5", "detr_r50_dc5_plus"),
)
DEPLOYED_ENGINES = (
    *("pytorch", "pytorch reference", "program", "aoti", "aoti cpu"),
    *("onnxruntime gather", "onnxruntime gridsample", "openvino gather", "openvino gridsample"),
)
"""what runs a detector, PyTorch on the backend `cpu` first"""
PEERS = ("deformops", "official", "hub", "mmcv", "dcnv4")
"""other projects' implementations with kernels for a GPU of their own"""
SEARCHED_CASES = ("encoder-800x1066-b2", "decoder-800x1066")

Results = tuple[ReadPath, ...]


def _check_implementation(option: str, name: str) -> None:
    if ":" not in name and name not in IMPLEMENTATIONS:
        raise ValueError(f"{option}: {nearest('backend', name, IMPLEMENTATIONS)}")


def _check_image(option: str, text: str) -> None:
    sides = re.fullmatch(r"(\d+)x(\d+)", text)
    if sides is None or min(map(int, sides.groups())) < 32:
        raise ValueError(f"{option}: expected HEIGHTxWIDTH of at least 32 pixels, such as 800x1066, got {text}")


def _check_detr(what: str, option: str, model: str) -> None:
    if model.startswith("fasterrcnn"):
        raise ValueError(f"{option}: expected a DETR, which {what}, got {model}")


def _check_holds(name: str, expected: str, option: str, folder: Path) -> None:
    if folder.is_dir() and not (folder / name).exists():
        raise ValueError(f"{option}: expected {expected}, got {folder}")


def _check_rows(option: str, out: Path) -> None:
    """Rows go to a folder, in which a file is named after day and device, or to a file ``*.jsonl``."""
    if out.is_file() and out.suffix != ".jsonl":
        raise ValueError(f"{option}: expected a folder, got the file {out}")
    if out.is_dir() and out.suffix == ".jsonl":
        raise ValueError(f"{option}: expected a folder, or a file that ends in .jsonl, got the folder {out}")


Name = Annotated[str, Metavar("NAME")]
CaseName = Annotated[Name, Known("case", tuple(CASES))]
Implementation = Annotated[Name, Checked(_check_implementation)]
Image = Annotated[str, Checked(_check_image), Metavar("HxW")]
ExplainedModel = Annotated[ModelName, Checked(partial(_check_detr, "has attention to explain"))]
Package = Annotated[ReadFolder, Checked(partial(_check_holds, "deformops", "a folder with the package in it"))]
Checkout = Annotated[ReadFolder, Checked(partial(_check_holds, "README.md", "a checkout, with README.md and docs/"))]
Seconds = Annotated[float, AtLeast(0)]
Minutes = Annotated[float, AtLeast(0)]
Limit = Annotated[float, Above(0)]
Rows = Annotated[Path, Writes("path"), Checked(_check_rows), Metavar("DIR")]
RecordedIn = Annotated[Path, Writes("folder"), Bare(RESULTS), Metavar("DIR")]


@dataclass(frozen=True, kw_only=True)
class RowsOption(Options):
    """Where rows go."""

    out: Rows | None = None
    """Folder for the rows."""


@dataclass(frozen=True, kw_only=True)
class AgainOption(RowsOption):
    """Where rows go, and whether to add to those that are there."""

    again: bool = False
    """Measure cells that are recorded already, too."""


@dataclass(frozen=True)
class CpuOptions(AgainOption):
    """Time the operator's implementations on a CPU, all of them in turn, with one thread and with more.

    Without --cases and --backends, encoders of other image areas are timed with the backend cpu alone, too.
    """

    cases: tuple[CaseName, ...] = ()
    """Some of the cases by name; those of a CPU when not given."""
    backends: tuple[Implementation, ...] = ()
    """Some of the implementations by name, or MODULE:FUNCTION of yours; all that run on a CPU when not given."""
    dtypes: tuple[DtypeName, ...] = ("float32", "bfloat16")
    """Dtypes of value."""
    functions: tuple[AloneName, ...] = ("fused_ms_deform_attn",)
    """Functions to time; the fused one computes locations and softmax, too."""
    threads: tuple[Positive, ...] = ()
    """Numbers of threads, one after the other; 1 and PyTorch's own number when not given."""
    seconds: Seconds = 2.0
    """About how long all implementations together take turns, for a direction and a number of threads, in seconds."""
    rounds: Annotated[int, AtLeast(2)] = 3
    """Least rounds of turns, whatever time they take."""
    limit: Limit = 120.0
    """Seconds after which an implementation that does not answer is stopped."""


@dataclass(frozen=True)
class CpuCodeOptions(Options):
    """Count the instructions that the CPU kernels spend on a point, in their machine code for this processor.

    Of the fused function with four levels of four points, on the usual way: what is rare is not followed.
    """

    channels: tuple[Annotated[int, Between(1, 256)], ...] = (16, 32, 64)
    """Channels of a head."""
    dtypes: tuple[StepDtype, ...] = ("float32", "bfloat16")
    """Dtypes of value."""


@dataclass(frozen=True)
class FirstCallOptions(RowsOption):
    """Time the first call of the operator on a CPU in a new process, beside its second.

    What was compiled before and lies on the disk is used, as in any process. Importing PyTorch and msdeform comes
    before the first call, and has columns of its own.
    """

    case: CaseName = "encoder-200x266"
    """Inputs by name."""
    backends: tuple[BackendName, ...] = ()
    """Backends of the operator; those that run on a CPU when not given."""
    dtypes: tuple[DtypeName, ...] = ("float32",)
    """Dtypes of value."""
    times: Positive = 3
    """New processes of each; the median counts."""


@dataclass(frozen=True)
class VerifyCompiledOptions(Options):
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
class OperatorsOptions(AgainOption):
    """Time the operator's implementations, ours and others', after checking that they are right."""

    cases: tuple[CaseName, ...] = ()
    """Some of the cases by name; those that suit the machine when not given."""
    backends: tuple[Implementation, ...] = ()
    """Some of the implementations by name, or MODULE:FUNCTION of yours; all when not given."""
    baseline: Implementation = "reference"
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
    seconds: Seconds = 0.3
    """About how long each measurement lasts, in seconds."""
    limit: Limit = 120.0
    """Seconds after which an implementation is stopped; compiling for a CPU takes minutes."""
    threads: Positive | None = None
    """Threads of a CPU; PyTorch's own number when not given."""
    out: Rows | None = None
    """Folder for the rows; bench/results when not given, on a CPU and with --quick none."""


@dataclass(frozen=True)
class CompareOptions(Options):
    """What became slower or faster from A to B: two commits, machines or backends."""

    before: Annotated[str, Positional("A")]
    """A commit by the first letters of its hash, a machine by a part of its name, or a backend."""
    after: Annotated[str, Positional("B")]
    """Another of the same kind."""
    results: Results = (RESULTS,)
    """Files and folders of recorded rows."""
    threshold: Annotated[float, AtLeast(0)] = 0.05
    """Relative change of a time that matters."""


@dataclass(frozen=True)
class DispatchOptions(Options):
    """Microseconds of the host for one call of the Triton backend, in stages, on any machine."""

    rounds: Positive = 600
    """How often the stages take turns."""
    calls: Positive = 3
    """Calls of a stage in its turn."""
    out: RecordedIn | None = None
    """Append the rows there; to bench/results without a value."""


@dataclass(frozen=True)
class ExplainOptions(AgainOption):
    """What an explanation costs beside the model's own forward and backward pass."""

    models: tuple[ExplainedModel, ...] = EXPLAINED_MODELS
    """Detectors with attention, of msdeform.list_models()."""
    images: tuple[Image, ...] = ("800x1333",)
    """Height and width of the image, in pixels."""
    backends: tuple[BackendName, ...] = ()
    """Backends of the operator; on a CPU what auto takes when not given, on a GPU all of its own."""
    times: Positive = 3
    """Passes of each, after one to warm up."""
    quick: bool = False
    """Each once: does the command work?"""
    minutes: Minutes = 9.0
    """Minutes after which nothing begins."""


@dataclass(frozen=True)
class ExplainEvalOptions(AgainOption, DeviceOption):
    """How good the explanations of a trained detector are, by every measure of msdeform explain-eval, with several
    seeds of its random maps, patches, noise and weights together."""

    detector: Annotated[str, Positional("NAME")]
    """What the detector is called in rows and tables."""
    data: ReadPath
    """Annotated images, in any layout of docs/data.md; those for validation are explained."""
    checkpoint: ReadPath | None = None
    """Its weights, as msdeform explain-eval takes them."""
    model: Annotated[str, Metavar("NAME")] | None = None
    """Instead a detector of transformers, as msdeform explain-eval takes it."""
    methods: str = ",".join(METHODS)
    """Which to judge, with commas between them."""
    measures: str = ",".join(MEASURE_GROUPS)
    """What to judge by, with commas between them."""
    target: Target = "class"
    """What is explained: the class, or a coordinate of the box."""
    confidence: Share = 0.5
    """Minimum score of a detection."""
    limit: Positive | None = None
    """Only the first N images."""
    most: Positive | None = 3
    """Only the N surest detections of each image."""
    steps: Positive = 8
    """In which pixels are taken away and brought back."""
    randomise: Literal["whole", "smooth", "none"] = "smooth"
    """As of msdeform explain-eval."""
    seeds: tuple[NotNegative, ...] = (0,)
    """Seeds of all that is random in the measures; detections of all seeds are put together."""
    runs: WriteFolder = Path("runs/explain-eval")
    """Folder for the scores of single detections."""


@dataclass(frozen=True)
class ExportsOptions(AgainOption):
    """Run exported detectors in onnxruntime and OpenVINO: how far do they differ from the models?"""

    models: tuple[ModelName, ...] = EXPORTED_MODELS
    """Detectors, of msdeform.list_models()."""
    image: Image = "224x320"
    """Height and width of the images, in pixels; files of any size are compared at four more."""
    photographs: ReadFolder | None = None
    """Compare on the first four images of this folder; on a picture with the statistics of one when not given."""
    sampling: tuple[Literal["gather", "gridsample"], ...] = ("gather", "gridsample")
    """How the deformable attention samples."""
    minutes: Minutes = 9.0
    """Minutes after which nothing begins."""


@dataclass(frozen=True)
class DeployOptions(AgainOption):
    """Latency, throughput and file size of one detector in every engine, in one run."""

    checkpoint: Annotated[str, Metavar("SOURCE")] = "deformable_detr_r50"
    """A name of msdeform.list_models(), with random weights, or weights in any format."""
    image: Image = "480x640"
    """Height and width of the images, in pixels."""
    batches: tuple[Positive, ...] = (1, 4)
    """Images at once."""
    engines: tuple[Annotated[Name, Known("engine", DEPLOYED_ENGINES)], ...] = ()
    """Of them; all that are installed here when not given."""
    threads: Positive = 1
    """Of every engine."""
    seconds: Seconds = 60.0
    """For each batch, about, all engines together; each is called ten times at least."""


@dataclass(frozen=True)
class InstructionsOptions(Options):
    """Count what the compiled kernels execute for one (query, head); no GPU needed."""

    arch: Architecture = "90"
    """Compute capability of the GPU that is compiled for, times ten."""
    cases: tuple[Annotated[Name, Known("case", COUNTED_CASES)], ...] = COUNTED_CASES
    """Inputs by name."""
    dtypes: tuple[CountedDtype, ...] = get_args(CountedDtype)
    """Dtypes of value."""
    implementations: tuple[Counted, ...] = COUNTED_IMPLEMENTATIONS
    """Which of ours to count."""
    deformops: Package | None = None
    """Count deformops' Triton kernels instead: the folder that holds the package, unpacked."""
    official: ReadFile | None = None
    """Count the official kernels instead: Deformable DETR's ms_deform_im2col_cuda.cuh."""
    out: RecordedIn | None = None
    """Append the rows there; to bench/results without a value."""


@dataclass(frozen=True)
class ModelOptions(Options):
    """What should bound each kernel on an H200, from counts of its execution and moved bytes."""

    results: Results = (RESULTS,)
    """Files and folders of recorded rows."""


@dataclass(frozen=True)
class RenderOptions(Options):
    """Every table and plot of the documentation, drawn anew from the recorded rows."""

    check: bool = False
    """Change nothing; status 1 if something is not up to date."""
    root: Checkout = RESULTS.parent.parent
    """Folder of README.md and docs/."""
    results: Results = (RESULTS,)
    """Files and folders of recorded rows."""


@dataclass(frozen=True)
class RooflineOptions(Options):
    """Recorded speeds under what the device could do, drawn."""

    results: Results = (RESULTS,)
    """Files and folders of recorded rows."""
    out: WriteFile = Path("roofline.svg")
    """SVG file to write."""


@dataclass(frozen=True)
class AccelerateOptions(AgainOption):
    """Whole models of transformers before and after msdeform.accelerate, in turn."""

    models: tuple[Annotated[Name, Known("model", ACCELERATED_MODELS)], ...] = ACCELERATED_MODELS
    """Architectures."""
    passes: tuple[PassName, ...] = get_args(PassName)
    """The first attention alone, forward without gradients, or a training step without its optimizer."""
    seconds: Limit = 20.0
    """About how long the three of a row take turns, in seconds; on a CPU five times each at least."""
    quick: bool = False
    """A small image: does the command work?"""
    minutes: Minutes = 30.0
    """Minutes after which nothing begins."""


@dataclass(frozen=True)
class SeedsOptions(RowsOption):
    """A real training run for every backend and seed: do the backends' APs agree?

    Runs that were stopped resume when the same command is given again.
    """

    model: ModelName | None = None
    """Detector; deformable_detr_r50 on a GPU and deformable_detr_mini on a CPU when not given."""
    backends: tuple[BackendName, ...] = BACKENDS
    """Backends of the operator; those that cannot run here are left out."""
    seeds: tuple[NotNegative, ...] = (0, 1, 2)
    """Seeds of weights, order and augmentation."""
    data: ReadPath | None = None
    """Data set to train on; a synthetic one when not given."""
    images: Positive | None = None
    """Images of a synthetic data set, to train on."""
    image_size: Annotated[int | None, AtLeast(64, "pixels"), Metavar("PIXELS")] = None
    """Longest side; of synthetic images, both."""
    epochs: Positive | None = None
    """Epochs of a run."""
    batch: Positive | None = None
    """Images to a step."""
    lr: Annotated[float | None, Above(0), Metavar("RATE")] = None
    """Learning rate."""
    precision: Literal["fp32", "bf16"] | None = None
    """Numbers that a run computes with."""
    quick: bool = False
    """A tiny detector for seconds: does the command work?"""
    minutes: Minutes = 9.0
    """Minutes after which the run under way is stopped."""
    runs: WriteFolder = Path("runs/seeds")
    """Folder for data and runs."""


RECIPES = {
    "preset": "",
    **{f"augment {name}": f"--augment {name}" for name in ("none", "flip", "official", "light", "turns", "strong")},
    "constant rate": "--schedule constant",
    "cosine schedule": "--schedule cosine",
    "step schedule": "--schedule step",
    "no EMA": "--ema None",
    "float32": "--precision fp32 --no-channels-last",
}
"""what each recipe changes of its preset, in words of msdeform train"""


@dataclass(frozen=True)
class RecipesOptions(RowsOption):
    """Train on photographs with several recipes and seeds: which augmentation and schedule help?

    Runs that were stopped resume when the same command is given again."""

    data: ReadPath
    """Data set, in any layout of docs/data.md."""
    recipes: tuple[Annotated[str, Known("recipe", tuple(RECIPES)), Metavar("RECIPE")], ...] = ("preset",)
    """What is changed of the preset: some of preset (nothing), augment NAME, constant rate, cosine schedule,
    step schedule, no EMA, float32."""
    preset: Annotated[str, Known("preset", tuple(PRESETS)), Metavar("NAME")] = "scratch"
    """Settings of every run, as those of msdeform train."""
    init_from: ReadPath | None = None
    """Weights to start from, instead of the preset's."""
    seeds: tuple[NotNegative, ...] = (0, 1, 2)
    """Seeds of weights, order and augmentation."""
    val_share: Annotated[float | None, Between(0, 1, "a share of the images"), Metavar("NUMBER")] = None
    """Hold out this share of the training images and measure on it, as recipes are to be compared; the data set's own
    validation images are for the recipe that was chosen."""
    epochs: Positive | None = None
    """Epochs of a run, instead of the preset's."""
    minutes: Minutes = 60.0
    """Minutes after which the run under way is stopped."""
    runs: WriteFolder = Path("runs/recipes")
    """Folder for the runs."""


@dataclass(frozen=True)
class ServeOptions(AgainOption, DeviceOption):
    """Requests a second and latency of msdeform serve on this machine, beside a plain loop; or broken requests."""

    model: ModelName = "deformable_detr_mini"
    """Detector with random weights, of msdeform.list_models()."""
    checkpoint: ReadPath | None = None
    """Serve this instead: what msdeform serve takes."""
    clients: tuple[Positive, ...] = (1, 8, 64)
    """Numbers of clients, each of which sends a request after the other."""
    requests: Positive = 200
    """Requests of each measurement."""
    images: ReadFolder | None = None
    """Photographs to send; pictures with the statistics of some when not given."""
    image: Image = "480x640"
    """Height and width of made pictures, in pixels."""
    image_size: Annotated[int | None, AtLeast(32, "pixels"), Metavar("PIXELS")] = None
    """Longest side of what the model computes; of random weights, when not given, that of the pictures."""
    threads: Positive | None = None
    """Threads that a forward pass computes with, in the loop, too; PyTorch's own number when not given."""
    max_batch: Positive = 8
    """Most images of one forward pass."""
    max_wait: Annotated[float, AtLeast(0, "milliseconds")] = 5.0
    """Milliseconds that an image waits for others."""
    broken: Annotated[float, Between(0, 1, "a share")] = 0.0
    """Share of the requests that are broken, each in one of eight ways: what is answered is then counted, not timed."""
    minutes: Minutes = 9.0
    """Minutes after which nothing begins."""


@dataclass(frozen=True)
class StartupOptions(RowsOption):
    """CPU time of every command before it does anything: ``--help``, a typo, an option out of range."""

    commands: tuple[Annotated[str, Known("command", tuple(COMMANDS)), Metavar("COMMAND")], ...] = ()
    """Some of the commands by name, one of two words in quotes; all when not given."""
    times: Positive = 5
    """Runs of each, after one to warm up; the median counts."""


@dataclass(frozen=True)
class TrainingOptions(AgainOption):
    """How fast images are loaded, what a training step is made of, and what settings change."""

    parts: tuple[TrainingPart, ...] = get_args(TrainingPart)
    """What to measure: images a second of the loader, memory of its workers, stages of a training step."""
    data: ReadPath | None = None
    """Data set to load; synthetic images when not given."""
    workers: tuple[NotNegative, ...] = (0, 1, 2, 4)
    """Numbers of worker processes."""
    caches: tuple[CacheName, ...] = get_args(CacheName)
    """What the loader keeps in memory."""
    seconds: Limit = 5.0
    """Seconds of each loader."""
    model: ModelName | None = None
    """Detector; deformable_detr_r50 on a GPU and deformable_detr_tiny on a CPU when not given."""
    options: tuple[Annotated[Name, Known("option", STEP_OPTIONS)], ...] = ()
    """Ways to run a step, by name; on a CPU all but compile when not given."""
    backends: tuple[BackendName, ...] = ()
    """Backends of the operator; on a CPU what auto takes when not given, on a GPU all of its own."""
    dtypes: tuple[StepDtype, ...] = STEP_DTYPES
    """Numbers that a step computes with; bfloat16: autocast."""
    batch: tuple[Positive, ...] = ()
    """Images to a pass; on a CPU 2 when not given, else 2 and 4."""
    image: Image | None = None
    """Height and width of an image of a step, in pixels; 800x1066 on a GPU and 128x160 on a CPU when not given."""
    quick: bool = False
    """A few steps of each: does the command work?"""
    minutes: Minutes = 9.0
    """Minutes after which nothing begins."""


@dataclass(frozen=True)
class TableOptions(AgainOption):
    """Published numbers of the detectors, and ours beside them.

    On a CPU, where detectors take seconds an image, speeds are those of a reduced form unless --no-reduced is said.
    """

    flops: bool = False
    """Parameters, and multiply-adds of an image."""
    speed: bool = False
    """Images a second, forward and end to end."""
    training: bool = False
    """Images a second of training steps."""
    models: tuple[ModelName, ...] = ()
    """Detectors of msdeform.list_models(); the published ones when not given."""
    backends: tuple[BackendName, ...] = BACKENDS
    """Backends of the operator."""
    dtypes: tuple[StepDtype, ...] = STEP_DTYPES
    """Numbers that are computed with."""
    batch: tuple[Positive, ...] = ()
    """Images to a batch; 1 and 4, in training 2 and 4 when not given."""
    compiled: bool = False
    """Under torch.compile, too."""
    reduced: bool | None = None
    """A tiny detector, a small image, which is no result of the method; the default on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flops + self.speed + self.training != 1:
            raise ValueError("expected one table to print, --flops, --speed or --training")


@dataclass(frozen=True)
class SearchOptions(RowsOption):
    """The launch parameters of the Triton kernels, side by side, on a GPU."""

    cases: tuple[CaseName, ...] = SEARCHED_CASES
    """Cases by name."""
    dtypes: tuple[DtypeName, ...] = ("float32", "bfloat16")
    """Dtypes of value."""
    bands: bool = False
    """Only rows of a band of the forward's queries."""
    tiles: bool = False
    """Tiles of the backward that sorts points inside a block."""
    walks: bool = False
    """Only points of a walk of the sorted backward."""
    seconds: Seconds = 0.5
    """About how long the choices of a case take turns, in seconds."""
    out: Rows | None = None
    """Folder, or file that ends in .jsonl, for the rows; bench/results when not given."""
