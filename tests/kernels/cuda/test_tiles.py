"""The backward by tiles: on the device where there is one, and everywhere else by executing NVRTC's PTX on the CPU.

`tests/kernels/compiled/test_triton.py` holds it to all that the Triton backwards are held to, with the smallest tile.
Here are its own ways: tiles of every size, bins, walks that begin inside a cell, and what reaches the driver.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform.bench.static.listings import disassembled
from msdeform.bench.static.ptx import nvrtc as executed
from msdeform.kernels.backend import call_of
from msdeform.kernels.cuda import compile as compiler
from msdeform.kernels.cuda import launch as driver
from msdeform.kernels.cuda import tiles
from msdeform.kernels.cuda.tiles import Tile
from msdeform.kernels.diagnostics.checks import Case, evaluate, make_inputs
from msdeform.kernels.diagnostics.tolerances import compare
from msdeform.kernels.triton import launch
from tests.kernels.compiled.run import at_pixels

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
ENCODER = ((21, 18), (9, 6), (3, 4), (2, 2))  # more than one tile of every size, and bands that end inside one

needs_compiler = pytest.mark.skipif(
    compiler._compiler_unavailable() is not None, reason=str(compiler._compiler_unavailable())
)


@pytest.fixture(
    params=[
        pytest.param("executed", marks=[pytest.mark.compiled, needs_compiler]),
        pytest.param("device", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the kernel of a test runs: the tensors' device."""
    with launch.replaced(backward_method="tiles"):
        if request.param == "device":
            yield "cuda"
            return
        with executed.executing():
            yield "cpu"


def on_pixels(case: Case, spread: float = 2.0) -> tuple[Tensor, ...]:
    """Inputs of an encoder: a query for each pixel, and points around it."""
    case = replace(case, Q=case.S, spread=spread)
    value, references, *rest = make_inputs(case)
    return value, at_pixels(case, references), *rest


def check(
    device: str, case: Case, tensors: tuple[Tensor, ...], tile: Tile | None = None, by_value: bool = True
) -> None:
    """Every gradient against the float64 reference, by the project's criterion."""
    generator = torch.Generator().manual_seed(5)
    grad_output = torch.randn(case.B, case.Q, case.H * case.D, generator=generator).to(case.dtype)
    truth = evaluate(case, [t.double() for t in tensors], grad_output.double(), "reference")
    levels = tuple(itertools.chain(*case.sizes)) if by_value else torch.tensor(case.sizes, device=device)
    given = [tensor.to(device) for tensor in tensors]
    assert tiles.refuses(call_of(given)) is None
    with launch.replaced(tile=tile):
        gradients = launch.backward(grad_output.to(device), levels, given, (True,) * len(given))
    for name, tensor, gradient in zip(case.names, tensors, gradients, strict=True):
        assert gradient is not None
        assert gradient.dtype is tensor.dtype
        comparison = compare(gradient.cpu(), truth[name], F32, gradient=True)
        assert comparison.ok, f"{name}: {comparison}"


@pytest.mark.parametrize(
    "tile",
    [
        Tile(256, 256, 2),
        Tile(256, 512, 2, channels=4),
        *(
            pytest.param(tile, marks=pytest.mark.slow)
            for tile in (Tile(128, 128, 4), Tile(64, 128, 8, 4), Tile(32, 128, 4))
        ),
    ],
)
def test_tiles_of_an_encoder(device: str, tile: Tile) -> None:
    case = Case(B=1, H=1, sizes=ENCODER, Q=sum(h * w for h, w in ENCODER))
    check(device, case, on_pixels(case), tile)


@pytest.mark.parametrize(
    ("case", "tile"),
    [
        (Case(D=16, dtype=BF16, coordinates=None), Tile(64, 128, 4)),
        (Case(D=64, P=3, coordinates=4, H=1), Tile(64, 256, 2, 4)),
        (Case(D=128, dtype=F16, small_dtype=F16, H=1), Tile(32, 128, 4)),
        (Case(sizes=((9, 11),), P=1, B=1), Tile(256, 128, 4)),
        (Case(sizes=((9, 11),), P=5, B=1, coordinates=4), Tile(128, 256, 4)),
        (Case(sizes=((3, 2),) * 8, P=16, B=1, Q=33, H=1), Tile(32, 512, 1, 4)),
        (Case(sizes=ENCODER[:3], P=4, B=1, coordinates=None), Tile(128, 512, 1)),
    ],
    ids=lambda given: given.describe() if isinstance(given, Case) else "",
)
def test_layouts_of_a_tile(device: str, case: Case, tile: Tile) -> None:
    """Channels that take 4 to 32 threads, points that are no power of two, one level and eight."""
    case = replace(case, Q=max(case.Q, 70) if case.P < 8 else case.Q)
    check(device, case, make_inputs(case), tile)


