"""The sorted backward, which torch.use_deterministic_algorithms(True) asks for: within bounds, and the same bits."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import hypothesis
import pytest
import torch
from torch import Tensor

from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.diagnostics.checks import Case, make_inputs
from tests.kernels.backends import TRITON
from tests.kernels.test_equivalence import BASE, FUNCTIONS, ODD, assert_within_bounds, cases, poisoned_memory

INF, NAN = float("inf"), float("nan")
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
__all__ = ["poisoned_memory"]  # a fixture: every uninitialised float is NaN here, too


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    previous = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # the truth is the reference's, which has no deterministic backward on a GPU: it warns
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(previous[0], warn_only=previous[1])


def gradient_of_value(case: Case, tensors: list[Tensor], backend: str = "triton") -> Tensor:
    """For a grad_output of small whole numbers, which depends on nothing but its place in a sample."""
    value = tensors[0].detach().requires_grad_()
    function = ms_deform_attn if case.coordinates is None else fused_ms_deform_attn
    output = function(value, case.sizes, *tensors[1:], backend=backend)
    grad_output = torch.arange(output[0].numel(), device=value.device).view_as(output[0]) % 7 - 3.0
    return torch.autograd.grad(output, value, grad_output.to(output.dtype).expand_as(output))[0]


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize("name", ODD)
def test_odd_shapes(where: tuple[str, str], name: str) -> None:
    assert_within_bounds(replace(ODD[name], coordinates=None), where)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
QUICK = [(torch.float64, 4), (torch.float32, None), (torch.float32, 4), (torch.float16, None), (torch.bfloat16, 2)]


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize(
    ("dtype", "coordinates"),
    [
        pytest.param(*each, marks=[] if each in QUICK else [pytest.mark.slow])
        for each in itertools.product(DTYPES, FUNCTIONS)
    ],
    ids=str,
)
def test_dtypes(where: tuple[str, str], coordinates: int | None, dtype: torch.dtype) -> None:
    assert_within_bounds(replace(BASE, D=32, dtype=dtype, coordinates=coordinates), where)


@pytest.mark.parametrize("where", TRITON)
@hypothesis.given(case=cases())
@hypothesis.settings(max_examples=2, deadline=None, derandomize=True)
def test_drawn_shapes(where: tuple[str, str], case: Case) -> None:
    assert_within_bounds(case, where)


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize("at", [0.5, 0.01, 0.99])
def test_a_cell_with_every_point_takes_many_chunks(where: tuple[str, str], at: float) -> None:
    """In the middle, and in cells that lie partly outside the level, which its closing on itself must not mix."""
    backend, device = where
    case = replace(BASE, Q=50, H=1, P=4, sizes=((4, 4),), coordinates=None)
    tensors = make_inputs(case, device)
    tensors[1].fill_(at)
    tensors[1][:, ::3, ..., 0] = 1.0 - at
    tensors[1][:, ::7, ..., 1] = 1.0 - at
    expected = gradient_of_value(case, [tensor.double() for tensor in tensors], "reference")
    torch.testing.assert_close(gradient_of_value(case, tensors, backend).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("queries", "most"), [(150, 256), (600, 256), (600, 18), pytest.param(2200, 40, marks=pytest.mark.slow)]
)
def test_no_pixel_adds_up_thousands_of_shares(queries: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All points lie in two cells, one the other's neighbour, of several thousands each at most."""
    from msdeform.kernels.triton import backward_sorted, launch

    case = replace(BASE, Q=queries, H=1, D=4, P=4, sizes=((4, 4),), coordinates=None)
    tensors = make_inputs(case)
    tensors[1].fill_(0.5)
    tensors[1][:, ::3, ..., 0] = 0.75
    share, turns = backward_sorted._share, []
    monkeypatch.setattr(launch, "_MOST_SHARES", most)
    monkeypatch.setattr(backward_sorted, "_share", lambda *numbers: turns.append(1) or share(*numbers))
    found = gradient_of_value(case, tensors)
    expected = gradient_of_value(case, [tensor.double() for tensor in tensors], "reference")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)
    # once for each corner, in one program; in the interpreter a walk is four points
    assert 1 < len(turns) / 4 <= max(most, 17)


