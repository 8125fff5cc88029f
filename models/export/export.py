"""A detector as a file that runs without this package, and that is run beside the model before it is kept."""

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ...common.progress import progress_bar
from ...kernels.registry import load_operators
from ..families.detector import Detector
from ..families.faster_rcnn import STRIDE, FasterRcnn
from .check import Padding, like_a_photograph, map_sizes, paddings, photographs
from .faster_rcnn import ExportableFasterRcnn
from .form import Form
from .formats import FORMATS
from .program import Call, Program, exportable
from .recipe import about

TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2}
"""Of the largest number of an output, by dtype: another order of the sums in a network of fifty layers; and float16
beside the model in float32."""


@dataclass(frozen=True)
class Comparison:
    """What an exported program's numbers were, beside the model's."""

    difference: float
    """The largest, as a share of the largest number of each output."""
    compared: int
    """Pictures, each with its padding, that it is the largest of."""
    boundaries: tuple[int, int]
    """Boundaries of padding among them, and all that there are."""
    shapes: int
    """Batches and sizes among them, those that no tracing saw included."""


def export(
    model: Detector,
    path: Path,
    form: Form,
    *,
    to: str | None = None,
    images: Path | None = None,
    checks: int | None = 32,
    weights_beside: bool = False,
    progress: bool = False,
) -> Comparison:
    """Writes a detector to `path`, whole or not at all.

    The files are written to a folder beside it, read from there and compared with the model, and take their names
    after that: on `images`, a file or a folder (else on a picture made to be like a photograph), at every batch and
    size of `Form.tried`, without padding, with stripes, and at most `checks` boundaries of padding (all if None): see
    `check`.

    Args:
        to: of `FORMATS`; when None, what the suffix of `path` says.
        weights_beside: keep an ONNX file's weights in a file ``.data`` beside it, as it is where they exceed 1.9 GB.

    Raises:
        ValueError: another suffix, size or form than can be exported, or a difference over `TOLERANCE`.
        ModuleNotFoundError: a package that the format needs is missing.
    """
    to = format_of(path, to)
    check_form(model, form, to)
    pictures = [like_a_photograph(form.size, seed) for seed in range(max(form.batch, 3 if form.dynamic else 1))]
    if images is not None:
        pictures = photographs(images, form.size)
    program = exportable(model, form)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
        file = Path(folder) / path.name
        write(model, program, file, to, weights_beside=weights_beside)
        call = FORMATS[to].open(file, None).call
        # in float32, and by grid_sample whatever is in the file: what gather does is in question, too
        expected = exportable(model, replace(form, sampling="gridsample", dtype=torch.float32))
        found = compare(
            program,
            call,
            pictures,
            expected=expected,
            checks=checks,
            tolerance=TOLERANCE[form.dtype],
            progress=progress,
        )
        for part in sorted(Path(folder).iterdir(), key=lambda part: part == file):  # the graph last
            os.replace(part, path.with_name(part.name))
    return found


def format_of(path: Path, to: str | None) -> str:
    """The name of a format of `FORMATS`: `to`, which has to fit the suffix of `path`, or what that says.

    Raises ValueError for a suffix that is not the format's.
    """
    by_suffix = {form.suffix: name for name, form in reversed(FORMATS.items())}
    wanted = (FORMATS[to].suffix,) if to is not None else tuple(dict.fromkeys(form.suffix for form in FORMATS.values()))
    if path.suffix not in wanted:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(wanted)}")
    return to or by_suffix[path.suffix]


def check_form(model: Detector, form: Form, to: str) -> None:
    """Raises ValueError for what this detector cannot be exported as."""
    step = 1
    if form.sampling == "cpu":
        if to not in ("program", "aoti"):
            raise ValueError(f"sampling: expected gather or gridsample for {FORMATS[to].what}, which cannot call ours")
        load_operators("cpu")
    if isinstance(model, FasterRcnn):
        step = STRIDE
        if form.batch > 1:
            raise ValueError(
                f"batch: expected 1 for Faster R-CNN, which finds as many as there are, another number in each image; "
                f"got {form.batch}"
            )
        if form.dynamic:
            raise ValueError(
                "dynamic: expected none for Faster R-CNN, whose anchors and proposals are counted for one size, "
                f"got {','.join(form.dynamic)}"
            )
        if form.top_k is not None or form.pixels or form.dtype != torch.float32:
            raise ValueError(
                "Faster R-CNN is exported in float32, from normalised images to what it finds: --dtype, --top-k and "
                "--pixels are the other detectors'"
            )
    height, width = form.size
    if form.batch < 1 or min(form.size) < STRIDE or any(side % step for side in form.size):
        kind = f"multiples of {STRIDE}" if step > 1 else f"at least {STRIDE} pixels"
        raise ValueError(
            f"size: expected a batch of at least 1 and sides of {kind}, got {form.batch} of {height}x{width}"
        )
    if form.pixels and "size" not in form.dynamic:
        raise ValueError("pixels: expected --dynamic with size, since images come in any; got a file of one size")


