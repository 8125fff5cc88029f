"""From tensors to kernel launches: block sizes, strides, output buffers.

:func:`prepare_forward` and :func:`prepare_backward` settle all that a call's shapes, dtypes and strides decide, and
return a function of its tensors: the call cache keeps it, everyone else calls it at once.

A forward is one launch. A backward with atomics is one, after zeros are filled in, and one more to round a 16-bit
gradient; a sorted backward is four, zeros, and a sort of PyTorch's. Gradients of references take one more, to add up.

``levels`` are the level sizes as a flat tuple of Python ints, which go to the kernel by value, or an int64 tensor
(L, 2) on the device, which the kernels read; nothing here copies from or to the host.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver

from ..autograd import Levels
from ..backend import Call, Tensors, call_of
from ..cuda import tiles
from .backward_atomic import backward_kernel
from .backward_sorted import SHARES, cells_kernel, keys_kernel, pixels_kernel, points_kernel, shares_kernel
from .cache import checked_cache
from .forward import forward_kernel
from .interpreter import interpreting

_INT32_LIMIT = 2**31
_MOST_PROGRAMS = 65535  # along the second and third axis of a grid
_METHODS = ("auto", "sorted", "atomics", "tiles")
RUN = 32  # sorted points of a walk
# rows of an encoder's queries that are walked together: a simulation of the caches chose it, no GPU has timed it
BAND = 8
SORTED_OPTIONS: dict[str, dict[str, int]] = {"cells": {"num_warps": 1}}
_POINTS_AT_ONCE = 2**23
_SUMS_AT_ONCE = 2**30  # bytes
_MOST_SHARES = 256  # that a pixel adds up one after the other
_INT32_COUNT = 2**31  # what 32 bits count, of points and corners


def _method_from_environment() -> str:
    method = os.environ.get("MSDEFORM_TRITON_BACKWARD") or "auto"
    if method not in _METHODS:
        raise ValueError(
            f"MSDEFORM_TRITON_BACKWARD: expected {', '.join(_METHODS[:-1])} or {_METHODS[-1]}, got {method!r}"
            + "; it is called sorted now" * (method == "cells")
        )
    return method


_HERE = nullcontext()
backward_method = _method_from_environment()
"""how the gradient of value is made where determinism does not decide: see `sorts`"""

tile: tiles.Tile | None = None
"""of the backward by tiles; `usual_tile` if None"""


@contextmanager
def replaced(**constants: Any) -> Iterator[None]:
    """Within, names of this module (`backward_method`, `tile`, `forward_parameters`) stand for something else, so that
    benchmarks can compare the ways of launching."""
    usual = {name: globals()[name] for name in constants}
    globals().update(constants)
    try:
        yield
    finally:
        globals().update(usual)


class Launch:
    """A kernel with all that it is launched with but its tensors.

    Triton's own launcher takes far longer to find the compiled kernel that fits than to launch it (``msdeform bench
    dispatch`` has both, as `launch` and `launches only`). Nothing of what it looks at changes between calls of one
    `Launch` but where tensors begin, so the kernel is kept for tensors that all begin at multiples of 16 bytes, as
    PyTorch allocates them.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        levels: Levels,
        numbers: tuple[int, ...],
        parameters: dict[str, Any],
        options: dict[str, int],
    ) -> None:
        self.kernel, self.numbers = kernel, numbers
        self.grid = (*grid, 1, 1)[:3]
        # Triton compiles anew for a number that is 1 or a multiple of 16: of a tuple it cannot be told not to
        self.levels = tuple(2 * size + 1 for size in levels) if isinstance(levels, tuple) else None
        self.keywords = parameters | options | {"BY_VALUE": self.levels is not None}
        self.compiled: Any = None

    def __call__(self, levels: Levels, *tensors: Tensor | None) -> None:
        if self.levels is not None:
            levels, start = self.levels, 0
        else:
            start = levels.data_ptr()  # type: ignore[union-attr]
        for tensor in tensors:
            if tensor is not None:
                start |= tensor.data_ptr()
        kept = self.compiled
        if kept is None or start & 15:
            with checked_cache():
                compiled = self.kernel[self.grid](levels, *tensors, *self.numbers, **self.keywords)
            if compiled is not None and not start & 15:
                names = self.kernel.arg_names
                # all parameters in their order, those that are compiled in too
                self.rest = (*self.numbers, *(self.keywords[name] for name in names if name in self.keywords))
                self.compiled, self.run, self.function = compiled, compiled.run, compiled.function
                self.packed = compiled.packed_metadata
        elif knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:  # a profiler's
            kept[self.grid](levels, *tensors, *self.rest)
        else:  # what the line above comes to, in a quarter of the time
            active = driver.active
            stream = active.get_current_stream(active.get_current_device())
            run, function, packed = self.run, self.function, self.packed
            run(*self.grid, stream, function, packed, None, None, None, levels, *tensors, *self.rest)


