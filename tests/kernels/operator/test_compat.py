"""The call forms of existing models give what ms_deform_attn gives, gradients included."""

import pytest
import torch

from msdeform import ms_deform_attn
from msdeform.kernels.compat import MSDeformAttnFunction, MultiScaleDeformableAttnFunction

SHAPES = torch.tensor([[4, 5], [2, 3]])
STARTS = torch.tensor([0, 20])


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    value = torch.randn(3, 26, 2, 4, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(3, 7, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 7, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    return value, locations, weights


@pytest.mark.parametrize("function", [MSDeformAttnFunction, MultiScaleDeformableAttnFunction])
@pytest.mark.parametrize("im2col_step", [64, 2])  # a batch of 3 is no multiple of either
def test_same_output_and_gradients(function: type[MSDeformAttnFunction], im2col_step: int) -> None:
    value, locations, weights = inputs()
    output = function.apply(value, SHAPES, STARTS, locations, weights, im2col_step)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    assert output.shape == (3, 7, 8)
    assert torch.equal(output, expected)
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, (value, locations, weights), upstream)
    theirs = torch.autograd.grad(expected, (value, locations, weights), upstream)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_starts_that_contradict_the_shapes_are_named() -> None:
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="level_start_index"):
        MSDeformAttnFunction.apply(value, SHAPES, torch.tensor([0, 19]), locations, weights, 64)


def test_half_precision_value_with_float32_locations() -> None:
    value, locations, weights = inputs()
    output = MultiScaleDeformableAttnFunction.apply(
        value.bfloat16(), SHAPES, STARTS, locations.float(), weights.float(), 64
    )
    assert output.dtype is torch.bfloat16


def test_compiles_without_a_break() -> None:
    value, locations, weights = inputs()

    @torch.compile(backend="eager", fullgraph=True)
    def call() -> torch.Tensor:
        return MSDeformAttnFunction.apply(value, ((4, 5), (2, 3)), STARTS, locations, weights, 64)

    torch.testing.assert_close(call(), MSDeformAttnFunction.apply(value, SHAPES, STARTS, locations, weights))
