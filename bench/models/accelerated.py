"""``msdeform bench accelerate``: models of transformers before and after ``msdeform.accelerate``, in one run.

Copies of a model take turns: as transformers has it, with our operator alone, and without gradients also with whole
modules fused. Before any time counts, every call of the operator in the model is held against the reference. Weights
are random, with offsets that differ between queries as those of a trained model do, and so is the image. ``forward`` is
evaluation without gradients; ``training`` is forward, the model's own losses, and backward; ``attention`` is the first
module with deformable attention by itself, called as in the forward, without gradients.
"""

import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from ...integrations.accelerate import accelerate
from ...integrations.forms import OurOperator
from ...integrations.places import find_places
from ...kernels.contract import SpatialShapes
from ..harness.measure import paired, time_in_turn
from ..harness.provenance import usual_device
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import Column, Line, aligned, fields, lines_of, number, numbers
from ..options import AccelerateOptions
from .resumable import measure_missing

_SOURCES = ("bench/models/accelerated.py", "integrations/*.py")
_LEVELS = ("operator", "fused")  # the second without gradients alone
_CLASSES, _BOXES, _TOKENS = 80, 7, 16
_LEAST = 5  # rounds
_WRONG = 1e-4  # of the largest number in a call: float32 sums in another order stay far below


def measure_rows(options: AccelerateOptions) -> int:
    """Measures and prints; returns how many rows are left when the time is over."""
    device = usual_device()
    results = open_results("msdeform bench accelerate", options, device, measured=_SOURCES)
    cells = product(options.models, options.passes)
    planned = (
        (("accelerated", *cell), partial(_measured_apart, *cell, device.type, options.seconds, options.quick))
        for cell in cells
    )
    left = measure_missing(planned, results, options.minutes)
    if rows := results.of("accelerated"):
        print(aligned(accelerated_table([row for row in rows if row["failure"] is None]), 3) + "\n")
    return left


def _measured_apart(*words: Any) -> Row:
    """A row that was measured in a fresh process, whose memory is free."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, *words).result()


def measured(name: str, direction: str, device: str, seconds: float, quick: bool) -> Row:
    """The row of one cell."""
    row: Row = {"kind": "accelerated", "model": name, "pass": direction, "failure": None}
    try:
        return row | _numbers(name, direction, torch.device(device), seconds, quick)
    except Exception as error:  # the others are still to be measured
        return row | {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}


def _numbers(name: str, direction: str, device: torch.device, seconds: float, quick: bool) -> Row:
    torch.manual_seed(0)
    height, width = MODELS[name][1]
    if quick:  # as small as leaves enough pixels for the queries of two stages
        height, width = (384, 384) if name == "grounding_dino" else (128, 128)
    model = _uneven(MODELS[name][0]()).to(device)
    inputs = _inputs(name, height, width, device, training=direction == "training")
    difference = _difference(model.eval(), inputs)
    if difference > _WRONG:
        raise ValueError(f"the operator differs from the reference by {difference:.1e} of the largest number")
    levels = _LEVELS[:1] if direction == "training" else _LEVELS
    models = [model, *(copy.deepcopy(model) for _ in levels)]
    for one, level in zip(models[1:], levels, strict=True):
        report = accelerate(one, fused=level == "fused")
    calls = [_call(one, inputs, direction) for one in models]
    theirs, *ours = _in_turn(calls, device, seconds)
    found: Row = {
        "image": [height, width],
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
        "places": report.replaced,
        "backend": report.backend,
        "difference": difference,
        "calls": len(theirs),
    }
    for level, times in zip(levels, ours, strict=True):
        ratio = paired(theirs, times)
        found["theirs_us"] = sorted(theirs)[len(theirs) // 2]
        found[f"{level}_us"] = ratio.baseline_us
        found[f"{level}_faster"] = [ratio.ratio, ratio.ratio_low, ratio.ratio_high]
    return found


def _in_turn(calls: Sequence[Callable[[int], object]], device: torch.device, seconds: float) -> list[list[float]]:
    """Microseconds of each call. On a CPU fewer rounds than of the operator's alone: a call takes seconds."""
    if device.type == "cuda":
        return time_in_turn(calls, device, seconds)
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call(0)
    end = time.perf_counter() + seconds
    while len(times[0]) < _LEAST or time.perf_counter() < end:
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call(len(taken))
            taken.append((time.perf_counter() - start) * 1e6)
    return times


