"""The reference against an independent oracle, and its derivatives."""

import pytest
import torch

from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.verify import Case, make_inputs
from tests.kernels.oracle import literal, literal_fused

CASES = [
    Case(B=2, Q=3, H=2, D=3, P=2, sizes=((4, 5), (2, 3)), dtype=torch.float64, coordinates=c, seed=s)
    for c in (None, 2, 4)
    for s in (0, 1)
] + [Case(B=1, Q=2, H=1, D=1, P=1, sizes=((1, 1),), dtype=torch.float64, spread=0.5)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.coordinates}-{c.seed}")
def test_reference_equals_the_literal_sum(case: Case) -> None:
    tensors = [t.requires_grad_() for t in make_inputs(case)]
    if case.coordinates is None:
        result, truth = (
            ms_deform_attn(tensors[0], case.sizes, *tensors[1:]),
            literal(tensors[0], case.sizes, *tensors[1:]),
        )
    else:
        result = fused_ms_deform_attn(tensors[0], case.sizes, *tensors[1:])
        truth = literal_fused(tensors[0], case.sizes, *tensors[1:])
    torch.testing.assert_close(result, truth, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(truth)
    for got, want in zip(torch.autograd.grad(result, tensors, g), torch.autograd.grad(truth, tensors, g), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_gradcheck_of_the_reference(coordinates: int) -> None:
    case = Case(B=1, Q=2, H=1, D=2, P=2, sizes=((3, 4), (2, 2)), dtype=torch.float64, coordinates=coordinates)
    value, *rest = (t.requires_grad_() for t in make_inputs(case))
    assert torch.autograd.gradcheck(
        lambda value, *rest: fused_ms_deform_attn(value, case.sizes, *rest, backend="reference"), (value, *rest)
    )


def test_one_sample_on_a_pixel_centre_reads_that_pixel() -> None:
    value = torch.randn(1, 12, 1, 4, dtype=torch.float64)
    location = torch.tensor([(2 + 0.5) / 4, (1 + 0.5) / 3], dtype=torch.float64).view(1, 1, 1, 1, 1, 2)
    output = ms_deform_attn(value, ((3, 4),), location, torch.ones(1, 1, 1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(output[0, 0], value[0, 1 * 4 + 2, 0], rtol=1e-14, atol=1e-14)


def test_low_precision_values_are_accumulated_in_float32() -> None:
    # 1024 samples of one pixel with weight 1: bfloat16 accumulation would stop growing at 256
    value = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    locations = torch.full((1, 1, 1, 1, 1024, 2), 0.5)
    assert ms_deform_attn(value, ((1, 1),), locations, torch.ones(1, 1, 1, 1, 1024)).item() == 1024


def test_sizes_as_tensor_and_as_ints_agree() -> None:
    case = Case(dtype=torch.float64, coordinates=None)
    value, locations, weights = make_inputs(case)
    as_ints = ms_deform_attn(value, case.sizes, locations, weights)
    for dtype in (torch.int64, torch.int32):
        assert torch.equal(as_ints, ms_deform_attn(value, torch.tensor(case.sizes, dtype=dtype), locations, weights))