def test_more_cells_than_bins(device: str) -> None:
    """Cells that share a bin are walked in any order, and level sizes come from memory."""
    case = Case(B=1, Q=70, H=1, sizes=((70, 90),), spread=40.0)
    check(device, case, make_inputs(case), Tile(64, 128, 8), by_value=False)


@pytest.mark.parametrize("tile", [Tile(128, 128, 4), Tile(128, 512, 1)])
def test_all_points_in_one_cell(device: str, tile: Tile) -> None:
    """Every walk begins and ends inside the same cell."""
    case = Case(B=1, Q=130, H=1)
    value, references, offsets, logits = make_inputs(case)
    check(device, case, (value, torch.full_like(references, 0.45), offsets * 0.01, logits), tile)


def test_sizes_that_contradict_value_give_nan(device: str) -> None:
    for coordinates in (None, 2, 4):
        case = Case(B=1, Q=40, coordinates=coordinates)
        tensors = [tensor.to(device) for tensor in make_inputs(case)]
        grad_output = torch.ones(1, 40, case.H * case.D, device=device)
        for sizes in (((8, 10), (4, 6)), ((8, 10), (0, 5)), ((1 << 20, 1 << 20), (4, 5)), ((1 << 62, 4), (4, 5))):
            levels = torch.tensor(sizes, device=device)
            gradients = launch.backward(grad_output, levels, tensors, (True,) * len(tensors))
            assert all(gradient is not None and gradient.isnan().all() for gradient in gradients)


@pytest.mark.parametrize("needed", range(4))
def test_one_gradient_alone(device: str, needed: int) -> None:
    case = Case(B=1, Q=40, coordinates=4)
    tensors = [tensor.to(device) for tensor in make_inputs(case)]
    grad_output = torch.ones(1, 40, case.H * case.D, device=device)
    levels = tuple(itertools.chain(*case.sizes))
    every = launch.backward(grad_output, levels, tensors, (True,) * 4)
    alone = launch.backward(grad_output, levels, tensors, tuple(k == needed for k in range(4)))
    for k, (one, gradient) in enumerate(zip(alone, every, strict=True)):
        assert (one is not None) == (k == needed)
        if one is not None:
            torch.testing.assert_close(one, gradient)


@pytest.mark.parametrize("B", [0, 1])
def test_nothing_to_do(device: str, B: int) -> None:
    case = Case(B=1, Q=40, coordinates=None)
    value, locations, weights = (tensor.to(device) for tensor in make_inputs(case))
    given = value[:B], locations[:B, : 40 * (1 - B)], weights[:B, : 40 * (1 - B)]
    grad_output = value.new_ones(B, 40 * (1 - B), case.H * case.D)
    gradients = launch.backward(grad_output, tuple(itertools.chain(*case.sizes)), given, (True,) * 3)
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in given]  # type: ignore[union-attr]
    assert not gradients[0].any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case(D=30), "16, 32, 64 or 128 channels per head, got D=30"),
        (Case(dtype=F64), "computes in float32, got float64"),
        (Case(sizes=((1, 1),) * 9, P=1), "at most 8 levels and 128 points of a query, got L=9"),
        (Case(P=65), "got L=2 and L\\*P=130"),
    ],
)
def test_what_it_refuses(case: Case, told: str) -> None:
    assert re.search(told, str(tiles.refuses(call_of(make_inputs(case)))))


def test_a_value_or_a_number_of_queries_that_is_too_large() -> None:
    def call(S: int, Q: int) -> Any:
        meta = torch.device("meta")
        points, weights = torch.empty(2, Q, 8, 4, 4, 2, device=meta), torch.empty(2, Q, 8, 4, 4, device=meta)
        return call_of((torch.empty(2, S, 8, 32, device=meta), points, weights))

    assert tiles.refuses(call(2**23 - 1, 2**28)) is None
    for large in (call(2**23, 1), call(1, 2**31), call(1, 2**32)):
        assert re.search("less than 8388608 pixels and 2\\*\\*31 blocks", str(tiles.refuses(large)))


def test_the_usual_tile() -> None:
    """As many queries as fit in an encoder, few elsewhere; enough threads that two blocks or more fit together."""

    def usual(*, Q: int = 300, L: int = 4, P: int = 4, D: int = 32, **more: Any) -> tuple[int, ...]:
        value = torch.empty(2, 300, 8, D, dtype=more.pop("dtype", F32))
        return tiles.usual_tile(call_of((value, torch.empty(2, Q, 8, L, P, 2), torch.empty(2, Q, 8, L, P))), **more)[:3]

    assert usual() == (256, 256, 2)
    assert usual(Q=299) == (32, 256, 2)
    assert usual(P=8) == (128, 256, 2)
    assert usual(L=3) == (256, 256, 2)
    assert usual(L=5) == (128, 256, 2)
    assert usual(P=4, dtype=BF16, L=1) == (256, 128, 4)
    assert usual(D=64) == (256, 512, 1)
    assert usual(P=32) == (32, 256, 2)
    assert usual(memory=tiles.Memory(99 * 1024, 100 * 1024)) == (128, 512, 1)
    assert usual(memory=tiles.Memory(48 * 1024, 64 * 1024)) == (64, 256, 2)