def write(model: Detector, program: Program, file: Path, to: str, *, weights_beside: bool = False) -> None:
    """Traces a program and writes it to `file`, unchecked."""
    form = program.form
    size = _traced_size(program) if "size" in form.dynamic and not form.pixels else form.size
    pictures = [like_a_photograph(size, seed) for seed in range(2 if "batch" in form.dynamic else form.batch)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's about itself
        inputs = program.example(torch.stack(pictures))
        exported = torch.export.export(program, inputs, dynamic_shapes=form.dynamic_shapes() if form.dynamic else None)
        FORMATS[to].write(program, exported, about(model, program, to), file, weights_beside)


def _traced_size(program: Program) -> tuple[int, int]:
    """That of the form, or larger: PyTorch takes a side of 1, of the coarsest map, for one that is 1 at every size."""
    height, width = program.form.size
    while min(map(min, map_sizes(program.model, (height, width)))) < 3:
        height, width = 2 * height, 2 * width
    return height, width


def compare(
    program: Program,
    call: Call,
    pictures: Sequence[Tensor],
    *,
    expected: Program | None = None,
    checks: int | None = None,
    tolerance: float = TOLERANCE[torch.float32],
    progress: bool = False,
) -> Comparison:
    """Compares what `call` computes with what the model does, on normalised `pictures` (3, H, W) of one size.

    `expected` is asked in the place of `program` for what is right. Raises ValueError for a difference over
    `tolerance`, or another shape.
    """
    expected = program if expected is None else expected
    worst = 0.0
    plan = _plan(program, pictures, checks)
    with progress_bar("comparing", len(plan.runs), shown=progress) as advance, torch.no_grad():
        for inputs in plan.inputs(program):
            wanted = expected.expected(*inputs)
            worst = max(worst, _difference(program, wanted, program.paired(wanted, call(*inputs)), tolerance))
            advance()
    return Comparison(worst, sum(len(run) for run in plan.runs), plan.boundaries, plan.shapes)


@dataclass(frozen=True)
class _Plan:
    """What is compared: batches of padded pictures."""

    runs: list[list[tuple[int, tuple[int, int], Padding]]]
    """Of each batch: the picture's number, the size that it is resized to, and its padding."""
    pictures: Sequence[Tensor]
    boundaries: tuple[int, int] = (0, 0)
    shapes: int = 1

    def inputs(self, program: Program) -> Iterator[tuple[Tensor, ...]]:
        for run in self.runs:
            images = torch.stack([_at(self.pictures[number], size) for number, size, _ in run])
            if isinstance(program, ExportableFasterRcnn):
                yield program.example(images)
            else:
                yield program.padded(images, [padding for _, _, padding in run])


def _at(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return picture if picture.shape[1:] == size else F.resize(picture, list(size), antialias=True)


def _plan(program: Program, pictures: Sequence[Tensor], checks: int | None) -> _Plan:
    """Every picture without padding, then all of them in turn: striped, at boundaries; then other sizes and batches."""
    size, turns = (pictures[0].shape[1], pictures[0].shape[2]), cycle(range(len(pictures)))
    whole = paddings(size, [])[0][0]
    if isinstance(program, ExportableFasterRcnn):
        return _Plan([[(number, size, whole)] for number in range(len(pictures))], pictures)
    form = program.form
    if form.pixels:
        todo, total, tried = [whole] * len(pictures), 0, 0
    else:
        first, cuts = paddings(size, map_sizes(program.model, size))
        total, tried = len(cuts), len(cuts) if checks is None else min(checks, len(cuts))
        todo = [whole] * len(pictures) + first[1:] + cuts[:tried]
    todo += [whole] * (-len(todo) % form.batch)
    each = iter([(next(turns), size, padding) for padding in todo])
    runs = [list(islice(each, form.batch)) for _ in range(len(todo) // form.batch)]
    others = form.tried()[1:] if form.dynamic else []
    for batch, other in others:
        stripes = paddings(other, [])[0]
        runs.append([(next(turns), other, stripes[place % len(stripes)]) for place in range(batch)])
    return _Plan(runs, pictures, (tried, total), 1 + len(others))


def _difference(program: Program, wanted: Sequence[Tensor], came: Sequence[Tensor], tolerance: float) -> float:
    worst = 0.0
    for name, one, other in zip(program.outputs, wanted, came, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"{name}: the model gives {tuple(one.shape)}, the exported program {tuple(other.shape)}")
        share = float((one - other).abs().max() / one.abs().max().clamp(min=1))
        if not share <= tolerance:
            raise ValueError(
                f"{name}: the exported program differs from the model by {share:.1e} of the largest number, more than "
                f"{tolerance:.0e}, in a batch of {tuple(one.shape)}; no file was written"
            )
        worst = max(worst, share)
    return worst
