"""The CUDA kernels' numbers: on the device where there is one, and everywhere else by executing NVRTC's PTX on the CPU.

The real launcher computes what the kernels are given (grid, block, pointers, strides). Executing proves arithmetic,
indices, shuffles and every access to memory. It does not prove the machine code that is made of the PTX, nor the order
of memory between threads: for that it takes a device.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msdeform.bench.static.ptx import nvrtc as executed
from msdeform.bench.static.ptx.machine import Program, execute
from msdeform.bench.static.ptx.memory import Allocation, Memory
from msdeform.bench.static.ptx.parse import parse
from msdeform.kernels import contract
from msdeform.kernels.autograd import Levels
from msdeform.kernels.cuda import compile as nvrtc
from msdeform.kernels.cuda import launch
from msdeform.kernels.diagnostics.tolerances import compare
from msdeform.kernels.pytorch import reference

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
NAN, INF = math.nan, math.inf


@pytest.fixture
def host() -> Iterator[str]:
    """Inside, the kernels are executed on the CPU."""
    if (reason := nvrtc._compiler_unavailable()) is not None:
        pytest.skip(reason)
    with executed.executing():
        yield "cpu"


@pytest.fixture(
    params=[
        pytest.param("executed", marks=pytest.mark.compiled),
        pytest.param("device", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels of a test run: the tensors' device."""
    if request.param == "executed":
        return str(request.getfixturevalue("host"))
    if (reason := nvrtc.unavailable()) is not None:
        pytest.skip(reason)
    return "cuda"


def make(
    device: str,
    sizes: contract.Sizes = ((5, 7), (3, 2)),
    *,
    B: int = 2,
    Q: int = 5,
    H: int = 2,
    D: int = 8,
    P: int = 2,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype] = (F32, F32, F32),
    spread: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """value, levels, locations, weights; locations reach `spread` beyond the image."""
    generator = torch.Generator().manual_seed(D * 1000 + Q * 10 + P)
    S, L = sum(h * w for h, w in sizes), len(sizes)
    value = torch.randn(B, S, H, D, generator=generator, dtype=F64).to(dtypes[0])
    locations = torch.rand(B, Q, H, L, P, 2, generator=generator, dtype=F64) * (1 + 2 * spread) - spread
    weights = torch.rand(B, Q, H, L, P, generator=generator, dtype=F64)
    levels = torch.tensor(sizes)
    return tuple(t.to(device) for t in (value, levels, locations.to(dtypes[1]), weights.to(dtypes[2])))


def truth(
    value: Tensor, levels: Tensor, locations: Tensor, weights: Tensor, grad_output: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Output and gradients of the reference in float64."""
    sizes = tuple((int(h), int(w)) for h, w in levels.tolist())
    leaves = [t.double().detach().cpu().requires_grad_() for t in (value, locations, weights)]
    inputs, _, sizes = contract.check(leaves, sizes, None)
    output = reference.ms_deform_attn(inputs, leaves[0], None, sizes, leaves[1], leaves[2])
    return output.detach(), torch.autograd.grad(output, leaves, grad_output.double().cpu())


def forward(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    return launch.forward(levels, (value, locations, weights))


def backward(
    grad_output: Tensor, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor, needs: tuple[bool, ...]
) -> Any:
    """A gradient for each tensor, None where it is not needed."""
    return launch.backward(grad_output, levels, (value, locations, weights), needs)


def check(value: Tensor, levels: Tensor, locations: Tensor, weights: Tensor) -> None:
    """Forward and all gradients by the project's criterion."""
    compute = F64 if F64 in (value.dtype, locations.dtype, weights.dtype) else F32
    output = forward(value, levels, locations, weights)
    generator = torch.Generator().manual_seed(3)
    grad_output = torch.randn(output.shape, generator=generator, dtype=F64).to(value)
    gradients = backward(grad_output, value, levels, locations, weights, (True, True, True))
    true_output, true_gradients = truth(value, levels, locations, weights, grad_output)
    assert output.dtype == value.dtype
    comparison = compare(output.cpu(), true_output, compute, gradient=False)
    assert comparison.ok, f"output: {comparison}"
    names = ("value", "locations", "weights")
    for name, input_, gradient, true in zip(names, (value, locations, weights), gradients, true_gradients, strict=True):
        assert gradient.dtype == input_.dtype
        comparison = compare(gradient.cpu(), true, compute, gradient=True)
        assert comparison.ok, f"gradient of {name}: {comparison}"


@pytest.mark.parametrize(
    "dtypes",
    [(F64, F64, F64), (F32, F32, F32), (F16, F32, F32), (BF16, F32, F32), (BF16, BF16, F16), (F32, F64, F32)],
    ids=lambda dtypes: "-".join(str(d).removeprefix("torch.") for d in dtypes),
)
def test_dtypes(device: str, dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]) -> None:
    check(*make(device, dtypes=dtypes))