MEMORY = {80: tiles.Memory(163 << 10, 164 << 10), 90: tiles.H100, 120: tiles.Memory(99 << 10, 100 << 10)}


@needs_compiler
@pytest.mark.parametrize(
    ("arch", "case"),
    [
        (80, Case()),
        (90, Case()),
        (90, Case(dtype=BF16)),
        (90, Case(D=64, coordinates=None)),
        (90, Case(P=5, coordinates=4)),
        (90, Case(sizes=ENCODER[:3])),
        (120, Case()),
    ],
)
def test_machine_code(arch: int, case: Case) -> None:
    """An encoder's tile fits: memory, and registers without spills; from sm_90 on, 16 bytes are added at a time."""
    case = replace(case, sizes=case.sizes if len(case.sizes) == 3 else ENCODER)
    call = call_of(on_pixels(case) if case.coordinates == 2 else make_inputs(replace(case, Q=case.S)))
    tile = tiles.usual_tile(call, MEMORY[arch])
    assert tile.queries >= 64
    macros = tiles.macros_of(call, (True, False, True, True), tile) | {"STRIDE": call.value.stride(1)}
    usage, code = disassembled(executed.compile_ptx(arch, tiles.SOURCE, macros)[1])
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    assert numbers["REG"] * tile.threads * tile.blocks <= 65536
    assert numbers["STACK"] + numbers["LOCAL"] == 0
    assert macros["SHARED_BYTES"] <= MEMORY[arch].block
    assert tile.blocks * (macros["SHARED_BYTES"] + 1024) <= MEMORY[arch].multiprocessor
    assert ("F32x4" in code) == (arch != 80)


@needs_compiler
def test_what_reaches_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the device: the kernel is allowed its memory once, and launched with 64-bit arguments."""
    import cuda.bindings.driver
    import cuda.core

    launched, allowed = [], []
    kernel = SimpleNamespace(handle=17)
    monkeypatch.setattr(cuda.core, "launch", lambda *arguments: launched.append(arguments))
    code = SimpleNamespace(get_kernel=lambda name: kernel)
    monkeypatch.setattr(cuda.core, "ObjectCode", SimpleNamespace(from_cubin=lambda machine_code: code))
    monkeypatch.setattr(cuda.bindings.driver, "cuKernelSetAttribute", lambda *given: allowed.append(given) or [status])
    monkeypatch.setattr(driver, "bind_context", lambda device: None)
    monkeypatch.setattr(tiles, "_loaded", {})
    monkeypatch.setattr(tiles, "unavailable", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    case = Case(B=1, Q=70, coordinates=None)
    value, locations, weights = make_inputs(case)
    status = cuda.bindings.driver.CUresult.CUDA_SUCCESS
    with launch.replaced(backward_method="tiles"):
        for _ in range(2):
            launch.backward(value.new_ones(1, 70, 64), (8, 10, 4, 5), (value, locations, weights), (True, False, True))
        [(_, shared, handle, _), (_, percent, *_)] = allowed
        assert percent == -(-100 * 2 * (shared + 1024) // tiles.H100.multiprocessor)
        assert handle == 17
        (stream, config, given, *arguments), _ = launched
        assert (stream, given, config.grid[0], config.shmem_size) == ("stream", kernel, 2 * 3, shared)
        assert tuple(config.block) == (256, 1, 1)
        assert arguments[2:7] == [0, 8 << 32 | 10, 4 << 32 | 5, 0, 0]
        assert arguments[13] == 0, "plain: no references"
        assert arguments[15] == arguments[17] == 0, "no gradient of locations or references"
        assert arguments[18:22] == [100, 70, 3, 0]
        assert all(type(argument) is int for argument in arguments)

        status = cuda.bindings.driver.CUresult.CUDA_ERROR_INVALID_VALUE
        tiles._loaded.clear()
        with pytest.raises(RuntimeError, match=f"this device has no {shared} bytes of shared memory for a block"):
            launch.backward(value.new_ones(1, 70, 64), (8, 10, 4, 5), (value, locations, weights), (True, False, True))

    monkeypatch.setattr(tiles, "unavailable", lambda: "no device")
    tiles._loaded.clear()
    with launch.replaced(backward_method="tiles"), pytest.raises(RuntimeError, match="no device"):
        launch.backward(value.new_ones(1, 70, 64), (8, 10, 4, 5), (value, locations, weights), (True, False, True))


def test_where_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiles.unavailable() == compiler.unavailable()
    monkeypatch.setattr(compiler, "unavailable", lambda: None)
    core = pytest.importorskip("cuda.core")
    assert tiles.unavailable() is None
    monkeypatch.setattr(core, "Kernel", object)
    assert tiles.unavailable() == f"the backward by tiles needs cuda.core 1.2 or newer, got {core.__version__}"
