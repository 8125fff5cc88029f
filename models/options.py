"""The options of ``msdeform convert`` and ``msdeform export``. Nothing here needs PyTorch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from ..common.options import (
    AtLeast,
    DeviceOption,
    Form,
    Metavar,
    NotNegative,
    Options,
    Positional,
    Positive,
    ProgressOption,
    ReadPath,
    WriteFile,
    Writes,
)
from ..common.text import either, suggest
from ..kernels.diagnostics.options import AttnBackend
from .catalog import MODELS, ModelName
from .inference.image_size import Size

FORMATS = ("official", "huggingface", "msdeform")
SUFFIXES = (".onnx", ".xml", ".pt2", ".tflite")
_DYNAMIC = "none, batch, size or batch,size"


@dataclass(frozen=True, kw_only=True)
class LoadOptions(DeviceOption):
    """How a detector is loaded, where it runs, and the size of its images."""

    image_size: Annotated[int, AtLeast(32)] | None = None
    """Longest side in pixels, or the side of the square for a model that takes squares; what it was trained with when
    not given."""
    model: ModelName | None = None
    """A name of msdeform.list_models(): what weights without a description are of."""
    attn_backend: AttnBackend = "auto"
    """Implementation of the deformable attention."""


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(LoadOptions):
    """A trained detector, and how it is loaded: shared by the commands that need one."""

    checkpoint: ReadPath
    """A run's checkpoint, or its folder for its best; or official, Hugging Face's or converted weights."""


@dataclass(frozen=True)
class ConvertOptions(Options):
    """Convert a detector's weights from any format into another."""

    epilog: ClassVar[str] = """formats of SRC, told by its content:
  official      a .pth of the official code of DETR or Deformable DETR: {model, args, ...}, or a bare state dict
  huggingface   a folder with transformers' config.json and model.safetensors, or one such .safetensors file
  msdeform      a folder with our config.json and model.safetensors (save_pretrained writes it)
  training      a checkpoint of msdeform train, or a run's folder for its best

what DST will be, and hold:
  official      one file: weights, the model's settings, names of classes and the size of images
  huggingface   a folder that transformers' from_pretrained reads; of DETR and Deformable DETR, and of a run of a model
                of transformers
  msdeform      a folder that msdeform.load_model reads, and msdeform eval, predict and train --init-from

examples:
  msdeform convert runs/mine mine --to msdeform
  msdeform convert detr-r50-e632da11.pth detr --to huggingface --model detr_r50
"""

    src: Annotated[ReadPath, Positional("SRC")]
    """Weights in any of the formats below."""
    dst: Annotated[Path, Positional("DST"), Writes("path")]
    """What to write; must not exist yet."""
    to: Literal["official", "huggingface", "msdeform"]
    """Format to write."""
    model: ModelName | None = None
    """A name of msdeform.list_models(): what the weights are of, where SRC does not say so itself."""


