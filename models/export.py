"""``msdeform export``: a detector as a `torch.export` program or in ONNX, its numbers held against the model's.

Images (B, 3, H, W) and a padding mask (B, H, W) in, class logits and boxes out, at one fixed size. The deformable
attention is the reference's, `grid_sample` and sums: ONNX has it as the standard operator GridSample, so that nothing
of ours is needed to run the file.

Faster R-CNN takes one image and the least score of a detection; how many it finds is known when the graph runs.
"""

import io
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .attention import MSDeformAttn
from .catalog import MODELS
from .detector import Detector
from .faster_rcnn import STRIDE, FasterRcnn
from .faster_rcnn_export import ExportableFasterRcnn
from .files import atomic_file
from .loading import load_model
from .options import SUFFIXES, ExportOptions
from .zoo import create_model

# of the largest number: another order of the sums in a network of fifty layers
TOLERANCE = 1e-3
_OPSET = 18


class Exportable(nn.Module):
    """A DETR from tensors to tensors: (images, mask) to (logits, boxes)."""

    inputs = ("images", "mask")
    outputs = ("logits", "boxes")

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model((images, mask))
        return found["pred_logits"], found["pred_boxes"]

    def example(self, images: Tensor) -> tuple[Tensor, ...]:
        """`images`, the last quarter of every one's rows and columns padded."""
        height, width = images.shape[2:]
        mask = torch.zeros(images.shape[0], height, width, dtype=torch.bool)
        mask[:, height - height // 4 :], mask[:, :, width - width // 4 :] = True, True
        return images.masked_fill(mask[:, None], 0.0), mask

    def expected(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the exported program is held against."""
        outputs: tuple[Tensor, ...] = self(*inputs)
        return outputs

    def paired(self, wanted: Sequence[Tensor], came: Sequence[Tensor]) -> list[Tensor]:
        """`came`, in the order of `wanted`: queries keep theirs."""
        return list(came)


def exportable(model: Detector) -> Exportable | ExportableFasterRcnn:
    """A detector as it can be exported, in evaluation mode.

    Raises ValueError for a deformable attention on another backend than the reference, whose kernels no file can hold.
    """
    for name, module in model.named_modules():
        if isinstance(module, MSDeformAttn) and module.backend != "reference":
            raise ValueError(
                f"model: expected attn_backend='reference', which is made of standard operators, "
                f"got {module.backend!r} at {name}"
            )
    return (ExportableFasterRcnn(model) if isinstance(model, FasterRcnn) else Exportable(model)).eval()


def example(model: Exportable | ExportableFasterRcnn, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Inputs to trace and check with, of noise."""
    return model.example(torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)))


def export(model: Detector, path: Path, *, size: tuple[int, int], batch: int = 1) -> float:
    """Writes a detector to `path`, ``.onnx`` or ``.pt2`` by its name, whole or not at all.

    What will be in the file is read and run first.

    Returns:
        The largest difference of its numbers from the model's, as a share of the largest of each output.

    Raises:
        ValueError: another suffix, size or backend than can be exported, or a difference over `TOLERANCE`.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is missing, for ``.onnx``.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    step = STRIDE if isinstance(model, FasterRcnn) else 1
    if isinstance(model, FasterRcnn) and batch > 1:
        raise ValueError(f"batch: expected 1 for Faster R-CNN, which finds as many as there are, got {batch}")
    if batch < 1 or min(size) < STRIDE or any(side % step for side in size):
        kind = f"multiples of {STRIDE}" if step > 1 else f"at least {STRIDE} pixels"
        raise ValueError(
            f"size: expected a batch of at least 1 and sides of {kind}, got {batch} of {size[0]}x{size[1]}"
        )
    program = exportable(model.float().cpu())
    inputs = example(program, batch, size)
    with torch.no_grad():
        wanted = program.expected(*inputs)
        exported = torch.export.export(program, inputs)
        serialise = _onnx if path.suffix == ".onnx" else _program
        content, came = serialise(program, exported, inputs)
    difference = _difference(program, wanted, program.paired(wanted, came))
    with atomic_file(path) as file:
        file.write(content)
    return difference


def _program(
    program: Exportable | ExportableFasterRcnn,
    exported: torch.export.ExportedProgram,
    inputs: tuple[Tensor, ...],
) -> tuple[bytes, list[Tensor]]:
    """A ``.pt2`` file's content, and what it computes once read again."""
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    content = buffer.getvalue()
    return content, list(torch.export.load(io.BytesIO(content)).module()(*inputs))


def _onnx(
    program: Exportable | ExportableFasterRcnn,
    exported: torch.export.ExportedProgram,
    inputs: tuple[Tensor, ...],
) -> tuple[bytes, list[Tensor]]:
    """An ``.onnx`` file's content, and what onnxruntime computes with it."""
    import onnxruntime

    with _quiet("onnxscript", "onnx_ir", "torch.onnx"):
        made = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=_OPSET,
            verbose=False,
            input_names=list(program.inputs),
            output_names=list(program.outputs),
        )
    assert made is not None
    content = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    answers = session.run(None, {name: tensor.numpy() for name, tensor in zip(program.inputs, inputs, strict=True)})
    return content, [torch.from_numpy(answer) for answer in answers]


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """The exporter warns of each operator that it did not fold."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _difference(program: Exportable | ExportableFasterRcnn, wanted: tuple[Tensor, ...], came: list[Tensor]) -> float:
    worst = 0.0
    for name, one, other in zip(program.outputs, wanted, came, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"{name}: the model gives {tuple(one.shape)}, the exported program {tuple(other.shape)}")
        share = float((one - other).abs().max() / one.abs().max().clamp(min=1))
        if not share <= TOLERANCE:
            raise ValueError(
                f"{name}: the exported program differs from the model by {share:.1e} of the largest number, more than "
                f"{TOLERANCE:.0e}"
            )
        worst = max(worst, share)
    return worst


def run(options: ExportOptions) -> int:
    """``msdeform export``."""
    model = _find(options.source, options.model)
    try:
        difference = export(model, options.out, size=options.height_and_width, batch=options.batch)
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxscript", "onnxruntime"):
            raise
        raise ValueError(f"ONNX needs the package {error.name}: pip install onnx onnxscript onnxruntime") from None
    shape = "x".join(map(str, (options.batch, 3, *options.height_and_width)))
    program = exportable(model)
    print(f"wrote {options.out}: {', '.join(program.outputs)} of {', '.join(program.inputs)}, images {shape}")
    print(f"largest difference from the model: {difference:.1e} of the largest number")
    return 0


def _find(source: str, name: str | None) -> Detector:
    """A model by its name, randomly initialised, or out of a checkpoint."""
    if source in MODELS and not Path(source).exists():
        print(f"{source} is a name: the weights are random", file=sys.stderr)
        return create_model(source, attn_backend="reference")
    return load_model(source, attn_backend="reference", name=name)
