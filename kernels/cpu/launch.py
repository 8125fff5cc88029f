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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd import Levels
from . import backward, forward
from .emit import BYTES, compile_module
from .points import Kind, level_table
from .pool import POOL

Tensors = Sequence[Tensor]
"""(value, locations, weights), or of the fused function (value, references, offsets, logits)"""

_TILE = 8  # queries of an encoder are pixels, and go in tiles of as many rows and columns: neighbours read the same
_UNIT_QUERIES = 64  # of a forward, at most
_UNITS_A_THREAD = 4  # at least, so that all are done at about the same time
_WORTH_A_THREAD = 4096  # points: about as long as another thread takes to wake up


class Call(NamedTuple):
    """The tensors of a call of either function, rows dense, as the kernels take them."""

    value: Tensor
    references: Tensor | None
    points: Tensor
    """locations or offsets"""
    weights: Tensor
    """weights or logits"""

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, Q, S, H"""
        B, S, H, _ = self.value.shape
        return B, self.points.shape[1], S, H

    def strides(self) -> dict[str, int]:
        """In bytes, by the names that the kernels know them by."""
        strides = {}
        for name, tensor, axes in (
            ("value", self.value, "bsh"),
            ("references", self.references, "bql"),
            ("points", self.points, "bqh"),
            ("weights", self.weights, "bqh"),
        ):
            for axis, letter in enumerate(axes):
                step = 0 if tensor is None else tensor.stride(axis) * tensor.element_size()
                strides[f"{name}_{letter}"] = step
        return strides

    def pointers(self) -> dict[str, int]:
        return {
            "value": self.value.data_ptr(),
            "references": 0 if self.references is None else self.references.data_ptr(),
            "points": self.points.data_ptr(),
            "weights": self.weights.data_ptr(),
        }


def call_of(tensors: Tensors) -> Call:
    """The kernels take any stride of batch, pixel, query, head and level; what lies inside one row has to be dense."""
    value, points, weights = tensors[0], tensors[-2], tensors[-1]
    references = tensors[1] if len(tensors) == 4 else None
    if value.stride(3) != 1:
        value = value.contiguous()
    P = points.shape[4]
    if points.stride()[3:] != (2 * P, 2, 1):
        points = points.contiguous()
    if weights.stride()[3:] != (P, 1):
        weights = weights.contiguous()
    if references is not None and references.stride(3) != 1:
        references = references.contiguous()
    return Call(value, references, points, weights)


def kind_of(call: Call) -> Kind:
    """What a call's kernels are compiled for."""
    value, references, points, weights = call
    double = any(tensor is not None and tensor.dtype is torch.float64 for tensor in call)
    return Kind(
        value=_name(value.dtype),
        references="float32" if references is None else _name(references.dtype),
        points=_name(points.dtype),
        weights=_name(weights.dtype),
        compute="float64" if double else "float32",
        D=value.shape[3],
        L=points.shape[3],
        P=points.shape[4],
        coordinates=0 if references is None else references.shape[3],
    )


