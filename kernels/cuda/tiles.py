"""Launches the backward that sorts the points of a tile of queries inside one block (``tiles.cu``).

Nothing here is a backend of its own: a backend whose backward takes it makes the memory for the gradients, and rounds
them afterwards. The work of a call that shapes, dtypes and strides decide is done once, by :func:`prepare`.
"""

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
_MOST_POINTS = 4096  # of a tile
_QUERIES = (256, 128, 64, 32)  # of a tile
_THREADS = (128, 256)
_THREADS_TOGETHER = 512  # on a multiprocessor: each may have 128 registers then, and takes about 110
_MOST_LEVELS = 16
_MOST_PIXELS = 2**23  # a pixel's number has 24 bits, with its sign
_MOST = 2**31 - 1
_ENOUGH_BLOCKS = 2 * 132  # two for each multiprocessor of an H100
_SHARED = 227 * 1024  # bytes that a block may take on an H100
_ROW = 4  # channels of a thread


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


def usual_tile(call: Call, most_shared: int = _SHARED, enough_blocks: int = _ENOUGH_BLOCKS) -> Tile:
    """As many queries as fit, so that many points share a cell; but where that leaves multiprocessors idle, as in a
    decoder, few, and more threads for their points."""
    B, Q, H, L, P, _ = call.points.shape
    fitting = [n for n in _QUERIES if n * L * P <= _MOST_POINTS]
    enough = [n for n in fitting if B * H * -(-Q // n) >= enough_blocks]
    for queries in enough or fitting[-1:]:
        points = queries * L * P
        threads = min(max(1 << (points // (16 if enough else 2)).bit_length() - 1, _THREADS[0]), _THREADS[1])
        tile = Tile(queries, threads, _THREADS_TOGETHER // threads)
        if shared_bytes(tile, call) <= most_shared:
            break
    return tile


def refuses(call: Call) -> str | None:
    """Why the kernel does not take a call, in a sentence, or None if it does."""
    value, _, points, _ = call
    B, S, H, D = value.shape
    _, Q, _, L, P, _ = points.shape
    if D not in (16, 32, 64, 128):
        return f"it takes 16, 32, 64 or 128 channels per head, got D={D}"
    if call.compute is not torch.float32:
        return "it computes in float32, got float64"
    if L > _MOST_LEVELS or _QUERIES[-1] * L * P > _MOST_POINTS:
        most = _MOST_POINTS // _QUERIES[-1]
        return f"it takes at most {_MOST_LEVELS} levels and {most} points of a query, got L={L} and L*P={L * P}"
    if S >= _MOST_PIXELS or Q > _MOST or B * H * -(-Q // _QUERIES[-1]) > _MOST:
        return f"it takes less than {_MOST_PIXELS} pixels and 2**31 blocks, got S={S}, B*H={B * H} and Q={Q}"
    return None


def prepare(
    grad_output: Tensor, levels: Levels, call: Call, needs: tuple[bool, bool, bool, bool], tile: Tile | None = None
) -> Callable[..., None]:
    """The launch for calls like this one, which :func:`refuses` does not refuse.

    Args:
        grad_output: (B, Q, H*D) in value's dtype, channels dense.
        levels: (L, 2) int64 on value's device, or (h, w, h, w, ...). Where they do not add up to S all gradients are
            NaN.
        call: the tensors, any strides of batch, pixel, query, head and level.
        needs: which gradients are needed: of value, references, points and weights.
        tile: :func:`usual_tile` if None.

    Returns:
        (grad_output, levels, call, grad_value, grad_references, grad_points, grad_weights) -> None, of contiguous
        memory: (B, S, H, D) float32, which has to be zero, (B, Q, H, L, 2 or 4) float32, a share for each head, and
        those of points and weights in their dtypes. What is not needed is not touched.
    """
    value, references, points, weights = call
    B, S, H, _ = value.shape
    Q = points.shape[1]
    tile = tile or usual_tile(call, most_shared(value.device))
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


def most_shared(device: torch.device) -> int:
    """Bytes of shared memory that a block may take on a device."""
    if device.type != "cuda":
        return _SHARED
    properties: Any = torch.cuda.get_device_properties(device)  # whose stub lacks the field
    return int(properties.shared_memory_per_block_optin)


def _in_rows(tensor: Tensor) -> Tensor:
    """A tensor whose rows of channels can be read four at a time: itself, or a copy."""
    aligned = tensor.data_ptr() % (_ROW * tensor.element_size()) == 0 and tensor.stride(-1) == 1
    if aligned and all(stride % _ROW == 0 for stride in tensor.stride()[:-1]) and tensor.stride(1) <= _MOST // 16:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


_loaded: dict[Any, Any] = {}


def machine_code(arch: str, macros: dict[str, Any]) -> bytes:
    """As of :func:`.compile.machine_code`."""
    return compiler.machine_code(arch, SOURCE, macros, "-".join(str(value).strip("_") for value in macros.values()))


def load(device: int, macros: dict[str, Any]) -> Any:
    """The kernel for a CUDA device, loaded once per process, with leave to take the shared memory that it needs.

    Raises:
        RuntimeError: of :func:`.compile.machine_code`, or the device has not that much of it.
    """
    key = (device, *macros.values())
    if key not in _loaded:
        from cuda.bindings import driver
        from cuda.core import ObjectCode

        launch.bind_context(device)
        major, minor = torch.cuda.get_device_capability(device)
        kernel = ObjectCode.from_cubin(machine_code(f"sm_{major}{minor}", macros)).get_kernel(KERNEL)
        attributes, shared = driver.CUfunction_attribute, macros["SHARED_BYTES"]
        for attribute, number in (
            (attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared),
            (attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),  # percent, so that two blocks fit
        ):
            [status] = driver.cuKernelSetAttribute(attribute, number, driver.CUkernel(int(kernel.handle)), device)
            if int(status):
                raise RuntimeError(
                    f"{KERNEL}: this device has no {shared} bytes of shared memory for a block ({status.name})"
                )
        _loaded[key] = kernel
    return _loaded[key]
