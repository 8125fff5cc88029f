"""The reference against an independent oracle, and its derivatives."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.diagnostics.checks import Case, make_inputs
from msdeform.kernels.registry import use_backend
from tests.kernels.oracle import literal, literal_fused

CASES = [
    Case(B=2, Q=3, H=2, D=3, P=2, sizes=((4, 5), (2, 3)), dtype=torch.float64, coordinates=c, seed=s)
    for c in (None, 2, 4)
    for s in (0, 1)
] + [Case(B=1, Q=2, H=1, D=1, P=1, sizes=((1, 1),), dtype=torch.float64, spread=0.5)]


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    """Not what auto takes, which is `cpu` where llvmlite is installed."""
    with use_backend("reference"):
        yield


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


NOT_FINITE = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38]


def test_grid_sample_is_given_coordinates_near_the_level_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes of others depends on the device and on its code path: here, on one CPU, they might pass."""
    grids: list[Tensor] = []
    grid_sample: Callable[..., Tensor] = F.grid_sample

    def record(level_map: Tensor, grid: Tensor, **options: object) -> Tensor:
        grids.append(grid)
        return grid_sample(level_map, grid, **options)

    monkeypatch.setattr(F, "grid_sample", record)
    x = torch.tensor([*NOT_FINITE, 0.5])
    locations = torch.cartesian_prod(x, x).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(locations.shape[:-1])
    ms_deform_attn(torch.randn(1, 12, 1, 4), ((3, 4),), locations, weights, backend="reference")
    assert len(grids) == 1
    assert (grids[0].abs() <= 5).all()


@pytest.mark.parametrize("other", [0.5, 7.0, *NOT_FINITE])
@pytest.mark.parametrize("coordinate", [0, 1])
def test_gradients_at_a_nan_are_nan_wherever_the_other_coordinate_is(coordinate: int, other: float) -> None:
    location = torch.full((1, 1, 1, 1, 1, 2), other)
    location[..., coordinate] = float("nan")
    tensors = [t.requires_grad_() for t in (torch.randn(1, 12, 1, 4), location, torch.ones(1, 1, 1, 1, 1))]
    output = ms_deform_attn(tensors[0], ((3, 4),), *tensors[1:], backend="reference")
    assert output.isnan().all()
    grad_value, grad_location, grad_weight = torch.autograd.grad(output.sum(), tensors)
    assert not grad_value.any(), "it reaches no pixel"
    assert grad_location.isnan().all()
    assert grad_weight.isnan().all()


@pytest.mark.parametrize("far", [-2.5, 3.5, 1e4, -3e38, float("inf")])
def test_a_level_of_one_pixel_is_left_by_locations_far_outside(far: float) -> None:
    """Where they are moved to is outside the smallest level too, and not on the border of what it reaches."""
    value = torch.full((1, 1, 1, 1), float("inf"), requires_grad=True)
    location = torch.tensor([far, 0.5]).view(1, 1, 1, 1, 1, 2).requires_grad_()
    output = ms_deform_attn(value, ((1, 1),), location, torch.ones(1, 1, 1, 1, 1), backend="reference")
    assert output.item() == 0
    for gradient in torch.autograd.grad(output.sum(), (value, location)):
        assert not gradient.any()