def prepare_forward(levels: Levels, tensors: Tensors) -> Callable[[Levels, Tensors], Tensor]:
    """A function of (levels, tensors) that returns the output (B, Q, H*D), for all tensors like these."""
    call = call_of(tensors)
    kind = kind_of(call)
    B, Q, S, H = call.sizes
    function = _forward(kind)
    row_bytes = call.value.stride(1) * call.value.element_size()
    fixed = {"H": H, "Q": Q, **call.strides()}

    def run(levels: Levels, tensors: Tensors) -> Tensor:
        call = call_of(tensors)
        output = call.value.new_empty(B, Q, H * kind.D)
        sizes = _host_sizes(levels)
        if not _add_up(sizes, S):
            return output.fill_(float("nan"))
        threads = _threads(B * Q * H * kind.LP, B * Q)
        unit_queries = max(1, min(_UNIT_QUERIES, B * Q // (_UNITS_A_THREAD * threads)))
        image_units = -(-Q // unit_queries)
        table, order = _level_table(sizes, kind, row_bytes, 0), _order(sizes, Q)
        scratch = torch.zeros(threads * forward.Scratch.bytes(kind), dtype=torch.uint8)
        numbers = fixed | call.pointers()
        numbers |= {
            "units": B * image_units,
            "unit_queries": unit_queries,
            "image_units": image_units,
            "scratch": scratch.data_ptr(),
            "levels": ctypes.addressof(table),
            "order": order.buffer_info()[0],
            "output": output.data_ptr(),
        }
        function(numbers, threads, (call, table, order, scratch, output))
        return output

    return run


def prepare_backward(
    grad_output: Tensor, levels: Levels, tensors: Tensors, needs: tuple[bool, ...]
) -> Callable[[Tensor, Levels, Tensors], tuple[Tensor | None, ...]]:
    """A function of (grad_output, levels, tensors) that returns a gradient or None for each tensor."""
    call = call_of(tensors)
    kind = kind_of(call)
    B, Q, S, H = call.sizes
    value_dtype, compute = call.value.dtype, torch.float64 if kind.compute == "float64" else torch.float32
    row_bytes = call.value.stride(1) * call.value.element_size()
    size = BYTES[kind.compute]
    sums_bytes = size * kind.D * (1 if backward.has_sums(kind) else H)
    fixed = {"H": H, "Q": Q, "S": S, **call.strides(), "sums_s": sums_bytes, "sums_unit": S * kind.D * size}
    wanted = dict(
        zip(
            ("value", "references", "points", "weights") if kind.fused else ("value", "points", "weights"),
            needs,
            strict=True,
        )
    )

    def run(grad_output: Tensor, levels: Levels, tensors: Tensors) -> tuple[Tensor | None, ...]:
        call = call_of(tensors)
        empty: dict[str, Tensor] = {}
        for name, tensor in call._asdict().items():
            if tensor is not None and wanted[name]:
                empty[name] = tensor.new_empty(tensor.shape)
        sizes = _host_sizes(levels)
        if not _add_up(sizes, S):
            return tuple(empty[name].fill_(float("nan")) if name in empty else None for name in wanted)
        if "references" in empty:  # of each head first
            empty["references"] = torch.empty(B, Q, H, kind.L, kind.coordinates, dtype=compute)
        if grad_output.stride(2) != 1:
            grad_output = grad_output.contiguous()
        if grad_output.dtype != value_dtype:
            grad_output = grad_output.to(value_dtype)
        threads = _threads(2 * B * Q * H * kind.LP, B * H * Q)
        shares = -(-threads // (B * H)) if B * H else 1
        flags = {name: name in empty for name in ("value", "references", "points", "weights")}
        function = _backward(kind, backward.Needs(**flags, shared=shares > 1))
        units = B * H * shares
        table, order = _level_table(sizes, kind, row_bytes, sums_bytes), _order(sizes, Q)
        scratch = torch.zeros(threads * backward.Scratch.bytes(kind), dtype=torch.uint8)
        sums = None
        if "value" in empty and backward.has_sums(kind):
            sums = torch.empty((B * H if shares > 1 else threads) * S * kind.D, dtype=compute)
        step = grad_output.element_size()
        numbers = fixed | call.pointers()
        numbers |= {f"grad_{name}": tensor.data_ptr() for name, tensor in empty.items()}
        numbers |= {
            "units": units,
            "shares": shares,
            "scratch": scratch.data_ptr(),
            "levels": ctypes.addressof(table),
            "order": order.buffer_info()[0],
            "sums": 0 if sums is None else sums.data_ptr(),
            "grad_output": grad_output.data_ptr(),
            "grad_output_b": grad_output.stride(0) * step,
            "grad_output_q": grad_output.stride(1) * step,
            "grad_output_h": kind.D * step,
        }
        function(numbers, threads, (call, table, order, scratch, sums, grad_output, empty))
        if "references" in empty:
            heads = empty["references"].unbind(2)
            total = heads[0]
            for head in heads[1:]:  # one after another: the same order, whatever the shape
                total = total + head
            assert call.references is not None
            empty["references"] = total.to(call.references.dtype)
        return tuple(empty.get(name) for name in wanted)

    return run


class _Function:
    """A compiled function, with its arguments by name."""

    def __init__(self, address: int, names: Sequence[str]) -> None:
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self._names = names

    def __call__(self, numbers: dict[str, int], threads: int, memory: Any) -> None:
        """
        Args:
            numbers: arguments that are not named are 0.
            memory: owns everything that the numbers point to.
        """
        if numbers["units"] == 0:
            return
        get = numbers.get
        arguments = array("q", [get(name, 0) for name in self._names])
        POOL.run(self._call, arguments.buffer_info()[0], min(threads, numbers["units"]), (arguments, memory))


@cache
def _forward(kind: Kind) -> _Function:
    return _Function(compile_module(forward.emit(kind).finish()), forward.ARGUMENTS)


@cache
def _backward(kind: Kind, needs: backward.Needs) -> _Function:
    return _Function(compile_module(backward.emit(kind, needs).finish()), backward.ARGUMENTS)


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def _host_sizes(levels: Levels) -> tuple[int, ...]:
    return levels if isinstance(levels, tuple) else tuple(levels.flatten().tolist())


@lru_cache(maxsize=1024)
def _add_up(sizes: tuple[int, ...], S: int) -> bool:
    return min(sizes) >= 1 and sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True)) == S


@lru_cache(maxsize=1024)
def _level_table(sizes: tuple[int, ...], kind: Kind, row_bytes: int, sums_bytes: int) -> ctypes.Array[ctypes.c_char]:
    packed = level_table(sizes, kind, row_bytes, sums_bytes)
    return ctypes.create_string_buffer(packed, len(packed))


@lru_cache(maxsize=64)
def _order(sizes: tuple[int, ...], Q: int) -> "array[int]":
    """The order in which queries are gone through: as they come, or tile by tile if they are the levels' pixels."""
    pixels = torch.arange(Q, dtype=torch.int32)
    if sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True)) == Q:
        tiles: list[Tensor] = []
        start = 0
        for h, w in zip(sizes[::2], sizes[1::2], strict=True):
            level = pixels[start : start + h * w].view(h, w)
            tiles += [tile.flatten() for band in level.split(_TILE, 0) for tile in band.split(_TILE, 1)]
            start += h * w
        pixels = torch.cat(tiles)
    return array("i", pixels.tolist())


def _threads(points: int, most: int) -> int:
    """How many threads a call is worth."""
    return max(1, min(torch.get_num_threads(), most, points // _WORTH_A_THREAD))
