"""From tensors to calls of compiled functions: strides, level tables, output tensors, threads.

:func:`prepare_forward` and :func:`prepare_backward` settle all that a call's shapes, dtypes and strides decide, and
return a function of its tensors: the call cache keeps it, everyone else calls it at once.

Level sizes are numbers that the host knows, or an int64 tensor (L, 2) whose numbers are read at every call; sizes that
don't add up to S give NaN.
"""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..autograd import Levels
from ..backend import Call, Tensors, call_of
from . import backward, forward
from .emit import BYTES, compile_module
from .memory import new_empty
from .points import Kind, RowScratch, apart, level_table
from .pool import POOL

_TILE = 8  # queries of an encoder are pixels, and go in tiles of as many rows and columns: neighbours read the same
_UNIT_QUERIES = 64  # of a forward, at most
_UNITS_A_THREAD = 4  # at least, so that all are done at about the same time
_WORTH_A_THREAD = 4096  # points: about as long as another thread takes to wake up
_LARGE = 2**20  # bytes of a level, from which its pixels are fetched ahead: the second cache may not hold them
_DENSE = 4  # additions to a pixel of a head, from which it pays that threads sharing an image add up in own memory


def kind_of(call: Call) -> Kind:
    """What a call's kernels are compiled for."""
    value, references, points, weights = call
    return Kind(
        value=_name(value.dtype),
        references="float32" if references is None else _name(references.dtype),
        points=_name(points.dtype),
        weights=_name(weights.dtype),
        compute=_name(call.compute),
        D=value.shape[3],
        L=points.shape[3],
        P=points.shape[4],
        coordinates=0 if references is None else references.shape[3],
    )


