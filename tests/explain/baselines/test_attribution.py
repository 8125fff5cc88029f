"""Integrated gradients and occlusion: Captum's own numbers, and what they must add up to."""

import gc
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform.explain.baselines import attribution
from msdeform.explain.baselines.attribution import captum_methods, integrated_gradients, makes_queries, occlusion
from msdeform.explain.baselines.black_box import DetectionTrace
from msdeform.explain.core.trace import AttentionTrace
from tests.explain.baselines.seen import HEIGHT, SQUARE, WIDTH, SquareSeen, white
from tests.explain.models import images, uneven
from tests.explain.planted import GAIN, PLANTED, random_board


@pytest.fixture(scope="module", params=PLANTED)
def planted(request: Any) -> AttentionTrace:
    return AttentionTrace(PLANTED[request.param](), random_board(0).image)


def logit(trace: AttentionTrace, pixels: Tensor, query: int, label: int) -> float:
    with torch.no_grad():
        return float(trace.model([pixels])["pred_logits"][0, query, label])


def test_gradients_along_the_way_add_up_to_what_the_target_gains(planted: AttentionTrace) -> None:
    seen = planted.detections(0.5)[0]
    grey = torch.zeros_like(planted.pixels)
    gain = float(planted.y(seen).detach()) - logit(planted, grey, seen.query, seen.label)
    assert gain > 0.9 * GAIN  # the square's whole share of the logit
    found, rest = integrated_gradients(planted, seen)
    assert found.shape == planted.pixels.shape
    assert abs(rest) < 0.01 * gain  # evidence has a kink on the way, which 32 steps meet inexactly
    assert float(found.sum()) - gain == pytest.approx(rest, abs=1e-4)
    rough = integrated_gradients(planted, seen, steps=4)[1]
    assert abs(rough) > abs(rest)


@pytest.mark.parametrize(("target", "name", "column"), [("class", "pred_logits", 1), ("h", "pred_boxes", 3)])
@pytest.mark.parametrize("family", ["detr", "deformable"])
def test_integrated_gradients_are_captums(family: str, target: str, name: str, column: int) -> None:
    model = uneven(family)
    trace = AttentionTrace(model, images((64, 64))[0], size=64)

    def y(pixels: Tensor) -> Tensor:
        return model((pixels, torch.zeros(pixels[:, 0].shape, dtype=torch.bool)))[name][:, 3, column]

    expected = captum_methods().IntegratedGradients(y).attribute(trace.pixels[None], baselines=0, n_steps=8)[0]
    found, _ = integrated_gradients(trace, trace.prediction(3, 1), target, steps=8)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)
    assert found.abs().max() > 1e-5


def test_where_queries_are_made_of_the_image_the_score_is_followed() -> None:
    model = uneven("two-stage")
    assert makes_queries(model)
    assert not makes_queries(uneven("deformable"))
    trace = AttentionTrace(model, images((64, 64))[0], size=64)
    found, _ = integrated_gradients(trace, trace.detections(0.0)[0], steps=2)
    assert found.abs().max() > 0
    with pytest.raises(ValueError, match="DeformableDetr makes its queries of the image.*; expected class, got 'w'"):
        integrated_gradients(trace, trace.prediction(0), "w")


def test_occlusion_is_captums_and_shares_its_passes() -> None:
    model = SquareSeen()
    trace = DetectionTrace(model, white())

    def score(pixels: Tensor) -> Tensor:
        return torch.stack([one["scores"][0] for one in model(list(pixels))["detections"]]).detach()

    attr, seen = captum_methods(), trace.prediction(0)
    how = {"sliding_window_shapes": (3, 6, 6), "strides": (3, 3, 3), "baselines": 0}
    expected = attr.Occlusion(score).attribute(trace.pixels[None], **how)[0]
    before = model.passes
    found = occlusion(trace, seen)
    cost = model.passes - before
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert cost == 1 + 15 * 23  # windows of an eighth of 48 pixels, half of it apart, and the image itself
    assert torch.equal(occlusion(trace, seen), found)
    assert model.passes == before + cost
    # of a window in the square all of it counts, of one beside it nothing
    x0, y0, x1, y1 = SQUARE
    assert float(found[0, y0 + 6, x0 + 6]) == pytest.approx(36 / (x1 - x0) / (y1 - y0), rel=1e-4)
    assert float(found[0, 0, 0]) == float(found[0, HEIGHT - 1, WIDTH - 1]) == 0
    left = weakref.ref(trace)
    assert trace in attribution._ANSWERS
    del trace
    gc.collect()
    assert left() is None


def test_what_to_do_without_captum(planted: AttentionTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    for method in (integrated_gradients, occlusion):
        with pytest.raises(ImportError, match=r"need the package captum, which is not installed: pip install 'msdefo"):
            method(planted, planted.prediction(0))