@pytest.mark.parametrize("D", [1, 2, 3, 30, 32, 64, 71, 128, 256])
def test_channels(device: str, D: int) -> None:
    check(*make(device, D=D, Q=3))


@pytest.mark.parametrize(
    ("sizes", "Q", "P"),
    [
        (((6, 4),), 1, 1),  # one level, one query, one point
        (((1, 1), (1, 1)), 4, 3),
        (((1, 9), (8, 1)), 3, 5),
        (((9, 8), (5, 4), (3, 2), (2, 1), (1, 1), (2, 2), (3, 3), (1, 4)), 2, 16),
        (((2, 2),), 37, 1),  # more queries than pixels, and a last block that is not full
    ],
)
def test_shapes(device: str, sizes: contract.Sizes, Q: int, P: int) -> None:
    check(*make(device, sizes, Q=Q, P=P, H=3))


@pytest.mark.parametrize("L", [1, 3, 8, 9])
def test_level_sizes_by_value_are_those_of_a_tensor(device: str, L: int) -> None:
    """Eight levels are arguments of the kernels; more lie in memory."""
    sizes = tuple((1 + (5 * l) % 7, 1 + (3 * l) % 4) for l in range(L))
    value, levels, locations, weights = make(device, sizes, Q=3)
    by_value = tuple(size for pair in sizes for size in pair)
    output = forward(value, levels, locations, weights)
    assert torch.equal(forward(value, by_value, locations, weights), output)
    gradients = (backward(output, value, given, locations, weights, (True,) * 3) for given in (levels, by_value))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    pointer, *pairs = launch.sizes_of(by_value, value.device)[1]
    assert len(pairs) == 8
    assert (pointer == 0) == (L <= 8)
    assert pairs[0] == (sizes[0][0] << 32 | sizes[0][1] if L <= 8 else 0)


def test_level_sizes_by_value_that_contradict_value_give_nan(device: str) -> None:
    """The host checks them, too; a kernel that is given them all the same reads nothing beyond the tensor."""
    value, _, locations, weights = make(device)
    for levels in ((5, 7, 3, 3), (5, 7, 3, 1), (1 << 20, 1 << 20, 3, 2)):
        output = forward(value, levels, locations, weights)
        gradients = backward(torch.ones_like(output), value, levels, locations, weights, (True, True, True))
        assert all(t.isnan().all() for t in (output, *gradients))


def test_points_on_pixels_borders_and_beyond(device: str) -> None:
    value, levels, locations, weights = make(device, ((4, 4),), B=1, Q=9, H=1, P=9)
    steps = torch.tensor([-1e30, -5.0, -0.125, 0.0, 0.125, 0.5, 1.0, 1.125, 1e30])
    locations[0, :, 0, 0, :, 0] = steps[:, None]
    locations[0, :, 0, 0, :, 1] = steps[None, :]
    # away from the kinks at integer pixels, where either one-sided derivative is right
    check(value, levels, locations + torch.where(locations.abs() < 10, 1e-3, 0.0), weights)
    output = forward(value, levels, locations, weights)
    true, _ = truth(value, levels, locations, weights, torch.zeros_like(output))
    assert compare(output.cpu(), true, F32, gradient=False).ok


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_to_do(device: str, size: int) -> None:
    value, levels, locations, weights = make(device, B=size, Q=1 - size)
    output = forward(value, levels, locations, weights)
    assert output.shape == (size, 1 - size, 16)
    gradients = backward(output, value, levels, locations, weights, (True, True, True))
    assert [g.shape for g in gradients] == [value.shape, locations.shape, weights.shape]
    assert not gradients[0].any()


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3])
def test_only_the_needed_gradients(device: str, needs: tuple[bool, bool, bool]) -> None:
    inputs = make(device)
    grad_output = torch.randn(2, 5, 16).to(device)
    every = backward(grad_output, *inputs, (True, True, True))
    for needed, gradient, full in zip(needs, backward(grad_output, *inputs, needs), every, strict=True):
        if needed:
            torch.testing.assert_close(gradient, full)
        else:
            assert gradient is None