def test_shares_are_combined_as_often_as_a_pixel_needs() -> None:
    from msdeform.kernels.triton import launch

    for walks in (1, 256, 257, 17821 * 4 // 32, 10**6, 2**31 // launch.RUN):
        times = launch.combinations_of_shares(walks)
        assert walks / 16**times <= 256
    assert launch.combinations_of_shares(300 * 4 // 32) == 0, "a decoder launches nothing more"


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize("at_once", [2**23, 1], ids=["together", "one by one"])
def test_a_sample_has_the_same_bits_in_any_batch(
    where: tuple[str, str], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = where
    from msdeform.kernels.triton import launch

    case = replace(BASE, B=3, Q=20, H=1, spread=1.0, coordinates=2)
    tensors = make_inputs(case, device)
    monkeypatch.setattr(launch, "_POINTS_AT_ONCE", at_once)
    together = gradient_of_value(case, tensors, backend)
    assert torch.equal(together, gradient_of_value(case, tensors, backend)), "again"
    for sample in range(3):
        alone = gradient_of_value(case, [tensor[sample : sample + 1] for tensor in tensors], backend)
        assert torch.equal(together[sample : sample + 1], alone)
    order = [2, 0, 1]
    assert torch.equal(together[order], gradient_of_value(case, [tensor[order] for tensor in tensors], backend))


@pytest.mark.parametrize("where", TRITON)
def test_keys_beyond_32_bits(where: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, device = where
    from msdeform.kernels.triton import launch

    case = replace(BASE, B=2, Q=20, H=1)
    tensors = make_inputs(case, device)
    narrow = gradient_of_value(case, tensors, backend)
    monkeypatch.setattr(launch, "_INT32_LIMIT", 1)
    assert torch.equal(narrow, gradient_of_value(case, tensors, backend))


def gradients(
    case: Case, tensors: list[Tensor], grad_output: Tensor, backend: str, *, in_order: bool
) -> tuple[Tensor, ...]:
    """Of every input, sorted or with atomics."""
    torch.use_deterministic_algorithms(in_order)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    function = ms_deform_attn if case.coordinates is None else fused_ms_deform_attn
    return torch.autograd.grad(function(leaves[0], case.sizes, *leaves[1:], backend=backend), leaves, grad_output)


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize(
    ("number", "coordinates"),
    [(NAN, 2), *(pytest.param(*odd, marks=pytest.mark.slow) for odd in ((INF, None), (INF, 4), (NAN, None), (INF, 2)))],
)
def test_numbers_that_are_not_finite_reach_what_they_reach_with_atomics(
    where: tuple[str, str], number: float, coordinates: int | None
) -> None:
    """One at a time in every input, in the middle and where neighbours lie outside the level."""
    backend, device = where
    case = replace(BASE, Q=24, H=1, D=4, P=2, sizes=((3, 4), (1, 5), (4, 1)), spread=3.0, coordinates=coordinates)
    for argument in range(len(make_inputs(case, "cpu")) + 1):
        tensors = make_inputs(case, device)
        grad_output = torch.ones(1, case.Q, case.H * case.D, device=device)
        broken = [*tensors, grad_output][argument]
        broken.flatten()[:: max(3, broken.numel() // 4)] = number
        both = (gradients(case, tensors, grad_output, backend, in_order=way) for way in (True, False))
        for index, (cell, atomics) in enumerate(zip(*both, strict=True)):
            if argument == len(tensors) and index > 0:
                # zero at a neighbour outside the level, which the other way multiplies by grad_output
                assert not atomics[~cell.isfinite()].isfinite().any()
                continue
            torch.testing.assert_close(cell, atomics, equal_nan=True, msg=lambda m: f"{argument} in {index}: {m}")  # noqa: B023


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize("needs", [(1, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)], ids=str)
def test_only_what_is_needed(where: tuple[str, str], needs: tuple[int, ...]) -> None:
    backend, device = where
    from msdeform.kernels.triton import launch

    case = replace(BASE, coordinates=4)
    tensors = make_inputs(case, device)
    grad_output = torch.ones(1, case.Q, case.H * case.D, device=device)
    levels = torch.tensor(case.sizes, device=device)
    everything = launch.backward(grad_output, levels, tensors, (True, True, True, True))
    wanted = launch.backward(grad_output, levels, tensors, tuple(bool(need) for need in needs))
    assert backend == "triton"
    for need, one, whole in zip(needs, wanted, everything, strict=True):
        assert whole is not None
        assert one is None if not need else one is not None and torch.equal(one, whole)


@pytest.mark.parametrize(
    ("queries", "batch", "method", "determinism", "expected"),
    [
        (300, 2, "auto", False, False),
        (300, 2, "auto", True, True),
        (17821, 2, "auto", False, False),  # no GPU has shown the other to be faster
        (17821, 2, "auto", True, True),
        (17821, 2, "atomics", False, False),
        (17821, 2, "atomics", True, True),
        (300, 2, "sorted", False, True),
    ],
)
def test_the_rule(
    queries: int, batch: int, method: str, determinism: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msdeform.kernels.triton import launch

    monkeypatch.setattr(launch, "backward_method", method)
    torch.use_deterministic_algorithms(determinism)
    value = torch.empty(batch, 17821, 8, 32, device="meta")
    points = torch.empty(batch, queries, 8, 4, 4, 2, device="meta")
    assert launch.sorts(value, points) is expected
    assert not launch.sorts(value[:, :0], points), "nothing to read, and nothing to add to"


def test_more_points_than_a_sort_takes() -> None:
    from msdeform.kernels.triton import launch

    value = torch.empty(1, 5, 8, 4, device="meta")
    points = torch.empty(1, 2**24, 8, 4, 4, 2, device="meta")
    with pytest.raises(ValueError, match=r"below 2\*\*31, got 8\*16777216\*4\*4 and 4\*5; split the queries"):
        launch.sorts(value, points)
    torch.use_deterministic_algorithms(False)
    assert not launch.sorts(value, points)


NARROW = [((4, 1),), ((2, 1),), ((2, 2), (4, 1)), ((1, 4),), ((1, 1),), ((3, 2), (1, 2))]


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "sizes", [pytest.param(sizes, marks=[] if sizes == NARROW[-1] else [pytest.mark.slow]) for sizes in NARROW], ids=str
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards memory by mprotect")
def test_nothing_is_read_beyond_value(sizes: tuple[tuple[int, int], ...]) -> None:
    """Value lies between pages that cannot be read; points lie around every pixel and beyond each border."""
    source = f"""
import ctypes, mmap, os, torch
torch.use_deterministic_algorithms(True)
from msdeform.kernels.triton import launch
S, page = {sum(h * w for h, w in sizes)}, mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
base = libc.mmap(None, ctypes.c_size_t(3 * page), 3, 0x22, -1, ctypes.c_long(0))
for guard in (base, base + 2 * page):
    assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
for begin in (base + page, base + 2 * page - 16 * S):
    memory = (ctypes.c_float * (4 * S)).from_address(begin)
    value = torch.frombuffer(memory, dtype=torch.float32).view(1, S, 1, 4)
    value.fill_(1.0)
    y, x = torch.meshgrid(torch.linspace(-0.3, 1.3, 9), torch.linspace(-0.3, 1.3, 9), indexing="ij")
    locations = torch.stack([x, y], -1).view(1, 81, 1, 1, 1, 2).expand(1, 81, 1, {len(sizes)}, 1, 2).contiguous()
    weights = torch.ones(1, 81, 1, {len(sizes)}, 1)
    for levels in (torch.tensor({sizes}), {tuple(size for pair in sizes for size in pair)}):
        launch.forward(levels, (value, locations, weights))
        launch.backward(torch.ones(1, 81, 4), levels, (value, locations, weights), (True, True, True))
"""
    answer = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]


def test_a_misspelt_method(monkeypatch: pytest.MonkeyPatch) -> None:
    from msdeform.kernels.triton import launch

    for method, told in (("sort", "got 'sort'$"), ("cells", "got 'cells'; it is called sorted now$")):
        monkeypatch.setenv("MSDEFORM_TRITON_BACKWARD", method)
        expected = f"MSDEFORM_TRITON_BACKWARD: expected auto, sorted, atomics or tiles, {told}"
        with pytest.raises(ValueError, match=expected):
            launch._method_from_environment()


@pytest.mark.parametrize("where", TRITON)
def test_level_sizes_on_the_device_that_do_not_add_up_give_zero(where: tuple[str, str]) -> None:
    backend, device = where
    tensors = make_inputs(replace(BASE, coordinates=None), device)
    shapes = torch.tensor([[5, 6], [200, 300]], device=device)
    from msdeform.kernels.triton import launch

    grad_output = torch.ones(1, BASE.Q, BASE.H * BASE.D, device=device)
    grad_value, grad_locations, _ = launch.backward(grad_output, shapes, tensors, (True, True, True))
    assert backend == "triton"
    assert grad_value is not None
    assert not grad_value.any(), "no point is in a level"
    assert grad_locations is not None
    assert grad_locations.isnan().all()


@pytest.mark.parametrize("where", TRITON)
def test_no_query_leaves_a_gradient_of_zero(where: tuple[str, str]) -> None:
    backend, device = where
    value, locations, weights = make_inputs(replace(BASE, coordinates=None), device)
    leaf = value.detach().requires_grad_()
    ms_deform_attn(leaf, BASE.sizes, locations[:, :0], weights[:, :0], backend=backend).sum().backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()


@pytest.mark.parametrize("where", TRITON)
@pytest.mark.parametrize("coordinates", FUNCTIONS)
def test_hooks_of_the_last_node_hold_the_whole_backward(
    where: tuple[str, str], coordinates: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the benchmark asks for determinism, so that its other implementations are timed without."""
    backend, device = where
    from msdeform.kernels.triton import launch

    calls = []
    real = launch._prepare_sorted
    monkeypatch.setattr(launch, "_prepare_sorted", lambda *arguments: calls.append(1) or real(*arguments))
    torch.use_deterministic_algorithms(False)
    case = replace(BASE, coordinates=coordinates)
    tensors = [tensor.requires_grad_() for tensor in make_inputs(case, device)]
    function = ms_deform_attn if coordinates is None else fused_ms_deform_attn
    output = function(tensors[0], case.sizes, *tensors[1:], backend=backend)
    assert output.grad_fn is not None
    output.grad_fn.register_prehook(lambda _: torch.use_deterministic_algorithms(True))
    output.grad_fn.register_hook(lambda *_: torch.use_deterministic_algorithms(False))
    torch.autograd.grad(output.sum(), tensors)
    assert calls == [1]
    assert not torch.are_deterministic_algorithms_enabled()