def prepare_forward(levels: Levels, tensors: Tensors) -> Callable[[Levels, Tensors], Tensor]:
    """A function of (levels, tensors) that returns the output (B, Q, H*D), for all tensors like these."""
    call = call_of(tensors)
    kind = kind_of(call)
    B, S, H, _ = call.value.shape
    Q = call.points.shape[1]
    strides = _strides(call)
    row_bytes = strides[1]
    function = _forward(kind)

    def run(levels: Levels, tensors: Tensors) -> Tensor:
        call = call_of(tensors)
        output = new_empty(call.value, B, Q, H * kind.D)
        sizes = _host_sizes(levels)
        if not _add_up(sizes, S):
            return output.fill_(float("nan"))
        threads = _threads(B * Q * H * kind.LP, B * Q)
        unit_queries = max(1, min(_UNIT_QUERIES, B * Q // (_UNITS_A_THREAD * threads)))
        image_units = -(-Q // unit_queries)
        table, order = _level_table(sizes, kind, row_bytes, 0), _order(sizes, Q)
        scratch_bytes = apart(H * RowScratch.bytes(kind))
        scratch = torch.zeros(threads * scratch_bytes, dtype=torch.uint8)
        numbers = [
            *(B * image_units, scratch.data_ptr(), scratch_bytes),
            *(ctypes.addressof(table), order.buffer_info()[0]),
            *(*_pointers(call), *strides, *_ahead(sizes, kind.P, row_bytes)),
            *(output.data_ptr(), H, Q, unit_queries, image_units),
        ]
        function(numbers, threads, (call, table, order, scratch, output))
        return output

    return run


def prepare_backward(
    grad_output: Tensor, levels: Levels, tensors: Tensors, needs: tuple[bool, ...]
) -> Callable[[Tensor, Levels, Tensors], tuple[Tensor | None, ...]]:
    """A function of (grad_output, levels, tensors) that returns a gradient or None for each tensor."""
    call = call_of(tensors)
    kind = kind_of(call)
    B, S, H, _ = call.value.shape
    Q = call.points.shape[1]
    strides = _strides(call)
    row_bytes = strides[1]
    dtype, compute = call.value.dtype, call.compute
    wanted = backward.Wanted(*needs) if kind.fused else backward.Wanted(needs[0], False, *needs[1:])
    pixel_bytes = kind.D * BYTES[kind.compute]
    dense = 4 * Q * kind.LP >= _DENSE * S

    def run(grad_output: Tensor, levels: Levels, tensors: Tensors) -> tuple[Tensor | None, ...]:
        call = call_of(tensors)
        gradients: list[Tensor | None] = [
            new_empty(tensor, *tensor.shape) if tensor is not None and wants else None
            for tensor, wants in zip(call, wanted, strict=True)
        ]
        sizes = _host_sizes(levels)
        if _add_up(sizes, S):
            threads = _threads(2 * B * Q * H * kind.LP, B * Q * H)
            groups, shares = _units(B, H, threads) if wanted.value else (1, _UNITS_A_THREAD * threads)
            heads = -(-H // groups)
            shared = wanted.value and shares > 1
            # one head's channels lie between others', and threads would write to each other's cache lines
            summed = kind.rounded or (groups > 1 and dense)
            sums_bytes = pixel_bytes * (heads if summed else H)
            sums = None
            if wanted.value and summed:
                units = B * groups if shared else threads
                sums = new_empty(torch.empty(0, dtype=compute), units * S * heads * kind.D)
            by_head = torch.empty(B, Q, H, kind.L, kind.coordinates, dtype=compute) if wanted.references else None
            upstream = grad_output.to(dtype)
            if upstream.stride(2) != 1:
                upstream = upstream.contiguous()
            table, order = _level_table(sizes, kind, row_bytes, sums_bytes), _order(sizes, Q)
            scratch_bytes = apart(backward.Scratch.bytes(kind) + H * RowScratch.bytes(kind))
            scratch = torch.zeros(threads * scratch_bytes, dtype=torch.uint8)
            written = (gradients[0], by_head, *gradients[2:], sums)
            numbers = [
                *(B * groups * shares, scratch.data_ptr(), scratch_bytes),
                *(ctypes.addressof(table), order.buffer_info()[0]),
                *(*_pointers(call), *strides, *_ahead(sizes, kind.P, row_bytes), upstream.data_ptr()),
                *(upstream.stride(0) * upstream.element_size(), upstream.stride(1) * upstream.element_size()),
                *_pointers(written),
                *(H, Q, S, heads, groups, shares, sums_bytes, S * sums_bytes),
            ]
            function = _backward(kind, wanted, shared, summed)
            function(numbers, threads, (call, upstream, table, order, scratch, written))
            if by_head is not None:
                references = gradients[1]
                assert references is not None
                total, *others = by_head.unbind(2)
                for of_head in others:  # one after another: in the same order, whatever the shape
                    total += of_head
                references.copy_(total)
        else:
            for gradient in gradients:
                if gradient is not None:
                    gradient.fill_(float("nan"))
        return tuple(gradients) if kind.fused else (gradients[0], *gradients[2:])

    return run


class _Function:
    """A compiled function that threads call together."""

    def __init__(self, address: int) -> None:
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)

    def __call__(self, numbers: list[int], threads: int, memory: Any) -> None:
        """
        Args:
            numbers: its arguments from the third on, in their order; the first is how many units there are.
            memory: owns everything that the numbers point to.
        """
        if numbers[0] > 0:
            arguments = array("q", [0, 0, *numbers])  # none taken yet
            POOL.run(self._call, arguments.buffer_info()[0], min(threads, numbers[0]), (arguments, memory))


@cache
def _forward(kind: Kind) -> _Function:
    return _Function(compile_module(forward.emit(kind).finish()))


@cache
def _backward(kind: Kind, wanted: backward.Wanted, shared: bool, summed: bool) -> _Function:
    return _Function(compile_module(backward.emit(kind, wanted, shared=shared, summed=summed).finish()))


def _pointers(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _strides(call: Call) -> list[int]:
    """Of the first three dimensions of each tensor, in bytes."""
    return [0 if tensor is None else tensor.stride(i) * tensor.element_size() for tensor in call for i in range(3)]


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def _host_sizes(levels: Levels) -> tuple[int, ...]:
    return levels if isinstance(levels, tuple) else tuple(levels.flatten().tolist())


@lru_cache(maxsize=1024)
def _add_up(sizes: tuple[int, ...], S: int) -> bool:
    return min(sizes) >= 1 and sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True)) == S


@lru_cache(maxsize=1024)
def _ahead(sizes: tuple[int, ...], P: int, row_bytes: int) -> tuple[int, int]:
    """The points, from the first to before the second, that lie in large levels or between them."""
    large = [i for i in range(len(sizes) // 2) if sizes[2 * i] * sizes[2 * i + 1] * row_bytes >= _LARGE]
    return (large[0] * P, (large[-1] + 1) * P) if large else (0, 0)


@lru_cache(maxsize=1024)
def _level_table(sizes: tuple[int, ...], kind: Kind, row_bytes: int, sums_bytes: int) -> ctypes.Array[ctypes.c_char]:
    packed = level_table(sizes, kind, row_bytes, sums_bytes)
    return ctypes.create_string_buffer(packed, len(packed))


@lru_cache(maxsize=64)
def _order(sizes: tuple[int, ...], Q: int) -> "array[int]":
    """The order in which queries are gone through: tile by tile if they are the levels' pixels, else as they come."""
    queries = torch.arange(Q, dtype=torch.int32)
    if _add_up(sizes, Q):
        tiles: list[Tensor] = []
        start = 0
        for h, w in zip(sizes[::2], sizes[1::2], strict=True):
            level = queries[start : start + h * w].view(h, w)
            tiles += [tile.flatten() for band in level.split(_TILE, 0) for tile in band.split(_TILE, 1)]
            start += h * w
        queries = torch.cat(tiles)
    return array("i", queries.tolist())


def _units(B: int, H: int, threads: int) -> tuple[int, int]:
    """Into how many groups the heads are parted, and into how many shares a group, so that each thread has a unit."""
    if B == 0:
        return 1, 1
    heads = -(-H // min(H, -(-threads // B)))
    groups = -(-H // heads)
    return groups, -(-threads // (B * groups))


def _threads(points: int, most: int) -> int:
    """How many threads a call is worth."""
    return max(1, min(torch.get_num_threads(), most, points // _WORTH_A_THREAD))
