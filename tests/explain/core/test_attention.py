"""Deformable attention is sparse attention: the matrix, its coefficients, and its gradient."""

import pytest
import torch
from torch import Tensor

from msdeform.explain.core.attention import applied, corner_products, corners, dense_values, point_matrix, times
from msdeform.kernels.api import ms_deform_attn

SHAPES = ((5, 7), (3, 4), (1, 2))
S = sum(h * w for h, w in SHAPES)
Q, H, D, L, P = 6, 2, 3, 3, 4


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Value (1, S, H, D), locations (1, Q, H, L, P, 2), some outside, and weights (1, Q, H, L, P), in float64."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return rand(1, S, H, D) - 0.5, rand(1, Q, H, L, P, 2) * 1.6 - 0.3, rand(1, Q, H, L, P)


def matrix(locations: Tensor, weights: Tensor) -> Tensor:
    """A (H, Q, S)."""
    index, coefficient = corners(locations[0], SHAPES)
    amount = (coefficient * weights[0][..., None]).flatten(2)
    return amount.new_zeros(Q, H, S).scatter_add(2, index.flatten(2).long(), amount).transpose(0, 1)


def test_the_matrix_times_the_value_is_the_operator() -> None:
    value, locations, weights = drawn()
    expected = ms_deform_attn(value, SHAPES, locations, weights, backend="reference")
    got = torch.einsum("hqs,shd->qhd", matrix(locations, weights), value[0]).flatten(1)
    assert torch.allclose(got, expected[0], rtol=0, atol=1e-12)


def test_the_gradient_of_the_weights_is_the_operators() -> None:
    value, locations, weights = drawn()
    weights.requires_grad_()
    grad = torch.randn(1, Q, H * D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = ms_deform_attn(value, SHAPES, locations, weights, backend="reference")
    (expected,) = torch.autograd.grad(out, weights, grad)
    index, coefficient = corners(locations[0], SHAPES)
    products = corner_products(value[0], grad[0].view(Q, H, D), index.flatten(2)).view(index.shape)
    assert torch.allclose((products * coefficient).sum(-1), expected[0], rtol=0, atol=1e-12)


def test_products_are_the_gradient_of_the_matrix() -> None:
    value, locations, weights = drawn()
    grad = torch.randn(Q, H, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    A = matrix(locations, weights).requires_grad_()
    (expected,) = torch.autograd.grad(torch.einsum("hqs,shd->qhd", A, value[0]), A, grad)  # (H, Q, S)
    index, _ = corners(locations[0], SHAPES)
    flat = index.flatten(2)
    got = corner_products(value[0], grad, flat)
    assert torch.allclose(got, expected.transpose(0, 1).gather(2, flat.long()), rtol=0, atol=1e-12)


def test_on_pixel_centres_one_pixel_has_it_all() -> None:
    h, w = SHAPES[0]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    centres = torch.stack([(x + 0.5) / w, (y + 0.5) / h], -1).double().view(-1, 1, 1, 2)  # (S, L, P, 2)
    index, coefficient = corners(centres, (SHAPES[0],))
    own = (index.squeeze() == torch.arange(h * w)[:, None]) * coefficient.squeeze()
    assert torch.allclose(own.sum(-1), torch.ones(h * w).double(), atol=1e-12)


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -float("inf"), 1e30, -3.0, 4.0])
def test_outside_and_not_finite_have_no_share(place: float) -> None:
    locations = torch.full((1, 1, 2), place, dtype=torch.float64)
    index, coefficient = corners(locations, ((5, 7),))
    assert (coefficient == 0).all()
    assert ((index >= 0) & (index < 35)).all()


@pytest.mark.parametrize("slopes", [None, "points", "pixels"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_operator_multiplies_by_the_matrix_from_both_sides(slopes: str | None, padded: bool) -> None:
    _, locations, weights = drawn()
    generator = torch.Generator().manual_seed(2)
    index, coefficient = corners(locations[0], SHAPES)
    given, share = None, torch.ones(1, dtype=torch.float64)
    if slopes:
        given = torch.randn(coefficient.shape, generator=generator, dtype=torch.float64)
        given = given if slopes == "pixels" else given[..., 0]
        share = given.clamp(min=0) if slopes == "pixels" else given.clamp(min=0)[..., None]
    amount = (coefficient * weights[0][..., None] * share).flatten(2)
    expected = amount.new_zeros(Q, H, S).scatter_add(2, index.flatten(2).long(), amount).mean(1)
    mask = torch.arange(S) % 3 == 0 if padded else None
    expected = expected if mask is None else expected.masked_fill(mask, 0)
    made = point_matrix(weights[0], locations[0], SHAPES, mask, given)
    columns = torch.randn(S, 4, generator=generator, dtype=torch.float64)
    rows = torch.randn(2, 5, Q, generator=generator, dtype=torch.float64)
    assert torch.allclose(made @ columns, expected @ columns, rtol=0, atol=1e-12)
    assert torch.allclose(times(rows, made), rows @ expected, rtol=0, atol=1e-12)
    assert torch.allclose(times(rows[0, 0], made), rows[0, 0] @ expected, rtol=0, atol=1e-12)
    assert torch.allclose(applied(made, columns[:, 0]), expected @ columns[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("separate", [False, True])
def test_probabilities_weigh_dense_values(separate: bool) -> None:
    torch.manual_seed(0)
    extra = {"kdim": 8, "vdim": 12} if separate else {}
    attention = torch.nn.MultiheadAttention(16, 4, batch_first=True, **extra).double().eval()
    query = torch.randn(2, 5, 16, dtype=torch.float64)
    key = torch.randn(2, 7, 8 if separate else 16, dtype=torch.float64)
    value = torch.randn(2, 7, 12 if separate else 16, dtype=torch.float64)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = True
    answer, expected = attention(query, key, value, key_padding_mask=mask, average_attn_weights=False)
    out = torch.einsum("bhqs,bshd->bqhd", expected, dense_values(attention, value)).flatten(2)
    assert torch.allclose(attention.out_proj(out), answer, atol=1e-12)
