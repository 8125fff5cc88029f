"""D-RISE against what its expectation is known to be."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from msdeform.explain.baselines import drise as module
from msdeform.explain.baselines.black_box import DetectionTrace
from msdeform.explain.baselines.drise import GRID, OPEN, GridMasks, answers, drise
from msdeform.explain.quality.measures import inside, pointing
from tests.explain.baselines.seen import HEIGHT, SQUARE, WIDTH, SquareSeen, white


def spline(distance: Tensor) -> Tensor:
    """How alike a mask is in two places this many cells apart: two triangles' overlap, a cubic B-spline (N, N)."""
    x = distance.abs()
    return torch.where(x < 1, 2 / 3 - x**2 + x**3 / 2, (2 - x).clamp(min=0) ** 3 / 6)


def expected() -> Tensor:
    """The map's expectation for a score that is the share of SQUARE that is seen, (HEIGHT, WIDTH)."""
    cell, sides = HEIGHT / GRID, []
    for length, (low, high) in ((HEIGHT, SQUARE[1::2]), (WIDTH, SQUARE[::2])):
        place = torch.arange(length)
        sides.append(spline((place[:, None] - place[None, low:high]) / cell).mean(1))
    # the covariance of two places, p (1 - p) times their likeness, over p
    return (1 - OPEN) * sides[0][:, None] * sides[1]


def test_masks_are_what_their_expectation_says() -> None:
    masks = GridMasks.draw(3000, HEIGHT, WIDTH)
    shown = masks.on(HEIGHT, WIDTH)
    assert shown.shape == (3000, HEIGHT, WIDTH)
    assert 0 <= float(shown.min()) < 0.01
    assert 0.99 < float(shown.max()) <= 1
    assert (shown.mean(0) - OPEN).abs().max() < 0.04
    one, other = shown[:, 20, 30], shown[:, 20, 33]  # half a cell apart
    covariance = ((one - one.mean()) * (other - other.mean())).mean()
    likeness = OPEN * (1 - OPEN) * 2 / 3 * spline(torch.tensor(3 / 6))
    assert float(covariance) == pytest.approx(float(likeness), rel=0.08)
    torch.testing.assert_close(masks.on(HEIGHT, WIDTH, slice(7, 9)), shown[7:9])
    assert torch.equal(GridMasks.draw(5, HEIGHT, WIDTH, 3).nodes, GridMasks.draw(5, HEIGHT, WIDTH, 3).nodes)
    assert not torch.equal(GridMasks.draw(5, HEIGHT, WIDTH, 3).nodes, GridMasks.draw(5, HEIGHT, WIDTH, 4).nodes)


def test_the_weighed_sum_is_that_of_the_masks() -> None:
    masks, weights = GridMasks.draw(130, 20, 33), torch.randn(130, generator=torch.Generator().manual_seed(0))
    by_hand = (weights[:, None, None] * masks.on(20, 33)).sum(0)
    torch.testing.assert_close(masks.weighed(weights, 20, 33), by_hand, rtol=0, atol=1e-5)


def test_the_map_of_a_square_converges_to_what_is_worked_out_by_hand() -> None:
    trace, wanted = DetectionTrace(SquareSeen(), white()), expected()
    (prediction,) = trace.detections(0.5)
    assert prediction.score == pytest.approx(1)
    assert prediction.box == pytest.approx(SQUARE)
    errors = []
    for samples in (250, 4000):
        heat = drise(trace, prediction, samples=samples)
        errors.append(float((heat - wanted).abs().max() / wanted.max()))
        assert heat.dtype == torch.float32
        assert pointing(heat.numpy(), inside(SQUARE, (HEIGHT, WIDTH))) == 1
    # by the root of 16 fewer than that, as the noise of a mean
    assert errors[1] < 0.12
    assert errors[1] < errors[0] / 2


def test_an_image_where_nothing_is_left_counts_as_zero() -> None:
    trace = DetectionTrace(SquareSeen(least=0.5), white())
    known = answers(trace, 64)
    scores = known.probabilities[..., 1].amax(1)
    assert 5 < int((scores == 0).sum()) < 60
    heat = drise(trace, trace.prediction(0), samples=64)
    assert pointing(heat.numpy(), inside(SQUARE, (HEIGHT, WIDTH))) == 1


def test_detections_share_passes_which_are_forgotten_with_the_trace() -> None:
    model, seen = SquareSeen(), []
    trace = DetectionTrace(model, white())
    before = model.passes
    first = drise(trace, trace.prediction(0), samples=40)
    assert model.passes == before + 40
    assert torch.equal(drise(trace, trace.prediction(0), samples=40), first)
    assert model.passes == before + 40
    answers(trace, 40, seed=1, advance=lambda: seen.append(1))
    assert model.passes == before + 80
    assert len(seen) == 40
    left, held = weakref.ref(trace), len(module._ANSWERS)
    del trace
    gc.collect()
    assert left() is None
    assert len(module._ANSWERS) == held - 1


def test_one_mask_is_no_sample() -> None:
    trace = DetectionTrace(SquareSeen(), white())
    with pytest.raises(ValueError, match="samples: expected at least 2 masked images, got 1"):
        drise(trace, trace.prediction(0), samples=1)