def prepare_forward(levels: Levels, tensors: Tensors) -> Callable[[Levels, Tensors], Tensor]:
    """The forward of calls like this one: (levels, tensors) -> (B, Q, H*D)."""
    call = call_of(tensors)
    dense = [tensor for tensor in call if tensor is not None]
    copies = any(a is not b for a, b in zip(dense, tensors, strict=True))
    value, references, points, _ = call
    B, _, H, D = value.shape
    Q = points.shape[1]
    shape, dtype, stored = (B, Q, H * D), value.dtype, stored_dtype(value)
    if B * Q == 0:
        return lambda levels, tensors: tensors[0].new_empty(shape)
    parameters = forward_parameters(call)
    options = forward_options(value)
    numbers = (*_sizes(call), value.stride(0), value.stride(2), *_point_strides(call))
    grids = [(-(-Q // parameters["BLOCK_Q"]), H, min(B - b, _MOST_PROGRAMS)) for b in range(0, B, _MOST_PROGRAMS)]
    launches = [Launch(forward_kernel, grid, levels, numbers, parameters, options) for grid in grids]
    pairs, fused, whole, only = parameters["PAIRS"], references is not None, len(launches) == 1, launches[0]

    def run(levels: Levels, tensors: Tensors) -> Tensor:
        if copies:
            value, references, points, weights = call_of(tensors)
        elif fused:
            value, references, points, weights = tensors
        else:
            (value, points, weights), references = tensors, None
        # where memory begins is not part of the key
        if pairs and value.data_ptr() % 4:
            return prepare_forward(levels, tensors)(levels, tensors)
        output = value.new_empty(shape, dtype=stored)
        if whole and on_current_device(value):
            only(levels, value, points, weights, references, output)
        else:
            with device_of(value):
                for i, launch in enumerate(launches):  # several for a batch that no grid holds
                    part = slice(i * _MOST_PROGRAMS, (i + 1) * _MOST_PROGRAMS)
                    every = (value, points, weights, references, output)
                    launch(levels, *(None if t is None else t[part] for t in every))
        return output if stored is dtype else output.to(dtype)

    return run


def prepare_backward(
    grad_output: Tensor, levels: Levels, tensors: Tensors, needs: tuple[bool, ...]
) -> Callable[[Tensor, Levels, Tensors], tuple[Tensor | None, ...]]:
    """The backward of calls like this one: (grad_output, levels, tensors) -> the gradients that are needed, each in its
    input's dtype, and None for the others."""
    fused = len(tensors) == 4
    four = (needs[0], fused and needs[1], needs[-2], needs[-1])
    ways: dict[Any, Callable[..., tuple[Tensor | None, ...]]] = {}

    def run(grad_output: Tensor, levels: Levels, tensors: Tensors) -> tuple[Tensor | None, ...]:
        call = call_of(tensors)
        if grad_output.stride(-1) != 1:  # what sum().backward() gives: every stride zero
            grad_output = grad_output.contiguous()
        prepare = _prepare_sorted if four[0] and sorts(call.value, call.points) else _prepare_atomic
        by_tiles = backward_method == "tiles" and not interpreting() and tiles.refuses(call) is None
        if by_tiles and prepare is _prepare_atomic:
            prepare = _prepare_tiles
        way = ways.get((prepare, tile))
        if way is None:
            way = ways[prepare, tile] = prepare(grad_output, levels, call, four)
        with device_of(call.value):
            value, references, points, weights = way(grad_output, levels, call)
        return (value, references, points, weights) if fused else (value, points, weights)

    return run


def forward(levels: Levels, tensors: Tensors) -> Tensor:
    """The forward of one call: (B, Q, H*D)."""
    return prepare_forward(levels, tensors)(levels, tensors)


def backward(
    grad_output: Tensor, levels: Levels, tensors: Tensors, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of one call that are needed."""
    return prepare_backward(grad_output, levels, tensors, needs)(grad_output, levels, tensors)


def sorts(value: Tensor, points: Tensor) -> bool:
    """Whether the gradient of value is added up in a fixed order, point sorted by cell, or by atomics, in one launch.

    Sorted where determinism or `backward_method` asks for it, by atomics otherwise: no GPU has measured yet which one
    is faster on an encoder.

    Raises:
        ValueError: determinism is asked for, and a sample is larger than a sort or the kernels count.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    if not deterministic and backward_method != "sorted":
        return False
    _, Q, H, L, P, _ = points.shape
    S = value.shape[1]
    if points.numel() == 0 or S == 0:
        return False
    if max(H * Q * L * P, 4 * S) >= _INT32_COUNT:
        if deterministic:
            raise ValueError(
                "the triton backend has no deterministic backward of a sample this large: expected H*Q*L*P and 4*S "
                f"below 2**31, got {H}*{Q}*{L}*{P} and 4*{S}; split the queries, or set "
                "torch.use_deterministic_algorithms(False)"
            )
        return False
    return True


Needs = tuple[bool, bool, bool, bool]
"""of value, references, points and weights"""


def _small_gradients(call: Call, needs: Needs) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for a share of the references' gradients of each head, and for those of points and weights; empty where
    not needed."""
    value, references, points, weights = call
    coordinates = 2 if references is None else references.shape[-1]
    shares = (*points.shape[:4], coordinates)
    return (
        value.new_empty(shares if needs[1] else 0, dtype=call.compute),
        points.new_empty(points.shape if needs[2] else 0, dtype=stored_dtype(points)),
        weights.new_empty(weights.shape if needs[3] else 0, dtype=stored_dtype(weights)),
    )


def _rounded(
    call: Call, needs: Needs, grad_value: Tensor, shares: Tensor, grad_points: Tensor, grad_weights: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients in their inputs' dtypes, shares of heads added up; None where not needed."""
    grad_references = shares.sum(2) if needs[1] else shares
    gradients = (grad_value, grad_references, grad_points, grad_weights)
    return tuple(
        None if like is None or not needed else gradient if gradient.dtype is like.dtype else gradient.to(like.dtype)
        for gradient, like, needed in zip(gradients, call, needs, strict=True)
    )


def _prepare_atomic(
    grad_output: Tensor, levels: Levels, call: Call, needs: Needs
) -> Callable[[Tensor, Levels, Call], tuple[Tensor | None, ...]]:
    """One launch; the gradient of value by atomics, into zeros."""
    B, S, H, D = call.value.shape
    Q = call.points.shape[1]
    # reductions in float32 whatever the dtype, rounded once at the end: repeated 16-bit adds lose percents
    compute = call.compute
    parameters = backward_parameters(grad_output, call, needs)
    # query blocks run fastest, then heads, then the batch: neighbours in time share a head's pixels in the cache
    grid = (B * H * -(-Q // parameters["BLOCK_Q"]),)
    value = call.value
    strides = (*grad_output.stride()[:2], value.stride(0), value.stride(2), *_point_strides(call))
    launch = Launch(backward_kernel, grid, levels, (*_sizes(call), *strides), parameters, backward_options(value))
    nothing = B * Q == 0 or not any(needs)

    def run(grad_output: Tensor, levels: Levels, call: Call) -> tuple[Tensor | None, ...]:
        value, references, points, weights = call
        grad_value = value.new_zeros((B, S, H, D) if needs[0] else 0, dtype=compute)
        shares, grad_points, grad_weights = _small_gradients(call, needs)
        if not nothing:
            launch(
                levels, grad_output, value, points, weights, references, grad_value, grad_points, grad_weights, shares
            )
        return _rounded(call, needs, grad_value, shares, grad_points, grad_weights)

    return run


def _prepare_tiles(
    grad_output: Tensor, levels: Levels, call: Call, needs: Needs
) -> Callable[[Tensor, Levels, Call], tuple[Tensor | None, ...]]:
    """One launch of a kernel of CUDA C++, which adds the points of neighbouring queries up before its atomics."""
    launch = tiles.prepare(call, needs, tile)
    shape = call.value.shape

    def run(grad_output: Tensor, levels: Levels, call: Call) -> tuple[Tensor | None, ...]:
        grad_value = call.value.new_zeros(shape if needs[0] else 0, dtype=torch.float32)
        shares, grad_points, grad_weights = _small_gradients(call, needs)
        launch(grad_output, levels, call, grad_value, shares, grad_points, grad_weights)
        return _rounded(call, needs, grad_value, shares, grad_points, grad_weights)

    return run


def _sizes(call: Call) -> tuple[int, int, int]:
    """S, Q, H."""
    return call.value.shape[1], call.points.shape[1], call.value.shape[2]


def _point_strides(call: Call) -> tuple[int, ...]:
    """Strides of points and weights by batch, query and head, and of references by batch, query and level."""
    references = (0, 0, 0) if call.references is None else call.references.stride()[:3]
    return (*call.points.stride()[:3], *call.weights.stride()[:3], *references)


def _prepare_sorted(
    grad_output: Tensor, levels: Levels, call: Call, needs: Needs
) -> Callable[[Tensor, Levels, Call], tuple[Tensor | None, ...]]:
    """Without atomics: four launches and a sort, and a fifth where a cell may hold thousands of points, for as many
    samples as keep the temporary memory, about 60 bytes a point and four times value's in float32, within bounds."""
    B, S, H, D = call.value.shape
    _, Q, _, L, P, _ = call.points.shape
    N = Q * L * P
    parameters = sorted_parameters(grad_output, call, needs)
    run_length = parameters["cells"]["RUN"]
    walks = -(-N // run_length)
    combinations = combinations_of_shares(-(-Q * P // run_length) + 1)
    compute = call.compute
    sums_of_sample = H * (S + walks) * 4 * D * compute.itemsize
    samples = max(1, min(_POINTS_AT_ONCE // (H * N), _SUMS_AT_ONCE // sums_of_sample, _MOST_PROGRAMS // H))

    def launches(rows: int) -> Callable[..., None]:
        """The launches for so many batch entries and heads."""

        def launch(name: str, kernel: Any, count: int, numbers: tuple[int, ...]) -> Launch:
            grid = (-(-count // parameters[name].get("BLOCK_Q", 1)), rows)
            return Launch(kernel, grid, levels, numbers, parameters[name], SORTED_OPTIONS.get(name, {}))

        sizes = (S, Q, H)
        strides = _point_strides(call)
        value = call.value
        batch = (grad_output.stride(0), value.stride(0), value.stride(2))
        keys = launch("keys", keys_kernel, Q, (*sizes, *strides))
        walked = launch("cells", cells_kernel, -(-walks // parameters["cells"]["WALKS"]), (*sizes, *batch))
        steps = [SHARES.value**power for power in range(combinations)]
        combined = [
            launch("shares", shares_kernel, -(-walks // (step * SHARES.value)), (S, N, walks, step)) for step in steps
        ]
        pixels = launch("pixels", pixels_kernel, S, (S, H, walks, 4 * combinations))
        points = launch("points", points_kernel, Q, (*sizes, *strides[:3], *strides[6:]))
        # 16 keys for each pixel, and for none
        key = torch.int32 if rows * (S + 1) * 16 < _INT32_LIMIT else torch.int64

        def run(grad_output: Tensor, levels: Levels, call: Call, gradients: tuple[Tensor, ...]) -> None:
            value, references, offsets, weights = call
            grad_value, shares, grad_points, grad_weights = gradients
            unsorted = value.new_empty(rows * N, dtype=key)
            records = value.new_empty(rows * N, 4, dtype=compute)
            keys(levels, offsets, weights, references, unsorted, records)
            in_order, order = unsorted.sort(stable=True)
            sums = value.new_empty(rows, S + walks, 4, D, dtype=compute)
            firsts, lasts = value.new_zeros(2, rows, S, 4, dtype=torch.int32)
            walked(levels, grad_output, value, in_order, order, records, sums, firsts, lasts)
            for combine in combined:
                combine(levels, in_order, sums, firsts, lasts)
            pixels(levels, sums, firsts, lasts, grad_value)
            if any(needs[1:]):
                points(levels, offsets, references, records, grad_points, grad_weights, shares)

        return run

    parts = [slice(begin, min(begin + samples, B)) for begin in range(0, B, samples)]
    by_rows = {part.stop - part.start: launches((part.stop - part.start) * H) for part in parts}

    def run(grad_output: Tensor, levels: Levels, call: Call) -> tuple[Tensor | None, ...]:
        grad_value = call.value.new_empty(B, S, H, D, dtype=stored_dtype(call.value))
        gradients = (grad_value, *_small_gradients(call, needs))
        for part in parts:
            some, mine = call, gradients
            if len(parts) > 1:
                some = Call(*(None if tensor is None else tensor[part] for tensor in call))  # type: ignore[arg-type]
                mine = tuple(g[part] if needed else g for g, needed in zip(gradients, needs, strict=True))  # type: ignore[assignment]
            by_rows[part.stop - part.start](grad_output[part], levels, some, mine)
        return _rounded(call, needs, *gradients)

    return run


def combinations_of_shares(walks: int) -> int:
    """How often shares are combined, so that a pixel waits for at most `_MOST_SHARES` of a run of so many walks."""
    times = 0
    while walks // SHARES.value**times + 2 > _MOST_SHARES:
        times += 1
    return times


def sorted_parameters(grad_output: Tensor, call: Call, needs: Needs) -> dict[str, dict[str, Any]]:
    """The compile-time parameters of the kernels of the sorted backward, by their names."""
    value, references, points, _ = call
    _, Q, _, L, P, _ = points.shape
    D = value.shape[3]
    compute = tl.float64 if call.compute is torch.float64 else tl.float32
    block_d = power_of_2(D)
    block_lp = power_of_2(L * P)
    pairs = value.dtype.itemsize == 2 and D == block_d >= 2 and compute == tl.float32
    pairs = pairs and all(t.dtype is value.dtype and _readable_in_pairs(t) for t in (value, grad_output))
    # a lane reads 16 bytes of value, and adds up 16 bytes of float32 at a time
    vec = max(min(16 // max(4, value.dtype.itemsize), block_d // 2 if pairs else block_d), block_d // 32)
    lanes = block_d // (2 * vec if pairs else vec)
    # of one batch entry or head the stride is any number
    apart = [t.stride(0) for t in (grad_output, value) if t.shape[0] > 1] + [value.stride(2) * (value.shape[2] > 1), D]
    aligned = all(stride % (vec * (1 + pairs)) == 0 for stride in apart)
    share = min(lanes, 8)
    if interpreting():  # its cost is per program and per operation, whatever their size
        queries, walks, pixels, run = power_of_2(Q), 256, 256, max(4, share)
    else:
        queries = max(1, 512 // block_lp)
        pixels = max(1, (256 if compute == tl.float64 else 512) // block_d)
        # a warp, so that none waits for another where a run ends
        walks = 32 // lanes
        run = RUN
    kind = {"L": L, "P": P, "FUSED": references is not None, "COMPUTE": compute}
    kind["BOXES"] = references is not None and references.shape[-1] == 4
    kind |= {"BLOCK_Q": queries, "BLOCK_LP": block_lp}
    return {
        "keys": kind,
        "cells": {
            "GRAD_STRIDE": grad_output.stride(1) // (1 + pairs),
            "STRIDE": value.stride(1) // (1 + pairs),
            "NEXT": value.stride(1) // (1 + pairs) if value.shape[1] > 1 else 0,
            "L": L,
            "P": P,
            "D": D,
            "COMPUTE": compute,
            "NEED_SLOPES": any(needs[1:]),
            "RUN": run,
            "SHARE": share,
            "WALKS": walks,
            "LANES": lanes,
            "VEC": vec,
            "PAIRS": {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[value.dtype] if pairs else None,
            "ALIGNED": aligned,
        },
        "shares": {"D": D, "RUN": run, "BLOCK_D": block_d},
        "pixels": {"L": L, "D": D, "BLOCK_Q": pixels, "BLOCK_D": block_d, "PAIRS": pairs},
        "points": kind | {"NEED_REFERENCES": needs[1], "NEED_POINTS": needs[2], "NEED_WEIGHTS": needs[3]},
    }


def _align(tensor: Tensor | None, axes: int = 3) -> int:
    """What the strides of a tensor's first axes are multiples of, 16 at most: the same for every image size."""
    if tensor is None:
        return 16
    return math.gcd(16, *tensor.stride()[tensor.shape[0] == 1 : axes])  # the stride of a batch of one says nothing


def _common_parameters(call: Call) -> dict[str, Any]:
    """What forward and backward with atomics are compiled for: no height, width, S or Q, and no stride that they
    decide, so that an image of another size compiles nothing."""
    value, references, points, weights = call
    return {
        "STRIDE": value.stride(1),
        "D": value.shape[3],
        "L": points.shape[3],
        "P": points.shape[4],
        "VALUE_ALIGN": _align(value),
        "POINTS_ALIGN": _align(points),
        "WEIGHTS_ALIGN": _align(weights),
        "REFERENCES_ALIGN": _align(references),
        "FUSED": references is not None,
        "BOXES": references is not None and references.shape[-1] == 4,
        "COMPUTE": tl.float64 if call.compute is torch.float64 else tl.float32,
    }


def forward_parameters(call: Call) -> dict[str, Any]:
    """The forward's compile-time parameters: of Q only whether there are as many queries as pixels."""
    value, _, points, _ = call
    _, Q, _, L, P, _ = points.shape
    D = value.shape[3]
    double = call.compute is torch.float64
    block_d = power_of_2(D)
    # a lane reads 16 bytes, and a query's lanes lie in one warp
    vec = max(min(16 // value.dtype.itemsize, block_d), block_d // 32)
    lanes = block_d // vec
    if interpreting():  # its cost is per program and per operation, whatever their size
        block_q = power_of_2(Q)
    else:  # elements of a tile over 4 warps: enough of them in flight, without spilling
        elements = 512 if double else {torch.float32: 1024}.get(value.dtype, 2048)
        block_q = max(1, min(64, elements // block_d))
    return _common_parameters(call) | {
        "PAIRS": value.dtype is torch.bfloat16 and not double and D == block_d >= 2 and _readable_in_pairs(value),
        "BLOCK_Q": block_q,
        "LANES": lanes,
        "VEC": vec,
        "CHUNK": _chunk(L * P, lanes),
        "WIDE": max(_whole_span(t) for t in call if t is not None) >= _INT32_LIMIT
        or value.shape[0] * Q * value.shape[2] * D >= _INT32_LIMIT,
        # in 16 bits, and at few points, instructions take longer than the cache: the walk would cost more than it saves
        "BAND": BAND if value.dtype is torch.float32 and L * P >= 8 and Q == value.shape[1] < 2**20 else 0,
    }


def _chunk(points: int, lanes: int) -> int:
    """How many points lanes share out at a time: a power of two that leaves few lanes and few turns idle. A point costs
    about 28 instructions, a chunk 50."""
    sizes = [2**i for i in range(lanes.bit_length())]
    return min(sizes, key=lambda size: (28 * size + 50) * -(-points // size))


def _readable_in_pairs(value: Tensor) -> bool:
    """Whether every row begins at a multiple of 4 bytes."""
    return all(stride % 2 == 0 for stride in value.stride()[:-1]) and value.data_ptr() % 4 == 0


def backward_parameters(grad_output: Tensor, call: Call, needs: Needs) -> dict[str, Any]:
    """The compile-time parameters of a backward with atomics.

    The small gradients of a query are collected in register tiles, as wide as the channels where they fit: then the
    tiles share one register layout, and nothing passes through shared memory.
    """
    value, _, points, weights = call
    _, Q, H, L, P, _ = points.shape
    D = value.shape[3]
    double = call.compute is torch.float64
    wide = max(value.shape[1], Q) * H * D >= _INT32_LIMIT
    for tensor in (value, points, weights):  # memory that is small is not walked far
        if tensor.untyped_storage().nbytes() >= _INT32_LIMIT:
            wide = wide or _span(tensor) >= _INT32_LIMIT
    block_d = power_of_2(D)
    block_2lp = max(power_of_2(2 * L * P), block_d)
    if interpreting():  # its cost is per program and per operation, whatever their size
        # at least 2: its atomic_add reads a mask that is broadcast from one row of one element wrongly
        block_q = max(2, power_of_2(Q))
    else:  # elements of a tile over 4 warps: 96 registers a thread at D=32
        block_q = max(1, min(64, (256 if double else 512) // block_d, 4096 // block_2lp))
    return _common_parameters(call) | {
        "GRAD_ALIGN": _align(grad_output, axes=2),
        "NEED_VALUE": needs[0],
        "NEED_REFERENCES": needs[1],
        "NEED_POINTS": needs[2],
        "NEED_WEIGHTS": needs[3],
        "WIDE": wide,
        # the points of a level are unrolled, levels are not: 16 points unrolled are 100 kB of backward code, and
        # compile in half a minute where four take a few seconds
        "UNROLL": P if P <= 4 and block_d == D and D <= 64 else 1,
        "BLOCK_Q": block_q,
        "BLOCK_D": block_d,
        "BLOCK_LP": max(power_of_2(L * P), block_d),
        "BLOCK_2LP": block_2lp,
    }


def forward_options(value: Tensor) -> dict[str, int]:
    """Compiler options of a forward. ptxas takes as many registers as it may, to have loads in flight, and spills a
    number or two that lie idle for long; with these limits it doesn't."""
    if value.dtype.itemsize > 4 or value.shape[3] > 64:
        return {}
    return {"maxnreg": 128 if value.dtype.itemsize == 2 else 116}


def backward_options(value: Tensor) -> dict[str, int]:
    """Compiler options of a backward. For 16-bit values ptxas aims at 96 registers and spills one to get there on some
    architectures; a stated limit takes that aim away."""
    return {"maxnreg": 128} if value.dtype.itemsize == 2 and value.shape[3] <= 64 else {}


def power_of_2(n: int) -> int:
    """The least power of two that is no less than `n`; Triton's own takes as long as allocating a tensor."""
    return 1 << (n - 1).bit_length()


def stored_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype a kernel stores for a result of ``tensor``'s dtype: that one; float32 for bfloat16 in the interpreter,
    whose conversion truncates where the device rounds to nearest."""
    return torch.float32 if interpreting() and tensor.dtype is torch.bfloat16 else tensor.dtype


def device_of(value: Tensor) -> Any:
    """Launch on value's device; Triton launches on the current one."""
    return _HERE if on_current_device(value) else torch.cuda.device(value.get_device())


def on_current_device(value: Tensor) -> bool:
    """As nearly always: entering a device takes longer."""
    index = value.get_device()
    return index < 0 or index == torch.cuda.current_device()


def _whole_span(tensor: Tensor) -> int:
    """Elements from the first to the last."""
    return 1 + sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _span(tensor: Tensor) -> int:
    """Elements from the first to the last of one batch entry and one head, as the kernels' offsets count them."""
    sizes, strides = tensor.shape[1:], tensor.stride()[1:]
    return 1 + sum((size - 1) * abs(stride) for size, stride in zip(sizes, strides, strict=True))
