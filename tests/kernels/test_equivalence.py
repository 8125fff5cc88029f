"""Every backend against the float64 truth: both functions, output and every gradient, over dtypes and odd shapes.

The bounds are those of kernels/diagnostics/tolerances.py. Uninitialised memory is filled with NaN, so that an element
which no program writes is seen.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.diagnostics.checks import Case, check_case, evaluate, make_inputs
from msdeform.kernels.registry import implementation
from tests.kernels.backends import ALL, OPERATORS

FUNCTIONS = [None, 2, 4]
BASE = Case(B=1, Q=5, H=2, D=8, P=2, sizes=((5, 6), (2, 3)))
ODD = {
    "D=1": replace(BASE, D=1),
    "D=30": replace(BASE, D=30),
    "D=64": replace(BASE, D=64),
    "D=71": replace(BASE, D=71, H=1),
    "D=128": replace(BASE, D=128, H=1),
    "D=256": replace(BASE, D=256, H=1),
    "one query": replace(BASE, B=2, Q=1),
    "one level": replace(BASE, sizes=((4, 5),)),
    "P=1": replace(BASE, P=1),
    "P=16": replace(BASE, P=16, H=1, sizes=((3, 4),)),
    "8 levels": replace(BASE, P=1, H=1, sizes=tuple((1 + level, 2) for level in range(8))),
    "L*P=15": replace(BASE, P=5, H=1, sizes=((3, 4), (2, 2), (1, 3))),
    "S larger than Q": replace(BASE, Q=3, H=1, sizes=((40, 50), (9, 8))),
    "S smaller than Q": replace(BASE, Q=70, H=1, sizes=((2, 2),)),
    "one pixel": replace(BASE, sizes=((1, 1),), spread=0.4),
    "1x1 levels": replace(BASE, sizes=((1, 1), (1, 1)), spread=0.4),
    "rows and columns": replace(BASE, sizes=((1, 7), (6, 1))),
    "mostly outside": replace(BASE, spread=12.0),
}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every uninitialised float allocation is NaN."""
    new_empty = Tensor.new_empty

    def poisoned(self: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        tensor = new_empty(self, *arguments, **keywords)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    return


def assert_within_bounds(case: Case, where: tuple[str, str]) -> None:
    backend, device = where
    breaches = [finding for finding in check_case(case, [backend], device) if not finding.comparison.ok]
    assert not breaches, (case.describe(), breaches)


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("coordinates", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(where: tuple[str, str], coordinates: int | None, dtype: torch.dtype) -> None:
    assert_within_bounds(replace(BASE, D=32, dtype=dtype, coordinates=coordinates), where)


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("coordinates", FUNCTIONS)
@pytest.mark.parametrize(
    ("dtype", "small"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
    ],
    ids=str,
)
def test_mixed_dtypes(where: tuple[str, str], coordinates: int | None, dtype: torch.dtype, small: torch.dtype) -> None:
    assert_within_bounds(replace(BASE, H=1, dtype=dtype, small_dtype=small, coordinates=coordinates), where)


def each_with_one(things: Iterable[Any]) -> list[Any]:
    """Pairs of a thing and a function's coordinates: of each thing one is quick, each function in its turn."""
    return [
        pytest.param(thing, coordinates, marks=[] if (i + j) % len(FUNCTIONS) == 0 else [pytest.mark.slow])
        for i, thing in enumerate(things)
        for j, coordinates in enumerate(FUNCTIONS)
    ]


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize(("name", "coordinates"), each_with_one(ODD))
def test_odd_shapes(where: tuple[str, str], coordinates: int | None, name: str) -> None:
    assert_within_bounds(replace(ODD[name], coordinates=coordinates), where)


@pytest.mark.parametrize("where", ALL)
def test_logits_beyond_what_an_exponential_holds(where: tuple[str, str]) -> None:
    """The largest first, last and within: what is subtracted before exp must be the largest of all points."""
    backend, device = where
    case = replace(BASE, Q=3, H=1, D=32, P=4, sizes=((5, 6), (2, 3), (2, 2)), coordinates=2)
    *inputs, logits = make_inputs(case, device)
    falling = torch.linspace(150.0, -150.0, 12, device=device)
    inputs.append(torch.stack([falling, -falling, falling.roll(5)]).view_as(logits))

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        output = fused_ms_deform_attn(leaves[0], case.sizes, *leaves[1:], backend=backend)
        return [output.detach().double(), *(g.double() for g in torch.autograd.grad(output.sum(), leaves))]

    torch.testing.assert_close(run(backend, torch.float32), run("reference", torch.float64), rtol=1e-4, atol=1e-4)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Calls of any small shape, dtype, function and spread of points."""
    level = st.tuples(st.integers(1, 9), st.integers(1, 9))
    return Case(
        B=draw(st.integers(1, 2)),
        Q=draw(st.integers(1, 40)),
        H=draw(st.integers(1, 2)),
        D=draw(st.integers(1, 80)),
        P=draw(st.integers(1, 4)),
        sizes=tuple(draw(st.lists(level, min_size=1, max_size=3))),
        dtype=draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])),
        coordinates=draw(st.sampled_from(FUNCTIONS)),
        spread=draw(st.sampled_from([0.5, 3.0, 20.0])),
        seed=draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("where", OPERATORS)
@hypothesis.given(case=cases())
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
def test_drawn_shapes(where: tuple[str, str], case: Case) -> None:
    assert_within_bounds(case, where)


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("coordinates", FUNCTIONS)
@pytest.mark.parametrize(("B", "Q"), [(0, 5), (2, 0), (0, 0)])
def test_empty_calls(where: tuple[str, str], coordinates: int | None, B: int, Q: int) -> None:
    backend, device = where
    case = replace(BASE, B=B, Q=Q, coordinates=coordinates)
    tensors = make_inputs(case, device)
    results = evaluate(case, tensors, torch.ones(B, Q, case.H * case.D, device=device), backend)
    assert results["output"].shape == (B, Q, case.H * case.D)
    for name, tensor in zip(case.names, tensors, strict=True):
        assert results[name].shape == tensor.shape
        assert not results[name].any()


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("coordinates", FUNCTIONS)
def test_strided_inputs(where: tuple[str, str], coordinates: int | None) -> None:
    """Views that a model passes: slices of a joint projection, a transposed value, an expanded gradient."""
    backend, device = where
    case = replace(BASE, B=2, D=8, coordinates=coordinates)
    dense = make_inputs(case, device)
    grad_output = torch.ones(1, 1, 1, device=device).expand(case.B, case.Q, case.H * case.D)

    def scatter(tensor: Tensor) -> Tensor:
        """The same numbers as a slice along the queries and heads of something larger."""
        wide = torch.full((tensor.shape[0], tensor.shape[1] * 2, tensor.shape[2] + 1, *tensor.shape[3:]), float("nan"))
        wide = wide.to(tensor)
        wide[:, ::2, 1:] = tensor
        return wide[:, ::2, 1:]

    strided = [scatter(t) for t in dense]
    strided[0] = dense[0].transpose(1, 2).contiguous().transpose(1, 2)  # head-major
    assert not any(t.is_contiguous() for t in strided)
    want, got = (evaluate(case, t, grad_output, backend) for t in (dense, strided))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-6)
    channels_apart = [dense[0].transpose(1, 3).contiguous().transpose(1, 3), *strided[1:]]
    got = evaluate(case, channels_apart, grad_output, backend)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("where", ALL)
def test_borders_exactly(where: tuple[str, str]) -> None:
    """Samples on pixel centres, on the border, half outside, just outside and far outside, in sizes where float32 is
    exact: then even the location's one-sided gradient at a kink has one value."""
    backend, device = where
    h, w = 4, 8
    pixels = torch.tensor([-1.0, -0.5, 0.0, 3.0, w - 1.0, w - 0.5, float(w), w + 1.0, -1e6, 1e6, 1e30, -1e30])
    x = (pixels + 0.5) / w
    locations = torch.cartesian_prod(x, torch.tensor([-1.0, 0.0, 1.5, h - 1.0, h - 0.5, float(h)]).add(0.5) / h)
    Q = locations.shape[0]
    value = torch.randn(1, h * w, 1, 8, generator=torch.Generator().manual_seed(0))
    tensors = [t.to(device) for t in (value, locations.view(1, Q, 1, 1, 1, 2), torch.ones(1, Q, 1, 1, 1))]
    case = Case(B=1, Q=Q, H=1, D=8, P=1, sizes=((h, w),), coordinates=None)
    grad_output = torch.randn(1, Q, 8, generator=torch.Generator().manual_seed(1)).to(device)
    truth = evaluate(case, [t.double().cpu() for t in tensors], grad_output.double().cpu(), "reference")
    results = evaluate(case, tensors, grad_output, backend)
    for name, result in results.items():
        torch.testing.assert_close(
            result.double().cpu(), truth[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("where", OPERATORS)
def test_only_the_wanted_gradients_are_computed(where: tuple[str, str]) -> None:
    backend, device = where
    case = replace(BASE, H=1, coordinates=4)
    tensors = make_inputs(case, device)
    grad_output = torch.randn(1, case.Q, case.D, generator=torch.Generator().manual_seed(1)).to(device)
    every = evaluate(case, tensors, grad_output, backend)
    for wanted, name in enumerate(case.names):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        fused_ms_deform_attn(leaves[0], case.sizes, *leaves[1:], backend=backend).backward(grad_output)
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(4)]
        torch.testing.assert_close(leaves[wanted].grad, every[name], rtol=1e-6, atol=1e-6)


def far_apart(device: str) -> tuple[Tensor, Tensor]:
    """Six pixels of 16 channels, and the same further apart than 32 bits count: rows of a virtual tensor that is never
    touched in between."""
    stride = 2**29 + 16
    dense = torch.randn(1, 6, 1, 16, generator=torch.Generator().manual_seed(0)).half().to(device)
    try:
        storage = torch.empty(6 * stride, dtype=torch.float16, device=device)
    except RuntimeError as error:
        pytest.skip(f"no 6 GiB of address space here: {error}")
    far = storage.as_strided(dense.shape, (6 * stride, stride, 16, 1))
    return dense, far.copy_(dense)


@pytest.mark.parametrize("where", OPERATORS)
def test_offsets_beyond_two_to_the_31(where: tuple[str, str]) -> None:
    backend, device = where
    sizes = ((2, 3),)
    dense, far = far_apart(device)
    locations = torch.rand(1, 4, 1, 1, 2, 2, generator=torch.Generator().manual_seed(1)).to(device)
    weights = torch.rand(1, 4, 1, 1, 2, generator=torch.Generator().manual_seed(2)).to(device)
    want = ms_deform_attn(dense, sizes, locations, weights, backend=backend)
    assert torch.equal(ms_deform_attn(far, sizes, locations, weights, backend=backend), want)
    results = []
    for value in (dense, far):
        location = locations.clone().requires_grad_()
        ms_deform_attn(value, sizes, location, weights, backend=backend).float().sum().backward()
        results.append(location.grad)
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("where", OPERATORS)
@pytest.mark.parametrize(
    "sizes",
    [((4, 4), (2, 2)), ((7, 6), (2, 3)), ((-1, -30), (2, 3)), ((2**40, 2**40), (1, 1)), ((5 + 2**32, 6), (2, 3))],
)
def test_device_sizes_that_do_not_add_up_give_nan_and_read_nothing_else(
    where: tuple[str, str], sizes: tuple[tuple[int, int], ...]
) -> None:
    """Sizes on the device cannot be checked by the host: the kernels answer NaN rather than read beyond the tensor."""
    backend, device = where
    case = replace(BASE, B=2, coordinates=None)
    value, locations, weights = make_inputs(case, device)
    implementation(backend, fused=False)  # defines its operators
    operator = getattr(torch.ops.msdeform, f"{backend}_forward")
    output = operator(value, locations, weights, torch.tensor(sizes, device=device), [])
    assert output.isnan().all()
    backward = getattr(torch.ops.msdeform, f"{backend}_backward")
    grads = backward(output, value, locations, weights, torch.tensor(sizes, device=device), [], [True, True, True])
    assert not grads[0].any() or grads[0].isnan().any()
