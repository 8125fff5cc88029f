"""Each model overfits one fixed batch of real images to 0.7 of its first loss in 20 steps: gradients reach its weights
and point downhill, in fp32 and under bf16 autocast, eager and compiled, on each backend.

    OMP_NUM_THREADS=1 python -m pytest tests/train/whole/test_overfit.py -s      # prints the table in overfit.md

The tiny ones in fp32 run everywhere, one of them through the compiler's graphs, forward and backward, without the
code generated for them, which takes minutes to compile; the rest is slow.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from msdeform.kernels import registry
from msdeform.models.families.faster_rcnn import FasterRcnn
from msdeform.models.inference.image_size import Size
from msdeform.models.inference.images import normalise
from msdeform.models.layers.batch import pad_images
from msdeform.models.zoo import create_criterion, create_model
from msdeform.train.data.dataset import Annotations, CocoDetection
from msdeform.train.data.transforms import evaluation_transform

HERE = registry.resolve_for("cpu", backend=registry.AUTO)
STEPS = 20
SHARE = 0.7
# the demo's box layer starts without bounds, and DETR's two classes of weight 1 to 0.1 with a large gradient: clipped
CLIP = 1.0
LEARNING_RATE = 2e-3

TINY: dict[str, Any] = {"enc_layers": 1, "dec_layers": 2, "hidden_dim": 32, "dim_feedforward": 64, "nheads": 2}
# bottleneck blocks, which alone can be dilated, come in full width
WIDE = {**TINY, "backbone": "resnet50", "dilation": True}
SLIM = {**TINY, "backbone": "resnet10_tiny"}
QUERIES = {"num_queries": 20, "dropout": 0.0}
POINTS = {"enc_n_points": 2, "dec_n_points": 2}

# every row of the published table, and the forty-line DETR, as small as it goes
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "faster-rcnn": ("fasterrcnn_tiny", {}),
    "detr": ("detr_r50", {**SLIM, **QUERIES}),
    "detr-dc5": ("detr_r50_dc5", {**WIDE, **QUERIES}),
    "detr-dc5-plus": ("detr_r50_dc5_plus", {**WIDE, **QUERIES}),
    "detr-demo": ("detr_demo", {**SLIM, **QUERIES}),
    "single-scale": ("deformable_detr_r50_single_scale", {**SLIM, **QUERIES, **POINTS}),
    "single-scale-dc5": ("deformable_detr_r50_single_scale_dc5", {**WIDE, **QUERIES, **POINTS}),
    "deformable": ("deformable_detr_r50", {**SLIM, **QUERIES, **POINTS}),
    "deformable-dc5": ("deformable_detr_r50_dc5", {**WIDE, **QUERIES, **POINTS}),
    "refine": ("deformable_detr_r50_refine", {**SLIM, **QUERIES, **POINTS}),
    "two-stage": ("deformable_detr_r50_two_stage", {**SLIM, **QUERIES, **POINTS}),
}
DENSE = ("faster-rcnn", "detr", "detr-dc5", "detr-dc5-plus", "detr-demo")
WIDTHS = tuple(name for name, (_, fields) in MODELS.items() if fields.get("backbone") == "resnet50")


class Batch(NamedTuple):
    images: Tensor
    mask: Tensor
    targets: list[dict[str, Tensor]]
    classes: int


@pytest.fixture(scope="module")
def batch(coco_mini: Path) -> Batch:
    """Two photographs of different shapes, so that there is padding, with all their boxes."""
    annotations = Annotations.load(coco_mini / "annotations" / "instances_train2017.json")
    data = CocoDetection(coco_mini / "train2017", annotations, evaluation_transform(Size(64, 96)))
    samples = [sample for sample in (data[i] for i in range(len(data))) if 3 <= len(sample[1]["labels"]) <= 12]
    wide = next(image for image in samples if image[0].shape[1] < image[0].shape[2])
    tall = next(image for image in samples if image[0].shape[1] > image[0].shape[2])
    images, mask = pad_images([normalise(image) for image, _ in (wide, tall)])
    targets = [{"labels": target["labels"], "boxes": target["boxes"]} for _, target in (wide, tall)]
    return Batch(images, mask, targets, len(annotations.categories))


WIDTHS_OF_CELLS = (16, 9, 9, 8, 10, 10, 7)
HEAD = ("model", "backend", "precision", "mode", "first loss", "last/first", "seconds")


def row(*cells: str) -> None:
    print(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS_OF_CELLS, strict=True)) + " |",
        flush=True,
    )


@pytest.fixture(scope="module", autouse=True)
def heading() -> None:
    print()
    row(*HEAD)
    row(*("-" * width for width in WIDTHS_OF_CELLS))


def overfit(model_name: str, batch: Batch, backend: str, device: str, precision: str, mode: str) -> list[float]:
    """The weighted loss before each of the steps, and after the last."""
    name, fields = MODELS[model_name]
    torch.manual_seed(0)
    own = {} if model_name in DENSE else {"attn_backend": backend}
    model = create_model(name, num_classes=batch.classes, **own, **(fields or {})).to(device).train()
    criterion = create_criterion(model)
    if isinstance(model, FasterRcnn):  # fewer boxes through its wide head: a step takes 16 times less
        model.detector.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    # torchvision counts boxes, which breaks the graph of Faster R-CNN: no fullgraph here
    forward = {
        "eager": lambda: model,
        "compiled": lambda: torch.compile(model),
        "graphs": lambda: torch.compile(model, backend="aot_eager"),
    }[mode]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    inputs = (batch.images.to(device), batch.mask.to(device))
    targets = [{key: value.to(device) for key, value in target.items()} for target in batch.targets]
    losses = []
    for step in range(STEPS + 1):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            outputs = forward(inputs)
        terms = criterion(outputs, targets)
        loss = sum((terms[term] * weight for term, weight in criterion.weight_dict.items()), torch.zeros(()).to(device))
        losses.append(float(loss.detach()))
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
    return losses


def check(model: str, batch: Batch, backend: str, device: str, precision: str, mode: str) -> None:
    torch.compiler.reset()  # what the test before compiled is not kept
    start = time.perf_counter()
    losses = overfit(model, batch, backend, device, precision, mode)
    share = losses[-1] / losses[0]
    shown = "-" if model in DENSE else backend
    took = time.perf_counter() - start
    row(model, shown, precision, mode, f"{losses[0]:.2f}", f"{share:.3f}", f"{took:.1f}")
    assert share <= SHARE, f"{model}: {[round(loss, 3) for loss in losses]}"


@pytest.mark.parametrize("model", [name for name in MODELS if name not in WIDTHS])
def test_each_tiny_model_overfits(model: str, batch: Batch) -> None:
    check(model, batch, HERE, "cpu", "fp32", "eager")


@pytest.mark.slow
def test_a_compiled_model_overfits(batch: Batch) -> None:
    check("single-scale", batch, HERE, "cpu", "fp32", "graphs")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_the_whole_matrix(model: str, precision: str, mode: str, batch: Batch) -> None:
    if (precision, mode) == ("fp32", "eager") and model not in WIDTHS:
        pytest.skip("test_each_tiny_model_overfits runs it")
    check(model, batch, HERE, "cpu", precision, mode)


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_triton_kernels_in_the_interpreter(precision: str, batch: Batch) -> None:
    check("two-stage", batch, "triton", "cpu", precision, "eager")  # references of two coordinates, and of four


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
@pytest.mark.parametrize("model", MODELS)
def test_the_whole_matrix_on_a_gpu(model: str, backend: str, precision: str, mode: str, batch: Batch) -> None:
    if model in DENSE and backend != "reference":
        pytest.skip("has no deformable attention, so no backend")
    check(model, batch, backend, "cuda", precision, mode)
