"""Numbers that are not finite, one in each input, inside and outside the levels: the CPU backend has the finite
elements that kernels/contract.py says, in the output and in every gradient."""

import pytest
import torch
from torch import Tensor

from msdeform.kernels.diagnostics.checks import Case, evaluate, make_inputs
from msdeform.kernels.pytorch.reference import extents, locate
from tests.kernels.oracle import literal

NAN, INF = float("nan"), float("inf")
CASE = Case(B=1, Q=4, H=2, D=5, P=3, sizes=((3, 4), (1, 5), (4, 1), (1, 1)), spread=2.0)


def literal_gradients(case: Case, tensors: list[Tensor], grad_output: Tensor) -> dict[str, Tensor]:
    """What the contract says word for word, for finite locations: only neighbours inside the level take part. The
    reference also multiplies zeros that stand for those outside, by a weight or gradient that may be infinite."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    locations, weights = leaves[-2:]
    if case.coordinates is not None:
        locations = locate(leaves[1], leaves[2], extents(case.sizes, leaves[1].device, torch.float32))
        weights = leaves[3].flatten(3).softmax(-1).view(leaves[3].shape)
    output = literal(leaves[0], case.sizes, locations, weights)
    gradients = torch.autograd.grad(output, leaves, grad_output)
    return dict(zip(case.names, gradients, strict=True))


def differences(case: Case, tensors: list[Tensor], grad_output: Tensor, *, kinks: bool = False) -> list[str]:
    """The quantities that are finite in other places than they should be, or differ where they are finite."""
    expected = evaluate(case, tensors, grad_output, "reference")
    if not kinks and all(tensor.isfinite().all() for tensor in tensors[1:-1]):
        # but the output: a weight that is not finite times a sample without neighbours is NaN
        expected |= literal_gradients(case, tensors, grad_output)
    found = evaluate(case, tensors, grad_output, "cpu")
    return [
        name
        for name, want in expected.items()
        if not torch.equal(found[name].isfinite(), want.isfinite())
        or not torch.allclose(
            found[name].nan_to_num(0.0, 0.0, 0.0), want.nan_to_num(0.0, 0.0, 0.0), rtol=1e-3, atol=1e-3
        )
    ]


@pytest.mark.parametrize("coordinates", [None, 2, 4])
@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
def test_one_number_in_each_input(coordinates: int | None, number: float) -> None:
    case = Case(**{**vars(CASE), "coordinates": coordinates})
    clean = make_inputs(case)
    problems = []
    for argument in range(len(clean) + 1):
        for at in range(6):
            tensors = [tensor.clone() for tensor in clean]
            grad_output = torch.ones(1, case.Q, case.H * case.D)
            broken = [*tensors, grad_output][argument].view(-1)
            broken[at * broken.numel() // 6 + at % 2] = number
            for name in differences(case, tensors, grad_output):
                problems.append(f"{(*case.names, 'grad_output')[argument]} at {at}: {name}")
    assert not problems


@pytest.mark.parametrize("coordinates", [None, 2, 4])
def test_two_at_once(coordinates: int | None) -> None:
    """A number in the value and one in another input of the same query."""
    case = Case(**{**vars(CASE), "H": 1, "coordinates": coordinates})
    clean = make_inputs(case)
    problems = []
    for argument in range(1, len(clean) + 1):
        for in_value in (NAN, INF):
            for number in (NAN, INF, -INF):
                tensors = [tensor.clone() for tensor in clean]
                grad_output = torch.ones(1, case.Q, case.D)
                tensors[0][0, ::3, 0, 2] = in_value
                broken = [*tensors, grad_output][argument][0, 1:3].view(2, -1)
                broken[:, 1] = number
                for name in differences(case, tensors, grad_output):
                    problems.append(f"{in_value} and {(*case.names, 'grad_output')[argument]} {number}: {name}")
    assert not problems


@pytest.mark.parametrize("level", range(4))
def test_on_and_beside_each_border(level: int) -> None:
    """An infinite pixel at every corner of a level, and samples on pixel centres and around them."""
    h, w = CASE.sizes[level]
    case = Case(B=1, Q=121, H=1, D=2, P=1, sizes=((h, w),), coordinates=None)
    x = (torch.linspace(-1.5, w + 0.5, 11) + 0.5) / w
    y = (torch.linspace(-1.5, h + 0.5, 11) + 0.5) / h
    locations = torch.cartesian_prod(x, y).view(1, 121, 1, 1, 1, 2)
    for pixel in {0, w - 1, (h - 1) * w, h * w - 1}:
        value = torch.randn(1, h * w, 1, 2, generator=torch.Generator().manual_seed(0))
        value[0, pixel] = INF
        tensors = [value, locations, torch.ones(1, 121, 1, 1, 1)]
        assert not differences(case, tensors, torch.ones(1, 121, 2), kinks=True), pixel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_nan_in_16_bits(dtype: torch.dtype) -> None:
    """A NaN stays one when it is rounded, and the largest numbers become infinite."""
    case = Case(**{**vars(CASE), "dtype": dtype, "coordinates": None})
    value, locations, weights = make_inputs(case)
    grad_output = torch.ones(1, case.Q, case.H * case.D, dtype=dtype)
    assert evaluate(case, [value, locations, weights * NAN], grad_output, "cpu")["output"].isnan().all()
    largest = torch.full_like(value, torch.finfo(dtype).max)
    middle = torch.full_like(locations, 0.5)
    output = evaluate(case, [largest, middle, torch.ones_like(weights)], grad_output, "cpu")["output"]
    assert (output == INF).all()
