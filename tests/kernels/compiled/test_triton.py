"""The Triton kernels as compiled for a device, executed on a CPU and held against the reference.

Triton's interpreter runs the Python; only this shows what the compiler made of it. Cases share what is fixed when a
kernel is compiled wherever they can, because compilation is most of their time.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from msdeform.bench.static.ptx.verify import call
from msdeform.kernels.diagnostics.checks import Case, evaluate, make_inputs
from tests.kernels.compiled.run import METHODS, Change, at_pixels, check, make_grad_output

pytestmark = pytest.mark.compiled

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
ODD = ((3, 7), (1, 1), (5, 1), (1, 4))
BASE = Case(B=1, Q=9)
INF, NAN = float("inf"), float("nan")

both = pytest.mark.parametrize("method", METHODS)


def name(case: object) -> str:
    if not isinstance(case, Case):
        return str(case)
    kind = "plain" if case.coordinates is None else f"fused{case.coordinates}"
    dtypes = [str(dtype).removeprefix("torch.") for dtype in (case.dtype, case.small_dtype) if dtype is not None]
    return "-".join([kind, *dtypes, f"D{case.D}"])


@both
@pytest.mark.parametrize(
    "case",
    [
        BASE,
        Case(Q=37, coordinates=4),
        Case(Q=37, coordinates=None),
        Case(Q=37, dtype=BF16),
        Case(Q=37, dtype=F16, coordinates=None),
        Case(Q=21, dtype=F64, D=8),
        Case(Q=21, dtype=BF16, small_dtype=BF16, D=64, coordinates=4),
        *(
            pytest.param(case, marks=pytest.mark.slow)
            for case in (
                Case(Q=21, dtype=F16, coordinates=4),
                Case(Q=21, dtype=F16, small_dtype=F16, D=64),
                Case(Q=21, dtype=F64, coordinates=None),
                Case(Q=21, dtype=F64, coordinates=4, D=30),
                Case(Q=21, dtype=BF16, small_dtype=F16),
                Case(Q=21, dtype=F32, small_dtype=BF16),
                Case(Q=21, dtype=F32, small_dtype=F64),
                Case(Q=21, dtype=BF16, coordinates=None),
            )
        ),
    ],
    ids=name,
)
def test_functions_and_dtypes(case: Case, method: str) -> None:
    check(case, method)


@both
@pytest.mark.parametrize(
    "case",
    [
        Case(B=1, Q=11, D=1, P=5, coordinates=None),
        Case(Q=21, H=3, D=30, P=3, spread=1.0),
        Case(B=1, Q=11, D=64, dtype=BF16),
        *(
            pytest.param(case, marks=pytest.mark.slow)
            for case in (
                Case(B=1, Q=11, D=8, dtype=BF16),
                Case(B=1, Q=13, D=16, dtype=F16, coordinates=None),
                Case(B=1, Q=33, H=1, D=16),
                Case(B=1, Q=33, H=1, D=64),
                Case(Q=21, H=3, D=30, P=3, dtype=BF16, coordinates=None),
                Case(B=1, Q=21, D=71, P=5, coordinates=4),
                Case(B=1, Q=11, D=71, P=2, dtype=F16),
                Case(B=1, Q=11, D=128, P=2),
                Case(B=1, Q=11, D=128, P=2, dtype=BF16, coordinates=None),
                Case(B=1, Q=11, D=256, P=1),
                Case(B=1, Q=11, D=256, P=2, dtype=BF16),
            )
        ),
    ],
    ids=name,
)
def test_channels_on_levels_of_one_pixel(case: Case, method: str) -> None:
    check(replace(case, sizes=ODD), method)


@both
@pytest.mark.parametrize("Q", [1, 2, 8, 40, 151])
def test_numbers_of_queries(Q: int, method: str) -> None:
    check(replace(BASE, Q=Q), method)


@both
@pytest.mark.parametrize("spread", [0.3, 100.0], ids=["near", "mostly outside"])
def test_spread(spread: float, method: str) -> None:
    check(replace(BASE, Q=40, spread=spread), method)


@both
def test_all_points_in_one_cell(method: str) -> None:
    """Far more points than one walk holds add to the same four pixels."""

    def change(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value, references, offsets, logits = tensors
        return value, torch.full_like(references, 0.45), torch.rand_like(offsets) * 0.2, logits

    check(replace(BASE, Q=151), method, change)


@both
def test_all_points_outside(method: str) -> None:
    check(replace(BASE, Q=40), method, lambda t: (t[0], t[1] + 3, t[2], t[3]))


@pytest.mark.parametrize("dtype", [F32, pytest.param(BF16, marks=pytest.mark.slow)])
def test_an_encoder(dtype: torch.dtype) -> None:
    """Queries at the pixels, so that bands and walks are those of an encoder."""
    sizes = ((21, 9), (9, 6), (3, 4), (2, 2))
    case = Case(B=1, Q=sum(h * w for h, w in sizes), H=1, sizes=sizes, dtype=dtype)

    def change(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value, references, offsets, logits = tensors
        return value, at_pixels(case, references), offsets, logits

    for method in METHODS:
        check(case, method, change)


# --- layouts


def _at(tensor: Tensor, offset: int) -> Tensor:
    """The same numbers, so many elements into their memory."""
    memory = torch.zeros(tensor.numel() + offset, dtype=tensor.dtype)
    memory[offset:] = tensor.flatten()
    return memory[offset:].view(tensor.shape)


def _odd_offsets(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(_at(t, offset) for t, offset in zip(tensors, (1, 1, 3, 1), strict=True))


def _joint_projection(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Offsets and logits are slices of one tensor, value of another."""
    value, references, offsets, logits = tensors
    B, Q, H, L, P, _ = offsets.shape
    both = torch.cat([offsets.reshape(B, Q, -1), logits.reshape(B, Q, -1)], -1)
    strides = both.stride()[:2]
    return (
        torch.cat([value, value], 3)[..., : value.shape[3]],
        references,
        torch.as_strided(both, offsets.shape, (*strides, L * P * 2, P * 2, 2, 1)),
        torch.as_strided(both, logits.shape, (*strides, L * P, P, 1), H * L * P * 2),
    )


