"""Launches the backward that sorts the points of a tile of queries inside one block (``tiles.cu``).

Nothing here is a backend of its own: a backend whose backward takes it makes the memory for the gradients, and rounds
them afterwards. The work of a call that shapes, dtypes and strides decide is done once, by :func:`prepare`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd import Levels
from ..backend import Call
from . import compile as compiler
from . import launch

SOURCE = compiler.FOLDER / "tiles.cu"
KERNEL = "msda_backward_tiles"
WIDTHS = (16, 32, 64, 128)
"""channels per head that it takes"""
_MOST_POINTS = 4096  # of a tile
_QUERIES = (256, 128, 64, 32)  # of a tile
_THREADS = 512  # on a multiprocessor: each may have 128 registers then, and takes about 110
_MOST_LEVELS = 8  # whose sizes are arguments of the kernel
_MOST_PIXELS = 2**23  # a pixel's number has 24 bits, with its sign
_MOST = 2**31 - 1
_RESERVED = 1024  # bytes of shared memory that each block takes beside its own
_ROW = 4  # channels that are read at once


class Memory(NamedTuple):
    """Shared memory of a device in bytes."""

    block: int
    multiprocessor: int


H100 = Memory(227 * 1024, 228 * 1024)


class Tile(NamedTuple):
    """How the points are shared out. No GPU has measured any of it."""

    queries: int
    """of a block: a power of two from 32 to 256"""
    threads: int
    """of a block: a power of two from 128"""
    blocks: int
    """that should fit on a multiprocessor: the compiler limits a thread's registers for that"""
    channels: int = 8
    """of a thread: 4 or 8"""