@dataclass(frozen=True)
class ExportOptions(ProgressOption):
    """Write a detector as a file for another engine, and check its numbers there."""

    epilog: ClassVar[str] = """what OUT will be:
  .onnx   an ONNX file, opset 18, of standard operators; for onnxruntime, OpenVINO, TensorRT and others
  .xml    OpenVINO's own format, with a .bin beside it
  .pt2    a torch.export program, for PyTorch; with --to aoti an AOTInductor package: machine code for CPUs like this
          one, which PyTorch loads (writing it takes a C++ compiler and minutes)
  .tflite LiteRT's format, of one size, with what it says about itself in a .json beside it

what it takes and gives (B images of H x W: any, or what --batch and --size say, see --dynamic):
  images  (B, 3, H, W) float32, normalised, 0 where padded; mask (B, H, W) bool, True where padded
  logits  (B, Q, classes), boxes (B, Q, 4), cxcywh, shares of the unpadded image: what model.post_process takes
with --top-k K, also sizes (B, 2) int64, height and width that boxes should refer to, and instead of logits
  boxes   (B, K, 4), xyxy in pixels, labels (B, K) int64, scores (B, K), best first
with --pixels, instead of images and mask
  pixels  (B, 3, H, W) uint8, RGB of any size, resized to fit into --size, and normalised, inside
Faster R-CNN takes one image of --size, all of it picture, and confidence () float32, the minimum score of a detection;
it gives boxes (n, 4), xyxy, shares of the image, labels (n,) int64 and scores (n,), best first, of the n that it finds.

The file carries its classes, sizes and normalisation, and the Python that runs it is printed. Before it is kept, it is
run beside the model: at five sizes with three batches each, without padding, with masks that tell every row and column
apart, and with padding that ends where the mask of some level changes. A file that differs is removed.

examples:
  msdeform export runs/mine mine.onnx --images photographs
  msdeform export runs/mine mine.xml --top-k 100 --pixels --size 640x640
  msdeform export detr-r50-e632da11.pth detr.pt2 --model detr_r50 --to aoti
"""

    source: Annotated[str, Positional("SOURCE")]
    """A name of msdeform.list_models(), or weights in any format."""
    out: Annotated[WriteFile, Positional("OUT")]
    """OUT.onnx, OUT.xml, OUT.pt2 or OUT.tflite."""
    to: Literal["onnx", "openvino", "program", "aoti", "litert"] | None = None
    """The kind of file; what the name of OUT says when not given."""
    size: Annotated[str, Form(r"\d+x\d+", "HxW in pixels, such as 800x1216"), Metavar("HxW")] | None = None
    """Height and width of the images, or with --dynamic size of those that it is traced with; when not given, those
    that the model was trained with, or 800x1216."""
    batch: Positive = 1
    """Images at once, where --dynamic is without batch."""
    dynamic: Annotated[str, Form("none|batch|size|batch,size", _DYNAMIC), Metavar("WHAT")] | None = None
    """What every call may choose anew: none, batch, size, or both as batch,size; both when not given, none for Faster
    R-CNN, .tflite, and --to aoti, whose compiler takes many times as long for sizes that it does not know."""
    sampling: Literal["gather", "gridsample", "cpu"] = "gather"
    """How the deformable attention samples. TensorRT 10.14 to 11.1 computes GridSample wrong here, and says nothing;
    gather takes rows by number instead, which is somewhat slower in onnxruntime and OpenVINO. Of .pt2, cpu calls this
    package's operator, the fastest on a CPU: the file then runs only where the package is installed."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of weights and layers; beside float16, norms, locations, sampling, boxes, inputs and outputs stay float32."""
    top_k: Positive | None = None
    """Detections of an image that come out, in the place of the logits and boxes of all queries."""
    pixels: bool = False
    """Take images as they are, and resize and normalise them inside."""
    weights_beside: bool = False
    """Write an ONNX file's weights into OUT.onnx.data; weights of more than 1.9 GB are there in any case."""
    model: ModelName | None = None
    """A name of msdeform.list_models(): what the weights are of, where SOURCE does not say so."""
    images: Annotated[ReadPath | None, Metavar("FILE_OR_FOLDER")] = None
    """Photographs to compare file and model on; pictures with the statistics of one when not given."""
    checks: NotNegative = 32
    """Most boundaries of padding to compare at, coarsest level first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix not in SUFFIXES:
            raise ValueError(f"out: expected a name that ends in {either(SUFFIXES)}, got {self.out}")
        if self.source not in MODELS and not Path(self.source).exists():
            sentence = (
                f"source: expected a model's name or weights; {self.source} does not exist, no model is called so"
            )
            raise ValueError(suggest(sentence, self.source, MODELS, most=3))

    def height_and_width(self, trained: Size | None, step: int = 1) -> tuple[int, int]:
        """What --size says, or else the size of a model's training, in multiples of ``step``."""
        if self.size is not None:
            height, _, width = self.size.partition("x")
            return int(height), int(width)
        if trained is None or trained == Size():
            return 800, 1216
        return -(-trained.short // step) * step, -(-trained.longest // step) * step