def _heads_outermost(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    value, references, offsets, logits = (
        t if i == 1 else t.transpose(1, 2).contiguous().transpose(1, 2) for i, t in enumerate(tensors)
    )
    return value, references, offsets, logits


@both
@pytest.mark.parametrize("change", [_odd_offsets, _joint_projection, _heads_outermost])
@pytest.mark.parametrize("dtype", [F32, pytest.param(BF16, marks=pytest.mark.slow)])
def test_layouts(change: Change, dtype: torch.dtype, method: str) -> None:
    small = dtype if dtype is BF16 else None
    check(Case(Q=19, dtype=dtype, small_dtype=small), method, change)


# --- numbers that are not finite, determinism, architectures


def _not_finite(kind: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    value, references, offsets, logits = (t.clone() for t in tensors)
    if kind == "value":
        value[0, 7, 0, 3], value[0, 50, 1] = NAN, INF
    elif kind == "offsets":
        offsets[0, 0, 0, 0, 0, 0], offsets[0, 1, 1, 1, 1, 1], offsets[0, 2, 0, 0, 0] = NAN, INF, 1e30
        offsets[0, 3, 0, 0, 0] = -1e30
    else:
        logits[0, 0, 0, 0, 0], logits[0, 1, 1], logits[0, 2, 0, 0, 1] = INF, -INF, NAN
    return value, references, offsets, logits


@both
@pytest.mark.parametrize("kind", ["value", "offsets", "logits"])
def test_numbers_that_are_not_finite(kind: str, method: str) -> None:
    """What is finite by the reference is near it, and what is NaN there is NaN."""
    case = replace(BASE, Q=21)
    tensors, grad_output = _not_finite(kind, make_inputs(case)), make_grad_output(case)
    truth = evaluate(case, tensors, grad_output, "reference")
    for name, result in zip(("output", *case.names), call(case.sizes, tensors, grad_output, method), strict=True):
        true = truth[name]
        # a weight of NaN makes its location's gradient NaN, or zero where the point lies outside: both are documented
        undefined = true.isnan() | (result.isnan() if kind == "logits" else torch.zeros_like(true, dtype=torch.bool))
        assert result[true.isnan()].isnan().all(), name
        torch.testing.assert_close(result[~undefined], true[~undefined], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [F32, pytest.param(F16, marks=pytest.mark.slow)])
def test_the_sorted_backward_does_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    case = Case(B=3, Q=37, dtype=dtype)
    tensors, grad_output = make_inputs(case), make_grad_output(case)
    together = call(case.sizes, tensors, grad_output, "sorted")
    for b in range(case.B):
        alone = call(case.sizes, [t[b : b + 1] for t in tensors], grad_output[b : b + 1], "sorted")
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_[b])


@both
@pytest.mark.parametrize(
    ("arch", "case"),
    [
        (80, BASE),
        (120, BASE),
        *(
            pytest.param(arch, case, marks=pytest.mark.slow)
            for arch in (80, 120)
            for case in (
                Case(Q=21, D=64, dtype=BF16),
                Case(Q=21, D=64, dtype=F16, small_dtype=F16, coordinates=4),
                Case(Q=21, H=3, D=30, P=3, sizes=ODD, coordinates=None),
                Case(B=1, Q=9, dtype=F64),
            )
        ),
    ],
    ids=name,
)
def test_architectures(arch: int, case: Case, method: str) -> None:
    check(case, method, arch=arch)


@both
def test_approximate_functions_at_their_worst(method: str) -> None:
    check(BASE, method, approximate="worst")


@both
@pytest.mark.slow
@pytest.mark.parametrize("needed", range(4))
def test_one_gradient_alone(needed: int, method: str) -> None:
    needs = tuple(k == needed for k in range(4))
    check(BASE, method, needs=needs)