def test_strides(device: str) -> None:
    value, levels, locations, weights = make(device)
    contiguous = forward(value, levels, locations, weights)
    grad_output = torch.randn(2, 16, 5).to(device).transpose(1, 2)
    gradients = backward(grad_output.contiguous(), value, levels, locations, weights, (True,) * 3)

    # every pixel that is not value's own is NaN, so a wrong stride shows
    frame = torch.full((2, 2, 8, 2, value.shape[1] + 3), NAN, device=device)
    strided = frame[..., 1, 1:-2].permute(0, 3, 1, 2)
    strided.copy_(value)
    locations = locations.transpose(1, 2).contiguous().transpose(1, 2)
    weights = weights.flip(0).contiguous().flip(0).mT.contiguous().mT
    assert torch.equal(forward(strided, levels, locations, weights), contiguous)
    again = backward(grad_output, strided, levels, locations, weights, (True,) * 3)
    for one, other in zip(gradients, again, strict=True):
        torch.testing.assert_close(one, other)
    alike = value[:, :, :1].expand(-1, -1, 2, -1)
    heads = forward(alike, levels, locations, weights)
    assert torch.equal(heads, forward(alike.contiguous(), levels, locations, weights))


def test_reads_nothing_beyond_value(device: str) -> None:
    inputs = make(device, ((3, 4), (2, 3)), B=1, Q=40, spread=1.0)
    frame = torch.full((3, *inputs[0].shape[1:]), NAN, device=device)
    frame[1] = inputs[0][0]
    framed = frame[1:2]
    assert framed.is_contiguous()
    output = forward(framed, *inputs[1:])
    gradients = backward(torch.ones_like(output), framed, *inputs[1:], (True, True, True))
    assert all(t.isfinite().all() for t in (output, *gradients))


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("sizes", "stride"),
    [
        (((2, 3),), 1 << 30),  # far apart in memory: the last pixel lies 5 * 2**30 elements in
        (((50_000, 50_001),), 1),  # more pixels than 31 bits count
    ],
)
def test_addresses_past_two_to_the_31(host: str, tmp_path: Path, sizes: contract.Sizes, stride: int) -> None:
    """On the CPU alone: a sparse file stands in for the memory."""
    ((h, w),) = sizes
    S, last = h * w, torch.tensor([w - 1.25, h - 1.25])
    sparse = np.memmap(tmp_path / "value", np.float16, mode="w+", shape=((S - 1) * stride + 1,))
    far = torch.from_numpy(sparse).as_strided((1, S, 1, 1), (0, stride, 0, 1))
    near = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float16)
    far[0, -w - 2, 0], far[0, -w - 1, 0], far[0, -2, 0], far[0, -1, 0] = near[:, None]
    # the same corner of a level of 2x2 pixels; float64 locations, because float32 has no fractions there
    compact, small = near.view(1, 4, 1, 1), torch.tensor([0.75, 0.75])
    results = []
    for value, levels, pixel, size in (
        (far, torch.tensor(sizes), last, torch.tensor([w, h])),
        (compact, torch.tensor([[2, 2]]), small, torch.tensor([2, 2])),
    ):
        locations = ((pixel.double() + 0.5) / size).view(1, 1, 1, 1, 1, 2)
        weights = torch.ones(1, 1, 1, 1, 1)
        output = forward(value, levels, locations, weights)
        needs = (False, True, True)
        _, grad_locations, grad_weights = backward(output, value, levels, locations, weights, needs)
        results.append((output, grad_locations / size, grad_weights))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert results[0][0].item() == 3.25


@pytest.mark.compiled
def test_division_of_row_numbers(host: str, tmp_path: Path) -> None:
    """Of more rows than any test can run: the function alone."""
    kernel = """
extern "C" __global__ void divide_kernel(const int64* numbers, int64* answers) {
    int64 remainder;
    answers[2 * threadIdx.x] = divide(numbers[2 * threadIdx.x], numbers[2 * threadIdx.x + 1], remainder);
    answers[2 * threadIdx.x + 1] = remainder;
}
"""
    source = tmp_path / "divide.cu"
    source.write_text(nvrtc.SOURCE.read_text() + kernel)
    ptx, _ = executed.compile_ptx(90, source, nvrtc.macros_of(nvrtc.Dtypes("float32", "float32", "float32")))
    pairs = np.array([(7, 3), (2**31 - 1, 8), (2**31, 8), (5 * 2**31 + 7, 300), (2**40, 2**33 + 1)])
    answers = np.zeros_like(pairs)
    allocations = [Allocation("numbers", pairs.ctypes.data, 80), Allocation("answers", answers.ctypes.data, 80)]
    parameters = {f"divide_kernel_param_{k}": struct.pack("<Q", a.start) for k, a in enumerate(allocations)}
    execute(Program(parse(ptx, "divide_kernel")), (1,), (5,), parameters, Memory(allocations))
    assert answers.tolist() == [list(divmod(a, b)) for a, b in pairs.tolist()]