def usual_tile(call: Call, memory: Memory = H100) -> Tile:
    """In an encoder as many queries as fit, because neighbours' points share cells; elsewhere few, for many blocks.

    What the number of queries or the batch is does not matter, so that another image size compiles nothing.
    """
    _, Q, _, L, P, _ = call.points.shape
    if call.value.shape[1] == Q:
        for queries, blocks in itertools.product(_QUERIES, (4, 2, 1)):
            tile = Tile(queries, _THREADS // blocks, blocks)
            shared = shared_bytes(tile, call)
            together = blocks * (shared + _RESERVED) <= memory.multiprocessor
            if queries * L * P <= _MOST_POINTS and shared <= memory.block and together:
                return tile
    return Tile(_QUERIES[-1], _THREADS // 2, 2)


def refuses(call: Call) -> str | None:
    """Why the kernel does not take a call, in a sentence, or None if it does."""
    value, _, points, _ = call
    B, S, H, D = value.shape
    _, Q, _, L, P, _ = points.shape
    if D not in WIDTHS:
        return f"it takes 16, 32, 64 or 128 channels per head, got D={D}"
    if call.compute is not torch.float32:
        return "it computes in float32, got float64"
    if L > _MOST_LEVELS or _QUERIES[-1] * L * P > _MOST_POINTS:
        most = _MOST_POINTS // _QUERIES[-1]
        return f"it takes at most {_MOST_LEVELS} levels and {most} points of a query, got L={L} and L*P={L * P}"
    if S >= _MOST_PIXELS or Q > _MOST or B * H * -(-Q // _QUERIES[-1]) > _MOST:
        return f"it takes less than {_MOST_PIXELS} pixels and 2**31 blocks, got S={S}, B*H={B * H} and Q={Q}"
    return None


def prepare(call: Call, needs: tuple[bool, bool, bool, bool], tile: Tile | None = None) -> Callable[..., None]:
    """The launch for calls like this one, which :func:`refuses` does not refuse.

    Args:
        call: the tensors, any strides of batch, pixel, query, head and level.
        needs: which gradients are needed: of value, references, points and weights.
        tile: :func:`usual_tile` if None.

    Returns:
        (grad_output, levels, call, grad_value, grad_references, grad_points, grad_weights) -> None.
        grad_output (B, Q, H*D) is in value's dtype, channels dense. levels are (L, 2) int64 on value's device or
        (h, w, h, w, ...); where they do not add up to S all gradients are NaN. The gradients are contiguous memory:
        (B, S, H, D) float32, which has to be zero, (B, Q, H, L, 2 or 4) float32, a share for each head, and those of
        points and weights in their dtypes. What is not needed is not touched.
    """
    value, references, points, weights = call
    B, S, H, _ = value.shape
    Q = points.shape[1]
    tile = tile or usual_tile(call, memory_of(value.get_device()))
    tiles = -(-Q // tile.queries)
    macros = macros_of(call, needs, tile)
    strides = (
        *(*points.stride()[:3], *weights.stride()[:3]),
        *((0, 0, 0) if references is None else references.stride()[:3]),
    )
    nothing = B * Q == 0 or not any(needs)
    kernels: dict[tuple[int, int], Any] = {}

    def run(grad_output: Tensor, levels: Levels, call: Call, *gradients: Tensor) -> None:
        if nothing:
            return
        grad_output, value = _in_rows(grad_output), _in_rows(call.value)
        variant = value.get_device(), value.stride(1)
        if variant not in kernels:
            kernels[variant] = load(value.get_device(), macros | {"STRIDE": value.stride(1)})
        _kept, sizes = launch.sizes_of(levels, value.device)
        grad_value, grad_references, grad_points, grad_weights = (
            gradient.data_ptr() if needed else 0 for gradient, needed in zip(gradients, needs, strict=True)
        )
        launch.start(
            kernels[variant],
            value.device,
            grid=B * H * tiles,
            block=tile.threads,
            shared=macros["SHARED_BYTES"],
            arguments=(
                *(grad_output.data_ptr(), value.data_ptr(), *sizes),
                *(call.points.data_ptr(), call.weights.data_ptr()),
                0 if call.references is None else call.references.data_ptr(),
                *(grad_value, grad_points, grad_weights, grad_references),
                *(S, Q, tiles, int(Q == S)),
                *(*grad_output.stride()[:2], value.stride(0), value.stride(2), *strides),
            ),
        )

    return run


def macros_of(call: Call, needs: tuple[bool, bool, bool, bool], tile: Tile) -> dict[str, Any]:
    """What tiles.cu is compiled for, but for STRIDE, the elements from a pixel of value to the next."""
    value, references, points, weights = call
    _, _, H, L, P, _ = points.shape
    types = {"VALUE_T": value, "POINT_T": points, "WEIGHT_T": weights}
    types["REFERENCE_T"] = points if references is None else references
    return {
        **{"D": value.shape[3], "HEADS": H, "LEVELS": L, "POINTS": P},
        **{"TILE": tile.queries, "THREADS": tile.threads, "BLOCKS": tile.blocks, "VEC": tile.channels},
        "FUSED": int(references is not None),
        "BOXES": int(references is not None and references.shape[-1] == 4),
        "NEED_VALUE": int(needs[0]),
        "NEED_SLOPES": int(any(needs[1:])),
        **{name: compiler.C_TYPES[str(tensor.dtype).removeprefix("torch.")] for name, tensor in types.items()},
        "ACCUMULATE_T": "float",
        "SHARED_BYTES": shared_bytes(tile, call),
    }


def shared_bytes(tile: Tile, call: Call) -> int:
    """Bytes of shared memory of a block: what ``Shared`` in tiles.cu has, field by field."""
    D, itemsize = call.value.shape[3], call.value.dtype.itemsize
    L, P = call.points.shape[3:5]
    each, lanes = L * P, D // tile.channels
    count = tile.queries * each
    bins = -(-(1 << (count // L).bit_length() - 1) * L // (4 * tile.threads)) * 4 * tile.threads
    in_warp = each <= 32 and each & (each - 1) == 0
    fields = (
        16 * (count + 1),
        max(4 * bins, (tile.queries + 1) * D * itemsize),
        2 * (count + tile.threads // lanes * min(lanes, 8)),
        4 * (tile.queries + 3 * L + 2 * (1 if in_warp else tile.queries) + 32 + 2),
    )
    return sum(-(-field // 16) * 16 for field in fields)


def memory_of(device: int) -> Memory:
    """The shared memory of a CUDA device by its number; an H100's for a number below zero, a CPU."""
    if device < 0:
        return H100
    properties: Any = torch.cuda.get_device_properties(device)  # whose stub lacks a field
    return Memory(properties.shared_memory_per_block_optin, properties.shared_memory_per_multiprocessor)


def _in_rows(tensor: Tensor) -> Tensor:
    """A tensor whose rows of channels can be read four at a time: itself, or a copy."""
    aligned = tensor.data_ptr() % (_ROW * tensor.element_size()) == 0 and tensor.stride(-1) == 1
    if aligned and all(stride % _ROW == 0 for stride in tensor.stride()[:-1]):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


_loaded: dict[Any, Any] = {}


def machine_code(arch: str, macros: dict[str, Any]) -> bytes:
    """As of :func:`.compile.machine_code`."""
    return compiler.machine_code(arch, SOURCE, macros, "-".join(str(value).strip("_") for value in macros.values()))


def unavailable() -> str | None:
    """Why the kernel cannot run on this machine, in one sentence, or None if it can."""
    reason = compiler.unavailable()
    if reason is not None:
        return reason
    import cuda.core

    if hasattr(cuda.core.Kernel, "handle"):
        return None
    return f"the backward by tiles needs cuda.core 1.2 or newer, got {cuda.core.__version__}"


def load(device: int, macros: dict[str, Any]) -> Any:
    """The kernel for a CUDA device, loaded once per process, with leave to take the shared memory that it needs.

    Raises:
        RuntimeError: :func:`unavailable` says why, NVRTC fails, or the device has not that much of it.
    """
    key = (device, *macros.values())
    if key not in _loaded:
        if (reason := unavailable()) is not None:
            raise RuntimeError(reason)
        from cuda.bindings import driver
        from cuda.core import ObjectCode

        launch.bind_context(device)
        major, minor = torch.cuda.get_device_capability(device)
        kernel = ObjectCode.from_cubin(machine_code(f"sm_{major}{minor}", macros)).get_kernel(KERNEL)
        attributes, shared = driver.CUfunction_attribute, macros["SHARED_BYTES"]
        together = macros["BLOCKS"] * (shared + _RESERVED)
        percent = min(100, -(-100 * together // memory_of(device).multiprocessor))
        [status] = driver.cuKernelSetAttribute(
            attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared, kernel.handle, device
        )
        if int(status):
            raise RuntimeError(
                f"{KERNEL}: this device has no {shared} bytes of shared memory for a block ({status.name})"
            )
        # a hint: the rest of that memory is the first cache, which rows of value are read through
        driver.cuKernelSetAttribute(
            attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, percent, kernel.handle, device
        )
        _loaded[key] = kernel
    return _loaded[key]
