"""A detector as a `torch.export` program or in ONNX, its numbers compared with the model's.

Images (B, 3, H, W) and a padding mask (B, H, W) in, class logits and boxes out, at one fixed size. The deformable
attention is the reference's, `grid_sample` and sums: ONNX has it as the standard operator GridSample, so that nothing
of ours is needed to run the file.

Faster R-CNN takes one image and the minimum score of a detection; how many it finds is known when the graph runs.
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ...common.files import atomic_file
from ...common.progress import progress_bar
from ..attention import MSDeformAttn
from ..families.detector import Detector
from ..families.faster_rcnn import STRIDE, FasterRcnn
from ..options import SUFFIXES
from .check import Padding, like_a_photograph, map_sizes, paddings, photographs
from .faster_rcnn import ExportableFasterRcnn
from .recipe import FILE, about

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
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        return self.padded(images, [(rows >= height - height // 4, columns >= width - width // 4)] * len(images))

    def padded(self, images: Tensor, paddings: Sequence[Padding]) -> tuple[Tensor, ...]:
        """`images` (B, 3, H, W), each padded as the padding of its place says."""
        mask = torch.stack([rows | columns for rows, columns in paddings])
        return images.masked_fill(mask[:, None], 0.0), mask

    def expected(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the exported program is compared with."""
        outputs: tuple[Tensor, ...] = self(*inputs)
        return outputs

    def paired(self, wanted: Sequence[Tensor], came: Sequence[Tensor]) -> list[Tensor]:
        """`came`, in the order of `wanted`: queries keep theirs, but in two stages.

        There a query is a proposal, and they are in the order of their scores: rounding decides which of two almost
        equal ones is first. Its place in the order decides nothing of what comes of it, and the output is a set. Each
        is compared with the one that it is nearest to, one to one.
        """
        if not getattr(getattr(self.model, "transformer", None), "two_stage", False):
            return list(came)
        pairs = zip(torch.cat(list(wanted), -1), torch.cat(list(came), -1), strict=True)
        order = [linear_sum_assignment(torch.cdist(one.double(), other.double(), p=1))[1] for one, other in pairs]
        return [torch.stack([one[rows] for one, rows in zip(tensor, order, strict=True)]) for tensor in came]


Program = Exportable | ExportableFasterRcnn
"""What is exported."""
Call = Callable[..., list[Tensor]]
"""What a file computes of a program's inputs."""


def exportable(model: Detector) -> Program:
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


def example(model: Program, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Inputs to trace with."""
    return model.example(torch.stack([like_a_photograph(size, seed) for seed in range(batch)]))


@dataclass(frozen=True)
class Comparison:
    """What an exported program's numbers were, beside the model's."""

    difference: float
    """The largest, as a share of the largest number of each output."""
    compared: int
    """Pictures, each with its padding, that it is the largest of."""
    boundaries: tuple[int, int]
    """Boundaries of padding among them, and all that there are."""


def export(
    model: Detector,
    path: Path,
    *,
    size: tuple[int, int],
    batch: int = 1,
    images: Path | None = None,
    checks: int | None = 32,
    progress: bool = False,
) -> Comparison:
    """Writes a detector to `path`, ``.onnx`` or ``.pt2`` by its name, whole or not at all.

    What will be in the file is read and run first, on `images`, a file or a folder (else on a picture made to be like a
    photograph), without padding, with stripes, and at most `checks` boundaries of padding (all if None): see
    `export_check`.

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
    pictures = [like_a_photograph(size, seed) for seed in range(batch)] if images is None else photographs(images, size)
    program, call, content = exported_program(model, path.suffix, size=size, batch=batch)
    found = compare(program, call, pictures, batch=batch, checks=checks, progress=progress)
    with atomic_file(path) as file:
        file.write(content)
    return found


def exported_program(
    model: Detector, suffix: str, *, size: tuple[int, int], batch: int = 1
) -> tuple[Program, Call, bytes]:
    """What is exported, what computes it from a file's content, and that content."""
    program = exportable(copy.deepcopy(model).float().cpu())  # the caller's keeps its mode, dtype and device
    with torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch's about itself
            exported = torch.export.export(program, example(program, batch, size))
        serialise = _onnx if suffix == ".onnx" else _program
        content, call = serialise(program, exported, about(model, size, batch))
    return program, call, content


def compare(
    program: Program,
    call: Call,
    pictures: Sequence[Tensor],
    *,
    batch: int = 1,
    checks: int | None = None,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> Comparison:
    """Compares what `call` computes with what the model does, on normalised `pictures` (3, H, W) of one size.

    Raises ValueError for a difference over `tolerance`, or another shape.
    """
    worst, total, tried = 0.0, 0, 0
    if isinstance(program, ExportableFasterRcnn):
        number = compared = len(pictures)
        runs: Iterator[tuple[Tensor, ...]] = (program.example(picture[None]) for picture in pictures)
    else:
        size = (pictures[0].shape[1], pictures[0].shape[2])
        first, cuts = paddings(size, map_sizes(program.model, size))
        total, tried = len(cuts), len(cuts) if checks is None else min(checks, len(cuts))
        # every picture without padding, then all of them in turn
        todo = [first[0]] * len(pictures) + first[1:] + cuts[:tried]
        compared = len(todo)
        todo += [first[0]] * (-compared % batch)
        turns = zip(cycle(pictures), todo, strict=False)
        number = len(todo) // batch
        chunks = (zip(*islice(turns, batch), strict=True) for _ in range(number))
        runs = (program.padded(torch.stack(images), masks) for images, masks in chunks)
    with progress_bar("comparing", number, shown=progress) as advance, torch.no_grad():
        for inputs in runs:
            wanted = program.expected(*inputs)
            worst = max(worst, _difference(program, wanted, program.paired(wanted, call(*inputs)), tolerance))
            advance()
    return Comparison(worst, compared, (tried, total))


def _program(program: Program, exported: torch.export.ExportedProgram, notes: dict[str, Any]) -> tuple[bytes, Call]:
    """A ``.pt2`` file's content, and what it computes once read again."""
    buffer = io.BytesIO()
    torch.export.save(exported, buffer, extra_files={FILE: json.dumps(notes)})
    content = buffer.getvalue()
    module = torch.export.load(io.BytesIO(content)).module()
    return content, lambda *inputs: list(module(*inputs))


def _onnx(program: Program, exported: torch.export.ExportedProgram, notes: dict[str, Any]) -> tuple[bytes, Call]:
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
    proto = made.model_proto
    for name, value in notes.items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def call(*inputs: Tensor) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(program.inputs, inputs, strict=True)}
        return [torch.from_numpy(answer) for answer in session.run(None, feed)]

    return content, call


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


def _difference(program: Program, wanted: Sequence[Tensor], came: Sequence[Tensor], tolerance: float) -> float:
    worst = 0.0
    for name, one, other in zip(program.outputs, wanted, came, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"{name}: the model gives {tuple(one.shape)}, the exported program {tuple(other.shape)}")
        share = float((one - other).abs().max() / one.abs().max().clamp(min=1))
        if not share <= tolerance:
            raise ValueError(
                f"{name}: the exported program differs from the model by {share:.1e} of the largest number, more than "
                f"{tolerance:.0e}"
            )
        worst = max(worst, share)
    return worst
