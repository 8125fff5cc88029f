"""Counted multiply-adds: against the official models' counts, and the operator's formula on every backend."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from msdeform.bench.models import flops
from msdeform.kernels import registry
from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.models.families.faster_rcnn import FasterRcnn
from msdeform.models.zoo import create_model

# 1e9 multiply-adds of the official models, without elementwise work, the mean over all 100 images
OFFICIAL = {
    "detr_r50": 84.6,
    "detr_r50_dc5": 182.6,
    "deformable_detr_r50_single_scale": 79.4,
    "deformable_detr_r50_single_scale_dc5": 130.1,
    "deformable_detr_r50": 172.9,
    "deformable_detr_r50_refine": 173.1,
    "deformable_detr_r50_two_stage": 177.3,
}
# a few sizes that stand for the 100: with these weights the mean of every model is within 0.2% of that over all
FEW = Counter({(800, 1066): 2, (800, 1199): 1})
B, Q, H, D, P, SIZES = 2, 5, 3, 4, 2, ((3, 4), (2, 2))
S, L = sum(h * w for h, w in SIZES), len(SIZES)
EXPECTED = 5 * B * Q * L * P * H * D


def counted(run: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def call(backend: str, device: str, fused: bool) -> None:
    value = torch.zeros(B, S, H, D, device=device)
    points, weights = torch.zeros(B, Q, H, L, P, 2, device=device), torch.zeros(B, Q, H, L, P, device=device)
    if fused:
        references = torch.zeros(B, Q, L, 2, device=device)
        fused_ms_deform_attn(value, SIZES, references, points, weights, backend=backend)
    else:
        ms_deform_attn(value, SIZES, points, weights, backend=backend)


def test_a_hundred_images_of_the_official_sizes() -> None:
    sizes = flops.published_sizes()
    assert sizes.total() == 100
    assert all(min(size) <= 800 and max(size) <= 1333 for size in sizes)
    assert sum(h * w for h, w in sizes.elements()) / 100 == pytest.approx(800 * 1110.6, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_the_counting_backend_counts_the_formula(fused: bool) -> None:
    with flops.counting_backend():
        flops.register_formulas()
        assert counted(lambda: call("counting", "meta", fused)) == EXPECTED
    assert "counting" not in registry.BACKENDS


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_the_operators_of_the_kernels_count_the_same(backend: str, fused: bool) -> None:
    registry.implementation(backend, False)
    flops.register_formulas()
    flops.register_formulas()
    name = f"{backend}_fused_forward" if fused else f"{backend}_forward"
    operator = getattr(torch.ops.msdeform, name, None)
    if operator is None:
        pytest.skip(f"{backend} composes its fused function from PyTorch's operators and its plain one")
    assert operator in flop_registry
    value = torch.empty(B, S, H, D, device="meta")
    points, weights = torch.empty(B, Q, H, L, P, 2, device="meta"), torch.empty(B, Q, H, L, P, device="meta")
    tensors = (torch.empty(B, Q, L, 4, device="meta"), points, weights) if fused else (points, weights)
    flat = [size for pair in SIZES for size in pair]
    assert counted(lambda: operator(value, *tensors, None, flat)) == EXPECTED


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_calls_on_a_device_count_the_same(backend: str, fused: bool) -> None:
    flops.register_formulas()
    assert counted(lambda: call(backend, "cuda", fused)) == EXPECTED


def test_the_reference_samples_what_the_formula_counts() -> None:
    sampled = 0

    def samples(*_: Any, out_shape: Any, **__: Any) -> int:
        nonlocal sampled
        sampled += math.prod(out_shape)  # (B*H, D, P, Q) of each level
        return 0

    formula: Any = {torch.ops.aten.grid_sampler_2d: samples}
    with FlopCounterMode(display=False, custom_mapping=formula):
        call("reference", "cpu", False)
    assert flops.PER_SAMPLE * sampled == EXPECTED


@pytest.mark.parametrize("name", OFFICIAL)
def test_within_a_hundredth_of_the_official_models(name: str) -> None:
    area = sum(h * w for h, w in FEW.elements()) / FEW.total()
    assert area == pytest.approx(800 * 1110.6, rel=2e-3), "a few sizes stand for all"
    assert flops.count(name, FEW)["multiply_adds"] / 1e9 == pytest.approx(OFFICIAL[name], rel=0.01)


def test_a_mean_counts_each_size_as_often_as_it_occurs() -> None:
    small, large = (flops.count("deformable_detr_tiny", Counter([size])) for size in ((64, 96), (128, 96)))
    both = flops.count("deformable_detr_tiny", Counter({(64, 96): 3, (128, 96): 1}))
    assert both["multiply_adds"] == (3 * small["multiply_adds"] + large["multiply_adds"]) / 4
    assert small["multiply_adds"] < large["multiply_adds"]
    assert both["parameters"] == small["parameters"]


@pytest.mark.parametrize("name", ["detr_tiny", "detr_demo", "deformable_detr_tiny", "fasterrcnn_tiny"])
def test_norms_a_gradient_and_a_backend_change_no_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = flops.count(name, Counter([(64, 96)]))["multiply_adds"]
    monkeypatch.setattr(registry, "_setting", "triton")
    with flops.counting_backend(), torch.device("meta"):
        model = create_model(name, backbone_frozen=True, attn_backend="counting")
        assert flops.multiply_adds(model, 64, 96) == expected


@pytest.mark.parametrize("name", ["detr_tiny", "detr_demo"])
def test_a_processor_counts_what_meta_does(name: str) -> None:
    """Attention too, which a processor fuses into an operator that torch's counter does not know."""
    expected = flops.count(name, Counter([(64, 96)]))["multiply_adds"]
    assert flops.multiply_adds(create_model(name, backbone_frozen=True), 64, 96) == expected


def test_faster_rcnn_is_what_runs_but_for_the_proposals() -> None:
    torch.manual_seed(0)
    model = create_model("fasterrcnn_tiny", backbone_frozen=True).eval()
    assert isinstance(model, FasterRcnn)
    roi, seen = model.detector.roi_heads, []
    roi.box_head.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    run = counted(lambda: model(torch.rand(1, 3, 100, 150)))
    assert 0 < seen[0] < 1000
    one = counted(lambda: roi.box_predictor(roi.box_head(torch.zeros(1, 256, 7, 7))))
    result = flops.count("fasterrcnn_tiny", Counter([(100, 150)]))
    assert result["proposals"] == 1000
    assert result["multiply_adds"] == run + (1000 - seen[0]) * one


def test_attention_without_data_says_so() -> None:
    with flops.counting_backend(), pytest.raises(NotImplementedError, match="runs on the meta device only"):
        call("counting", "cpu", False)


def test_reference_points_of_a_box_head_cost_a_matrix_product() -> None:
    """The counter's unit: a linear layer of 4 by 3 over 5 rows is 60 multiply-adds."""
    with torch.device("meta"):
        assert counted(lambda: F.linear(torch.empty(5, 4), torch.empty(3, 4))) == 60
