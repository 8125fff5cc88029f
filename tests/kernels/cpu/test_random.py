"""Random small calls of the CPU backend against the reference in float64: 300 of them, and 100,000 in `make test-full`.

Calls of one shape are drawn together, and the reference answers them at once: an image is a call, or two or three are.
"""

from collections.abc import Iterator
from random import Random

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="the CPU backend needs llvmlite")

from msdeform.kernels.cpu import launch
from msdeform.kernels.diagnostics.checks import Case, evaluate, make_inputs
from msdeform.kernels.diagnostics.tolerances import FLOORS, FORWARD_FACTOR, GRADIENT_FACTOR

NAN, INF = float("nan"), float("inf")
IMAGES = 48  # drawn together


@pytest.fixture(autouse=True)
def thread_count(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(launch, "_WORTH_A_THREAD", 1)
    yield
    torch.set_num_threads(before)


def draw_kind(draw: Random) -> tuple[Case, int]:
    """A case of what kernels are compiled for, and its number of levels."""
    dtype, small = draw.choice(
        [
            (torch.float32, None),
            (torch.float32, None),
            (torch.float64, None),
            (torch.bfloat16, None),
            (torch.float16, None),
            (torch.bfloat16, torch.bfloat16),
            (torch.float16, torch.float16),
        ]
    )
    case = Case(
        D=draw.choice([1, 2, 4, 7, 8, 16, 17, 32, 32, 36, 64, 71]),
        P=draw.choice([1, 2, 3, 4, 4, 5, 8]),
        dtype=dtype,
        small_dtype=small,
        coordinates=draw.choice([None, 2, 4]),
    )
    return case, draw.randint(1, 5)


def draw_calls(kind: Case, levels: int, draw: Random) -> tuple[Case, tuple[Tensor, ...]]:
    """Images of one shape; in a third of them some coordinates are far outside, infinite or NaN."""
    sizes = tuple((draw.choice([1, 2, 3, 5, 9]), draw.choice([1, 2, 4, 7])) for _ in range(levels))
    case = Case(
        B=IMAGES,
        Q=draw.choice([1, 2, 5, 9, sum(h * w for h, w in sizes)]),
        H=draw.choice([1, 1, 2, 3]),
        D=kind.D,
        P=kind.P,
        sizes=sizes,
        dtype=kind.dtype,
        small_dtype=kind.small_dtype,
        coordinates=kind.coordinates,
        spread=draw.choice([0.5, 2.0, 6.0]),
        seed=draw.randrange(2**31),
    )
    tensors = make_inputs(case)
    points = tensors[-2].view(IMAGES, -1)
    for image in range(0, IMAGES, 3):
        for _ in range(draw.randint(1, 4)):
            points[image, draw.randrange(points.shape[1])] = draw.choice([1e4, -1e9, 1e30, INF, -INF, NAN])
    return case, tensors


def differently_laid(tensor: Tensor, draw: Random) -> Tensor:
    """The same numbers in other strides."""
    way = draw.randrange(4)
    if way == 0:  # heads before queries or pixels
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if way == 1:  # a part of something larger
        wide = tensor.new_full((tensor.shape[0], 2 * tensor.shape[1], tensor.shape[2] + 1, *tensor.shape[3:]), NAN)
        wide[:, ::2, 1:] = tensor
        return wide[:, ::2, 1:]
    if way == 2:  # the last axes apart
        return tensor.transpose(1, -1).contiguous().transpose(1, -1)
    return tensor


def answer(case: Case, tensors: tuple[Tensor, ...], grad_output: Tensor, draw: Random) -> tuple[dict[str, Tensor], int]:
    """What the CPU backend says, a few images at a time; and in how many calls."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("output", *case.names)}
    first = calls = 0
    while first < IMAGES:
        images = slice(first, first + draw.choice([1, 1, 1, 2, 3]))
        some = [differently_laid(tensor[images], draw) if draw.random() < 0.3 else tensor[images] for tensor in tensors]
        torch.set_num_threads(draw.choice([1, 1, 1, 3]))
        for name, tensor in evaluate(case, some, grad_output[images], "cpu").items():
            found[name].append(tensor)
        first, calls = images.stop, calls + 1
    return {name: torch.cat(parts) for name, parts in found.items()}, calls


def breach(result: Tensor, truth: Tensor, case: Case, *, gradient: bool) -> str | None:
    """As kernels/diagnostics/tolerances.py has it, the ideal error of each image by itself; the same numbers are not
    finite."""
    got, truth = result.double().flatten(1), truth.flatten(1)
    ideal = truth.to(result.dtype).double()
    finite = truth.isfinite()
    if not torch.equal(got.isfinite(), finite):
        return f"{int((got.isfinite() != finite).sum())} elements are finite on one side only"
    got, ideal, truth = (torch.where(finite, numbers, 0.0) for numbers in (got, ideal, truth))
    compute = torch.float64 if case.dtype is torch.float64 else torch.float32
    factor = GRADIENT_FACTOR if gradient else FORWARD_FACTOR
    floor = FLOORS[compute]["gradient" if gradient else "forward"]
    bound = factor * (ideal - truth).abs().amax(1) + floor * truth.abs().max()
    error = (got - truth).abs().amax(1)
    if (error <= bound).all():
        return None
    worst = int((error - bound).argmax())
    return f"image {worst}: error {float(error[worst]):.3g}, bound {float(bound[worst]):.3g}"


@pytest.mark.parametrize(
    ("kinds", "calls"),
    [(4, 300), pytest.param(40, 100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
    ids=["300", "100000"],
)
def test_random_calls(kinds: int, calls: int) -> None:
    draw = Random(20)
    drawn = [draw_kind(draw) for _ in range(kinds)]
    made = shapes = 0
    while made < calls:
        case, tensors = draw_calls(*drawn[shapes % kinds], draw)
        grad_output = torch.randn(
            IMAGES, case.Q, case.H * case.D, generator=torch.Generator().manual_seed(case.seed)
        ).to(case.dtype)
        torch.set_num_threads(1)
        truth = evaluate(case, [tensor.double() for tensor in tensors], grad_output.double(), "reference")
        results, more = answer(case, tensors, grad_output, draw)
        for name, result in results.items():
            problem = breach(result, truth[name], case, gradient=name != "output")
            assert problem is None, f"{name}: {problem}; after {made} calls, {case}"
        made, shapes = made + more, shapes + 1
    print(f"{made} calls of {shapes} shapes and {kinds} kinds: no mismatch")