def _call(model: nn.Module, inputs: dict[str, Any], direction: str) -> Callable[[int], object]:
    if direction == "forward":
        model.eval()
        return torch.no_grad()(lambda _: model(**inputs))
    if direction == "attention":
        return _attention(model.eval(), inputs)
    model.train()

    def step(_: int) -> None:
        torch.manual_seed(0)  # the same dropout, noise and matched points for all
        model(**inputs).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def _attention(model: nn.Module, inputs: dict[str, Any]) -> Callable[[int], object]:
    """The first module with deformable attention, and what it is called with in the model."""
    path = find_places(model)[0].path
    module = model.get_submodule(path.removesuffix(".attn"))  # transformers' layer stands inside
    call: dict[str, Any] = {}
    hook = module.register_forward_pre_hook(
        lambda _, args, named: call.update(args=args, named=named), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return torch.no_grad()(lambda _: module(*call["args"], **call["named"]))


class _Compared:
    """Our operator, which notes how far it is from the reference in float32."""

    def __init__(self) -> None:
        self.largest = 0.0

    def __call__(self, value: Tensor, shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
        ours, plain = (OurOperator(name)(value, shapes, locations, weights) for name in ("auto", "reference"))
        self.largest = max(self.largest, float((ours - plain).abs().max() / plain.abs().max().clamp(min=1e-30)))
        return ours


def _difference(model: nn.Module, inputs: dict[str, Any]) -> float:
    """The largest difference in any call of the operator, as a part of the call's largest number."""
    compared, places = _Compared(), find_places(model)
    for place in places:
        place.put(compared)
    with torch.no_grad():
        model(**inputs)
    for place in places:
        place.restore()
    return compared.largest


def _uneven(model: nn.Module) -> nn.Module:
    """With offsets and weights that differ between queries, as no model's do before it is trained."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("sampling_offsets", "attention_weights")):
            nn.init.normal_(module.weight, std=0.02)
    return model


def _inputs(name: str, height: int, width: int, device: torch.device, *, training: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {"pixel_values": torch.randn(1, 3, height, width, generator=generator).to(device)}
    if name.startswith("grounding_dino"):
        words = torch.randint(2000, 9000, (1, _TOKENS), generator=generator)
        words[:, 0], words[:, 2::3], words[:, -1] = 101, 1012, 102  # phrases between the begin, full stops and the end
        inputs["input_ids"] = words.to(device)
    if not training:
        return inputs
    labels = torch.randint(0, 2, (_BOXES,), generator=generator).to(device)
    if name == "mask2former":
        masks = torch.rand(_BOXES, height // 16, width // 16, generator=generator).round()
        masks = masks.repeat_interleave(16, 1).repeat_interleave(16, 2).to(device)
        return inputs | {"mask_labels": [masks], "class_labels": [labels]}
    boxes = (torch.rand(_BOXES, 4, generator=generator) * 0.3 + 0.2).to(device)
    return inputs | {"labels": [{"class_labels": labels, "boxes": boxes}]}


def _transformers(name: str, head: str = "ForObjectDetection", **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        return getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**settings))

    return make


def _deformable_detr() -> nn.Module:
    import transformers

    config: Any = transformers.ResNetConfig  # whose annotations leave out what its base takes
    backbone = config(out_features=["stage2", "stage3", "stage4"])
    settings: dict[str, Any] = {"use_timm_backbone": False, "backbone": None, "num_labels": _CLASSES}
    return _transformers("DeformableDetr", backbone_config=backbone, **settings)()


# as their libraries configure them, and the size of their images, (height, width)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "deformable_detr": (_deformable_detr, (800, 1066)),
    "grounding_dino": (_transformers("GroundingDino"), (800, 1066)),
    "mask2former": (_transformers("Mask2Former", "ForUniversalSegmentation", num_labels=_CLASSES), (800, 1056)),
    "rt_detr_v2": (_transformers("RTDetrV2", num_labels=_CLASSES), (640, 640)),
    "d_fine": (_transformers("DFine", num_labels=_CLASSES, decoder_n_points=[3, 6, 3]), (640, 640)),
    "deimv2": (_transformers("Deimv2", num_labels=_CLASSES, decoder_n_points=[3, 6, 3]), (640, 640)),
}


def _faster(level: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        ratio, low, high = row[f"{level}_faster"]
        return f"{number(ratio)} ({number(low)} to {number(high)})"

    return cell


def _unless_training(column: Callable[[Row], str]) -> Column:
    # rows of before fused modules were left out of training have it
    return lambda row: "" if row["pass"] == "training" else column(row)


def accelerated_table(rows: Sequence[Row]) -> list[Line]:
    """Milliseconds of each model and pass before and after, and how many times faster."""
    columns: dict[str, Column] = {
        **fields("model", "pass"),
        "image": lambda row: "x".join(map(str, row["image"])),
        "places": "places",
        "transformers, ms": numbers("theirs_us", 1e3),
        "operator, ms": numbers("operator_us", 1e3),
        "fused, ms": _unless_training(numbers("fused_us", 1e3)),
        "operator, times faster": _faster("operator"),
        "fused, times faster": _unless_training(_faster("fused")),
    }
    return lines_of(rows, columns)
