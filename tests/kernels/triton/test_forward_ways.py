"""The Triton forward has two ways: without masks where all is regular and finite, with masks elsewhere. Each alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.diagnostics.checks import Case, make_inputs
from msdeform.kernels.diagnostics.tolerances import compare
from msdeform.kernels.triton.bilinear import in_bands
from tests.kernels.backends import TRITON
from tests.kernels.test_equivalence import each_with_one, poisoned_memory

__all__ = ["poisoned_memory"]  # a fixture: every uninitialised float is NaN here
BASE = Case(B=1, Q=5, H=2, D=8, P=2, sizes=((5, 6), (2, 3)))
CASES = {
    "D=8": BASE,
    "D=1": replace(BASE, D=1),
    "D=32": replace(BASE, D=32, H=1),
    "D=30": replace(BASE, D=30, H=1),
    "fewer lanes than points": replace(BASE, D=4, P=4),
    "three levels of four": replace(BASE, D=32, H=1, P=4, sizes=((5, 6), (2, 3), (2, 2))),
    "L*P=9": replace(BASE, D=32, H=1, P=3, sizes=((5, 6), (2, 3), (2, 2))),
    "mostly outside": replace(BASE, spread=12.0),
}


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> set[bool]:
    """Whether masks were in use, of each way that programs took; only in the interpreter a way is a Python function."""
    from msdeform.kernels.triton import forward

    sample, taken = forward._sample, set[bool]()
    place = sample.arg_names.index("MASKS")

    def recorded(*arguments: Any) -> Any:
        taken.add(bool(arguments[place]))
        return sample(*arguments)

    if isinstance(sample, triton.JITFunction):
        pytest.skip("a compiled kernel does not tell which way it took")
    monkeypatch.setattr(forward, "_sample", recorded)
    return taken


def assert_forward_within_bounds(case: Case, where: tuple[str, str]) -> None:
    backend, device = where
    tensors = make_inputs(case, device)
    function = ms_deform_attn if case.coordinates is None else fused_ms_deform_attn
    with torch.no_grad():
        output = function(tensors[0], case.sizes, *tensors[1:], backend=backend)
        truth = function(tensors[0].double(), case.sizes, *(t.double() for t in tensors[1:]), backend="reference")
    assert compare(output, truth, torch.float32, gradient=False).ok, case.describe()


@pytest.mark.parametrize(("name", "coordinates"), each_with_one(CASES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", TRITON)
def test_without_masks(
    where: tuple[str, str], name: str, dtype: torch.dtype, coordinates: int | None, ways: set[bool]
) -> None:
    assert_forward_within_bounds(replace(CASES[name], dtype=dtype, coordinates=coordinates), where)
    assert ways == {False}


@pytest.mark.parametrize(("name", "coordinates"), each_with_one(CASES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", TRITON)
def test_with_masks(
    where: tuple[str, str], name: str, dtype: torch.dtype, coordinates: int | None, ways: set[bool]
) -> None:
    """A level of one pixel sends the whole call that way."""
    case = CASES[name]
    assert_forward_within_bounds(
        replace(case, dtype=dtype, coordinates=coordinates, sizes=(*case.sizes, (1, 1))), where
    )
    assert ways == {True}


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
@pytest.mark.parametrize("where", TRITON)
def test_a_pixel_that_no_sample_reaches_may_be_anything(where: tuple[str, str], number: float) -> None:
    """Without masks a sample outside reads the nearest pixel inside, times zero."""
    backend, device = where
    sizes = ((3, 4), (2, 2))
    value = torch.randn(1, 16, 1, 8, generator=torch.Generator().manual_seed(0))
    value[0, 1] = value[0, 5] = number  # the second column of the first level, but for its last row
    x = [-2.0, -0.2, 0.0, 0.125, 0.2, 0.5, 1.4]  # far outside, outside, on borders, inside, outside
    locations = torch.tensor([(at, 0.3) for at in x]).view(1, len(x), 1, 1, 1, 2).expand(-1, -1, -1, 2, 2, -1)
    weights = torch.full((1, len(x), 1, 2, 2), 0.25)
    arguments = [tensor.to(device) for tensor in (value, locations, weights)]
    output, truth = (
        ms_deform_attn(arguments[0], sizes, *arguments[1:], backend=name) for name in (backend, "reference")
    )
    assert truth.isfinite().all(-1).flatten().tolist() == [True, True, True, False, False, False, True]
    torch.testing.assert_close(output, truth, equal_nan=True)


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize(
    "sizes", [((8, 12), (4, 6)), ((11, 5), (3, 2), (2, 7)), ((9, 2),), ((1, 5), (17, 3))], ids=lambda s: str(s)[:20]
)
def test_queries_at_the_pixels_are_walked_in_bands(where: tuple[str, str], sizes: tuple[tuple[int, int], ...]) -> None:
    """Each of them once, which uninitialised numbers would show; where a level is one pixel high, as they lie."""
    case = replace(BASE, H=1, P=8, sizes=sizes, Q=sum(h * w for h, w in sizes), coordinates=2)
    from msdeform.kernels.triton import launch

    value, *rest = make_inputs(case, "cpu")
    assert launch.forward_parameters(launch.Call(value, *rest))["BAND"] == launch.BAND
    assert launch.forward_parameters(launch.Call(value, *(tensor[:, 1:] for tensor in rest)))["BAND"] == 0
    assert launch.forward_parameters(launch.Call(value.bfloat16(), *rest))["BAND"] == 0
    assert_forward_within_bounds(case, where)


@triton.jit
def _walk_in_bands(
    levels, output_ptr, begin, L: tl.constexpr, BY_VALUE: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr
):
    index = begin + tl.arange(0, BLOCK)
    tl.store(output_ptr + tl.arange(0, BLOCK), in_bands(levels, index, L, BY_VALUE, HIGH))


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize("by_value", [True, False], ids=["numbers", "pointer"])
@pytest.mark.parametrize(
    "sizes",
    [((13, 17), (5, 3)), ((1023, 1021), (2, 2)), ((2, 500_001), (3, 9)), ((400_003, 2), (9, 9))],
    ids=lambda s: str(s)[:20],
)
def test_the_walk_is_exact(where: tuple[str, str], sizes: tuple[tuple[int, int], ...], by_value: bool) -> None:
    """To the largest levels for which it is used."""
    device = where[1]
    levels: Any = torch.tensor(sizes, device=device)
    if by_value:  # as the launcher hands them on
        levels = tuple(2 * size + 1 for pair in sizes for size in pair)
    expected, start = [], 0
    for h, w in sizes:
        bands = torch.arange(h * w).view(h, w).split(8)
        expected.append(torch.cat([band.T.flatten() for band in bands]) + start)
        start += h * w
    count = 1 << 17
    for begin in range(0, start, count):
        found = torch.empty(count, dtype=torch.int32, device=device)
        _walk_in_bands[(1,)](levels, found, begin, len(sizes), by_value, 8, count)
        wanted = torch.cat(expected)[begin : begin + count]
        torch.testing.assert_close(found[: len(wanted)].cpu().long(), wanted)