@pytest.mark.parametrize("coordinate", [0, 1])
def test_a_nan_location(device: str, coordinate: int) -> None:
    value, levels, locations, weights = make(device, spread=0.0)
    clean = backward(torch.ones(2, 5, 16).to(device), value, levels, locations, weights, (True,) * 3)
    locations[1, 2, 0, 1, 1, coordinate] = NAN
    output = forward(value, levels, locations, weights).view(2, 5, 2, 8).cpu()
    assert output[1, 2, 0].isnan().all()
    output[1, 2, 0] = 0
    assert output.isfinite().all()

    dirty = backward(torch.ones(2, 5, 16).to(device), value, levels, locations, weights, (True,) * 3)
    assert dirty[0].isfinite().all()  # the point reaches no pixel
    assert dirty[1][1, 2, 0, 1, 1].isnan().all()
    assert dirty[2][1, 2, 0, 1, 1].isnan()
    assert dirty[1].isnan().sum() == 2
    assert dirty[2].isnan().sum() == 1
    keep = ~dirty[2].isnan()
    torch.testing.assert_close(dirty[2][keep], clean[2][keep])


@pytest.mark.parametrize("far", [INF, -INF, 3e38])
def test_an_infinite_location_samples_zero(device: str, far: float) -> None:
    value, levels, locations, weights = make(device)
    locations[:, :, :, :, 0, 1] = far
    output = forward(value, levels, locations, weights)
    gradients = backward(torch.ones_like(output), value, levels, locations, weights, (True,) * 3)
    without = forward(value, levels, locations, weights * torch.tensor([0.0, 1.0], device=device))
    torch.testing.assert_close(output, without)
    assert gradients[0].isfinite().all()
    assert not gradients[1][:, :, :, :, 0].any()
    assert not gradients[2][:, :, :, :, 0].any()


def test_an_infinite_pixel_beside_a_coefficient_of_zero(device: str) -> None:
    value, levels, locations, weights = make(device, ((4, 4),), B=1, Q=1, H=1, D=1, P=1)
    locations[...] = torch.tensor([1.5 / 4, 1.5 / 4])  # exactly on pixel (1, 1); (2, 1) has coefficient 0
    value[0, 1 * 4 + 2] = INF
    assert forward(value, levels, locations, weights).isnan().all()
    locations[...] = torch.tensor([3.5 / 4, 1.5 / 4])  # on the right border: nothing to the right is read
    value[0, 1 * 4 + 2], value[0, 2 * 4] = 0, INF
    assert forward(value, levels, locations, weights).isfinite().all()


def test_a_nan_weight(device: str) -> None:
    value, levels, locations, weights = make(device, B=1, spread=0.0)
    weights[0, 1, 1, 0, 0] = NAN
    output = forward(value, levels, locations, weights).view(5, 2, 8)
    assert output[1, 1].isnan().all()
    assert output.isnan().sum() == 8


@pytest.mark.parametrize(
    "sizes",
    [
        ((5, 7), (3, 3)),  # too many pixels
        ((5, 7), (3, 1)),  # too few
        ((5, 7), (0, 2)),
        ((-5, -7), (3, 2)),
        ((1 << 20, 1 << 20), (3, 2)),  # reading there would end the process
        ((1 << 40, 1 << 40), (3, 2)),
        ((1 << 62, 4), (3, 2)),  # the product overflows
    ],
)
def test_level_sizes_that_contradict_value_give_nan(device: str, sizes: contract.Sizes) -> None:
    value, _, locations, weights = make(device)
    levels = torch.tensor(sizes, device=device)
    output = forward(value, levels, locations, weights)
    gradients = backward(torch.ones_like(output), value, levels, locations, weights, (True, True, True))
    assert all(t.isnan().all() for t in (output, *gradients))


def test_determinism_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(device)
    grad_output = torch.ones(2, 5, 16).to(device)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with pytest.raises(RuntimeError, match="order that changes from run to run"):
        backward(grad_output, *inputs, (True, True, True))
    backward(grad_output, *inputs, (False, True, True))
    monkeypatch.setattr(torch, "is_deterministic_algorithms_warn_only_enabled", lambda: True)
    with pytest.warns(UserWarning, match="order that changes from run to run"):
        backward(grad_output, *inputs, (True, True, True))


def test_many_additions_to_one_pixel_are_rounded_once(device: str) -> None:
    # 4096 additions of 1 in bfloat16 would stop at 256
    value, levels, locations, weights = make(device, ((1, 1),), B=1, Q=4096, H=1, D=1, P=1, dtypes=(BF16, F32, F32))
    locations.fill_(0.5)
    grad_output = torch.ones(1, 4096, 1, dtype=BF16, device=device)
    gradient, _, _ = backward(grad_output, value, levels, locations, torch.ones_like(weights), (True,) * 3)
    assert gradient.item() == 4096
