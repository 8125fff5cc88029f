"""Numbers that are not finite: the values that kernels/contract.py documents, in every backend."""

import pytest
import torch
from torch import Tensor

from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from tests.kernels.backends import ALL

NAN, INF = float("nan"), float("inf")
SIZES = ((4, 5),)


def tensors(device: str, *, Q: int = 2, P: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Samples well inside one level; every weight positive."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 20, 1, 4, generator=generator)
    locations = 0.3 + 0.4 * torch.rand(1, Q, 1, 1, P, 2, generator=generator)
    weights = 0.1 + torch.rand(1, Q, 1, 1, P, generator=generator)
    return value.to(device), locations.to(device), weights.to(device)


def run(where: tuple[str, str], value: Tensor, locations: Tensor, weights: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (value, locations, weights)]
    output = ms_deform_attn(leaves[0], SIZES, *leaves[1:], backend=where[0])
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("coordinate", [0, 1])
def test_a_nan_location(where: tuple[str, str], coordinate: int) -> None:
    value, locations, weights = tensors(where[1])
    clean = run(where, value, locations[:, 1:], weights[:, 1:])
    locations[0, 0, 0, 0, 1, coordinate] = NAN
    output, grad_value, grad_locations, grad_weights = run(where, value, locations, weights)
    assert output[0, 0].isnan().all(), "its query and head are NaN"
    torch.testing.assert_close(output[:, 1:], clean[0])
    # it reaches no pixel; the other sample of its query and the other query do
    other = run(where, value, locations[:, :1, :, :, :1], weights[:, :1, :, :, :1])
    torch.testing.assert_close(grad_value, clean[1] + other[1])
    assert grad_locations[0, 0, 0, 0, 1].isnan().all()
    assert grad_weights[0, 0, 0, 0, 1].isnan()
    assert grad_locations[0, 0, 0, 0, 0].isfinite().all()
    assert grad_locations[0, 1].isfinite().all()
    assert grad_weights[0, 0, 0, 0, 0].isfinite()


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("infinity", [INF, -INF])
@pytest.mark.parametrize("coordinate", [0, 1])
def test_an_infinite_location_lies_outside(where: tuple[str, str], infinity: float, coordinate: int) -> None:
    value, locations, weights = tensors(where[1])
    without = run(where, value, locations[:, :, :, :, :1], weights[:, :, :, :, :1])
    locations[0, :, 0, 0, 1, coordinate] = infinity
    output, grad_value, grad_locations, grad_weights = run(where, value, locations, weights)
    torch.testing.assert_close(output, without[0])
    torch.testing.assert_close(grad_value, without[1])
    assert not grad_locations[0, :, 0, 0, 1].any()
    assert not grad_weights[0, :, 0, 0, 1].any()


@pytest.mark.parametrize("where", ALL)
def test_an_infinite_pixel_is_read_by_its_neighbours_only(where: tuple[str, str]) -> None:
    value, _, _ = tensors(where[1])
    value[0, 1 * 5 + 2] = INF  # row 1, column 2
    x = torch.tensor([2.3, 1.2, 2.0, 3.0, 0.5, 3.5])  # columns; the row is 1.25
    locations = torch.stack([(x + 0.5) / 5, torch.full_like(x, (1.25 + 0.5) / 4)], -1).view(1, 6, 1, 1, 1, 2)
    # columns 2.0 and 3.0 exactly, whatever 5 does to the division
    output = run(where, value, locations.to(where[1]), torch.ones(1, 6, 1, 1, 1, device=where[1]))[0][0]
    assert (output[0] == INF).all()
    assert (output[1] == INF).all()
    assert not output[2].isfinite().any()
    assert output[4].isfinite().all(), "it is not a neighbour"
    assert output[5].isfinite().all(), "it is not a neighbour"


@pytest.mark.parametrize("where", ALL)
def test_a_coefficient_of_zero_times_infinity_is_nan(where: tuple[str, str]) -> None:
    value = torch.randn(1, 16, 1, 4, device=where[1])
    value[0, 1 * 4 + 2] = INF
    centre = torch.tensor([(1 + 0.5) / 4, (1 + 0.5) / 4], device=where[1]).view(1, 1, 1, 1, 1, 2)
    output = ms_deform_attn(value, ((4, 4),), centre, torch.ones(1, 1, 1, 1, 1, device=where[1]), backend=where[0])
    assert output.isnan().all(), "the right neighbour of column 1, with coefficient zero"


@pytest.mark.parametrize("where", ALL)
def test_nan_and_infinite_weights(where: tuple[str, str]) -> None:
    value, locations, weights = tensors(where[1])
    for bad in (NAN, INF, -INF):
        broken = weights.clone()
        broken[0, 0, 0, 0, 1] = bad
        output, _, _, grad_weights = run(where, value, locations, broken)
        assert not output[0, 0].isfinite().any()
        assert output[0, 1].isfinite().all()
        assert grad_weights.isfinite().all(), "a weight's gradient does not depend on weights"


@pytest.mark.parametrize("where", ALL)
def test_logits_follow_softmax(where: tuple[str, str]) -> None:
    value, locations, logits = tensors(where[1], Q=4)
    references = locations[:, :, 0, :, 0]
    offsets = torch.rand(1, 4, 1, 1, 2, 2, generator=torch.Generator().manual_seed(3)).to(where[1])
    logits[0, 0, 0, 0, 1] = NAN
    logits[0, 1, 0, 0, 1] = INF
    logits[0, 2, 0, 0, 1] = -INF
    output = fused_ms_deform_attn(value, SIZES, references, offsets, logits, backend=where[0])
    assert output[0, :2].isnan().all()
    single = fused_ms_deform_attn(
        value, SIZES, references[:, 2:3], offsets[:, 2:3, :, :, :1], logits[:, 2:3, :, :, :1], backend=where[0]
    )
    torch.testing.assert_close(output[:, 2:3], single)
    assert output[0, 3].isfinite().all()


@pytest.mark.parametrize("where", ALL)
def test_offsets_that_are_not_finite(where: tuple[str, str]) -> None:
    value, locations, logits = tensors(where[1], Q=3)
    references = locations[:, :, 0, :, 0]
    offsets = torch.rand(1, 3, 1, 1, 2, 2, generator=torch.Generator().manual_seed(3)).to(where[1])
    offsets[0, 0, 0, 0, 1, 0] = NAN
    offsets[0, 1, 0, 0, 1, 1] = INF
    leaves = [t.clone().requires_grad_() for t in (value, references, offsets, logits)]
    output = fused_ms_deform_attn(leaves[0], SIZES, *leaves[1:], backend=where[0])
    assert output[0, 0].isnan().all()
    assert output[0, 1:].isfinite().all()
    grads = torch.autograd.grad(output, leaves, torch.ones_like(output))
    assert grads[0].isfinite().all(), "a NaN reaches no pixel"
    assert grads[2][0, 0, 0, 0, 1].isnan().all()
    assert not grads[2][0, 1, 0, 0, 1].any()
    assert grads[2][0, 2].isfinite().all()
    assert grads[3][0, 0].isnan().all(), "the softmax spreads it over its query"
    assert grads[3][0, 1:].isfinite().all()
