"""From tensors to kernel launches: block sizes, strides, output buffers.

A forward is one launch. A backward with atomics is one, after zeros are filled in, and one more to round a 16-bit
gradient; a backward by cell is four, zeros, and a sort of PyTorch's. Gradients of references take one more, to add up.

``levels`` is an int64 tensor (L, 2) on the device, read by the kernels; nothing here copies from or to the host.
"""

import os
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..registry import interpreting
from . import tuning
from .backward import backward_kernel
from .backward_sorted import (
    SHARES,
    cells_kernel,
    keys_kernel,
    pixels_kernel,
    points_kernel,
    shares_kernel,
)
from .forward import forward_kernel

_INT32_LIMIT = 2**31
_MOST_PROGRAMS = 65535  # along the second and third axis of a grid
_METHODS = ("auto", "cells", "atomics")
RUN = 32  # sorted points of a walk
BAND = 8  # rows of an encoder's queries that are walked together: see `msdeform bench cache`
BY_CELL_OPTIONS: dict[str, dict[str, int]] = {"cells": {"num_warps": 1}}
_POINTS_AT_ONCE = 2**23
_SUMS_AT_ONCE = 2**30  # bytes
_MOST_SHARES = 256  # that a pixel adds up one after the other
_INT32_COUNT = 2**31  # what 32 bits count, of points and corners


def _method_from_environment() -> str:
    method = os.environ.get("MSDEFORM_TRITON_BACKWARD") or "auto"
    if method not in _METHODS:
        raise ValueError(
            f"MSDEFORM_TRITON_BACKWARD: expected {', '.join(_METHODS[:-1])} or {_METHODS[-1]}, got {method!r}"
        )
    return method


_HERE = nullcontext()
backward_method = _method_from_environment()
"""how the gradient of value is made where determinism does not decide: see `adds_by_cell`"""


def forward(value: Tensor, levels: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """ms_deform_attn: (B, S, H, D), (L, 2), (B, Q, H, L, P, 2), (B, Q, H, L, P) -> (B, Q, H*D)."""
    return _forward(value, levels, None, locations, weights)


def backward(
    grad_output: Tensor, value: Tensor, levels: Tensor, locations: Tensor, weights: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each in its input's dtype; empty where not needed."""
    need_value, need_points, need_weights = needs
    grad_value, _, grad_points, grad_weights = _backward(
        grad_output, value, levels, None, locations, weights, (need_value, False, need_points, need_weights)
    )
    return grad_value, grad_points, grad_weights


def fused_forward(value: Tensor, levels: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """fused_ms_deform_attn: references (B, Q, L, 2 or 4), offsets and logits as locations and weights above."""
    return _forward(value, levels, references, offsets, logits)


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    levels: Tensor,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, references, offsets and logits, each in its input's dtype; empty where not needed."""
    return _backward(grad_output, value, levels, references, offsets, logits, needs)


def _forward(value: Tensor, levels: Tensor, references: Tensor | None, points: Tensor, weights: Tensor) -> Tensor:
    B, _, H, D = value.shape
    Q = points.shape[1]
    output = value.new_empty(B, Q, H * D, dtype=stored_dtype(value))
    if output.numel() == 0:
        return output.to(value.dtype)
    value, references, points, weights = _dense_rows(value, references, points, weights)
    meta = forward_parameters(value, references, points, weights)
    numbers = forward_numbers(value, references, points, weights)
    with device_of(value):
        for b in range(0, B, _MOST_PROGRAMS):  # one launch, but for a batch that no grid holds
            tensors: tuple[Any, ...] = (value, points, weights, references, output)
            if B > _MOST_PROGRAMS:
                tensors = tuple(None if t is None else t[b : b + _MOST_PROGRAMS] for t in tensors)
            forward_kernel[forward_grid(min(B - b, _MOST_PROGRAMS), H, Q, meta)](
                tensors[0], levels, *tensors[1:], *numbers, **meta, **forward_options(value, points)
            )
    return output.to(value.dtype)


def forward_grid(B: int, H: int, Q: int, meta: dict[str, Any]) -> tuple[int, int, int]:
    """Programs of a forward."""
    return -(-Q // meta["BLOCK_Q"]), H, B


def forward_numbers(value: Tensor, references: Tensor | None, points: Tensor, weights: Tensor) -> tuple[int, ...]:
    """What a forward is launched with beside its tensors: S, Q, H and strides."""
    return (
        value.shape[1],
        points.shape[1],
        value.shape[2],
        value.stride(0),
        value.stride(2),
        *points.stride()[:3],
        *weights.stride()[:3],
        *(references.stride()[:3] if references is not None else (0, 0, 0)),
    )


def _backward(
    grad_output: Tensor,
    value: Tensor,
    levels: Tensor,
    references: Tensor | None,
    points: Tensor,
    weights: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, S, H, D = value.shape
    Q, L = points.shape[1], points.shape[3]
    need_value, need_references, need_points, need_weights = needs
    compute = compute_dtype(value, references, points, weights)
    coordinates = 2 if references is None else references.shape[-1]
    shares = value.new_empty((B, Q, H, L, coordinates) if need_references else 0, dtype=compute)
    grad_points = points.new_empty(points.shape if need_points else 0, dtype=stored_dtype(points))
    grad_weights = weights.new_empty(weights.shape if need_weights else 0, dtype=stored_dtype(weights))
    by_cell = B * Q > 0 and need_value and adds_by_cell(value, points)
    if by_cell:
        grad_value = value.new_empty(B, S, H, D, dtype=stored_dtype(value))
    else:
        # reductions in float32 whatever the dtype, rounded once at the end: repeated 16-bit adds lose percents
        grad_value = value.new_zeros((B, S, H, D) if need_value else 0, dtype=compute)
    if B * Q > 0 and any(needs):
        value, references, points, weights = _dense_rows(value, references, points, weights)
        if grad_output.stride(-1) != 1:  # what sum().backward() gives: every stride zero
            grad_output = grad_output.contiguous()
        run = _backward_by_cell if by_cell else _backward_by_query
        with device_of(value):
            run(
                grad_output,
                value,
                levels,
                references,
                points,
                weights,
                (grad_value, shares, grad_points, grad_weights),
                needs,
            )
    grad_references = value.new_empty(0)
    if references is not None and need_references:
        grad_references = shares.sum(2).to(references.dtype)
    return (
        _rounded(grad_value, value),
        grad_references,
        _rounded(grad_points, points),
        _rounded(grad_weights, weights),
    )


def _rounded(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient if gradient.dtype is like.dtype else gradient.to(like.dtype)


def adds_by_cell(value: Tensor, points: Tensor) -> bool:
    """Whether the gradient of value is summed by cell, in a fixed order, or by atomics, in one launch.

    By cell where determinism or `backward_method` asks for it, by atomics otherwise: no GPU has measured yet which one
    is faster on an encoder.

    Raises:
        ValueError: determinism is asked for, and a sample is larger than a sort or the kernels count.
    """
    _, Q, H, L, P, _ = points.shape
    S = value.shape[1]
    if S == 0:
        return False
    if max(H * Q * L * P, 4 * S) >= _INT32_COUNT:
        if torch.are_deterministic_algorithms_enabled():
            raise ValueError(
                "the triton backend has no deterministic backward of a sample this large: expected H*Q*L*P and 4*S "
                f"below 2**31, got {H}*{Q}*{L}*{P} and 4*{S}; split the queries, or set "
                "torch.use_deterministic_algorithms(False)"
            )
        return False
    return torch.are_deterministic_algorithms_enabled() or backward_method == "cells"


def _backward_by_query(
    grad_output: Tensor,
    value: Tensor,
    levels: Tensor,
    references: Tensor | None,
    points: Tensor,
    weights: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor, Tensor],
    needs: tuple[bool, bool, bool, bool],
) -> None:
    """One launch; the gradient of value by atomics, into zeros."""
    B, _, H, _ = value.shape
    Q = points.shape[1]
    grad_value, shares, grad_points, grad_weights = gradients
    meta = backward_parameters(meta_parameters(value, references, points, weights), needs)
    backward_kernel[grid(B, H, Q, meta)](
        grad_output,
        value,
        levels,
        points,
        weights,
        references,
        grad_value,
        grad_points,
        grad_weights,
        shares,
        *backward_numbers(grad_output, value, references, points, weights),
        **meta,
        **backward_options(value),
    )


def backward_numbers(
    grad_output: Tensor, value: Tensor, references: Tensor | None, points: Tensor, weights: Tensor
) -> tuple[int, ...]:
    """What a backward with atomics is launched with beside its tensors: S, Q, H and strides."""
    return (
        value.shape[1],
        points.shape[1],
        value.shape[2],
        *grad_output.stride()[:2],
        *value.stride()[:3],
        *points.stride()[:3],
        *weights.stride()[:3],
        *(references.stride()[:3] if references is not None else (0, 0, 0)),
    )


def _backward_by_cell(
    grad_output: Tensor,
    value: Tensor,
    levels: Tensor,
    references: Tensor | None,
    points: Tensor,
    weights: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor, Tensor],
    needs: tuple[bool, bool, bool, bool],
) -> None:
    """Without atomics: four launches and a sort, and a fifth where a cell may hold thousands of points, for as many
    samples as keep the temporary memory, about 60 bytes a point and four times value's in float32, within bounds."""
    B, S, H, D = value.shape
    _, Q, _, L, P, _ = points.shape
    N = Q * L * P
    meta = by_cell_parameters(grad_output, value, references, points, weights, needs)
    walks = triton.cdiv(N, meta["cells"]["RUN"])
    combinations = combinations_of_shares(triton.cdiv(Q * P, meta["cells"]["RUN"]) + 1)
    compute = compute_dtype(value, references, points, weights)
    references_strides = references.stride()[:3] if references is not None else (0, 0, 0)
    sums_of_sample = H * (S + walks) * 4 * D * compute.itemsize
    samples = max(1, min(_POINTS_AT_ONCE // (H * N), _SUMS_AT_ONCE // sums_of_sample, _MOST_PROGRAMS // H))
    for begin in range(0, B, samples):
        part = slice(begin, begin + samples)
        grad_value, shares, grad_points, grad_weights = (
            gradient[part] if needed else gradient for gradient, needed in zip(gradients, needs, strict=True)
        )
        part_references = references[part] if references is not None else None
        rows = min(samples, B - begin) * H
        # 16 keys for each pixel, and for none
        key = torch.int32 if rows * (S + 1) * 16 < _INT32_LIMIT else torch.int64
        keys = value.new_empty(rows * N, dtype=key)
        records = value.new_empty(rows * N, 4, dtype=compute)
        keys_kernel[triton.cdiv(Q, meta["keys"]["BLOCK_Q"]), rows](
            levels,
            points[part],
            weights[part],
            part_references,
            keys,
            records,
            S,
            Q,
            H,
            *points.stride()[:3],
            *weights.stride()[:3],
            *references_strides,
            **meta["keys"],
        )
        keys, order = keys.sort(stable=True)
        sums = value.new_empty(rows, S + walks, 4, D, dtype=compute)
        firsts, lasts = levels.new_zeros(2, rows, S, 4, dtype=torch.int32)
        cells_kernel[triton.cdiv(walks, meta["cells"]["WALKS"]), rows](
            grad_output[part],
            value[part],
            levels,
            keys,
            order,
            records,
            sums,
            firsts,
            lasts,
            S,
            Q,
            H,
            grad_output.stride(0),
            value.stride(0),
            value.stride(2),
            **meta["cells"],
            **BY_CELL_OPTIONS["cells"],
        )
        for power in range(combinations):
            step = SHARES.value**power
            shares_kernel[triton.cdiv(walks, step * SHARES.value), rows](
                keys, sums, firsts, lasts, S, N, walks, step, **meta["shares"]
            )
        pixels_kernel[triton.cdiv(S, meta["pixels"]["BLOCK_Q"]), rows](
            levels, sums, firsts, lasts, grad_value, S, H, walks, 4 * combinations, **meta["pixels"]
        )
        if any(needs[1:]):
            points_kernel[triton.cdiv(Q, meta["points"]["BLOCK_Q"]), rows](
                levels,
                points[part],
                part_references,
                records,
                grad_points,
                grad_weights,
                shares,
                S,
                Q,
                H,
                *points.stride()[:3],
                *references_strides,
                **meta["points"],
            )


def combinations_of_shares(walks: int) -> int:
    """How often shares are combined, so that a pixel waits for at most `_MOST_SHARES` of a run of so many walks."""
    times = 0
    while walks // SHARES.value**times + 2 > _MOST_SHARES:
        times += 1
    return times


def by_cell_parameters(
    grad_output: Tensor,
    value: Tensor,
    references: Tensor | None,
    points: Tensor,
    weights: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> dict[str, dict[str, Any]]:
    """The compile-time parameters of the kernels that add by cell."""
    _, _, _, L, P, _ = points.shape
    D = value.shape[3]
    compute = tl.float64 if compute_dtype(value, references, points, weights) is torch.float64 else tl.float32
    block_d = triton.next_power_of_2(D)
    block_lp = triton.next_power_of_2(L * P)
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
        queries, walks, pixels, run = triton.next_power_of_2(points.shape[1]), 256, 256, max(4, share)
    else:
        queries = max(1, 512 // block_lp)
        pixels = max(1, (256 if compute == tl.float64 else 512) // block_d)
        # a warp, so that none waits for another where a run ends
        walks = 32 // lanes
        run = RUN
    kind = {"L": L, "P": P, "FUSED": references is not None, "COMPUTE": compute}
    kind["BOXES"] = references is not None and references.shape[-1] == 4
    _, need_references, need_points, need_weights = needs
    return {
        "keys": kind | {"BLOCK_Q": queries, "BLOCK_LP": block_lp},
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
        "points": kind
        | {
            "NEED_POINTS": need_points,
            "NEED_WEIGHTS": need_weights,
            "NEED_REFERENCES": need_references,
            "BLOCK_Q": queries,
            "BLOCK_LP": block_lp,
        },
    }


def forward_parameters(
    value: Tensor, references: Tensor | None, points: Tensor, weights: Tensor, arch: int | None = None
) -> dict[str, Any]:
    """The forward's compile-time parameters; heights, widths and S are none of them, and of Q only whether it is a
    decoder's, so that an image of another size compiles nothing. `arch` is that of value's device if None."""
    _, Q, _, L, P, _ = points.shape
    D = value.shape[3]
    double = compute_dtype(value, references, points, weights) is torch.float64
    block_d = power_of_2(D)
    # a lane reads 16 bytes, and a query's lanes lie in one warp
    vec = max(min(16 // value.dtype.itemsize, block_d), block_d // 32)
    lanes = block_d // vec
    if interpreting():  # its cost is per program and per operation, whatever their size
        block_q = power_of_2(Q)
    elif (tuned := None if double else tuning.find("forward", value, points, arch)) is not None:
        block_q = tuned.block_q
    else:  # elements of a tile over 4 warps: enough of them in flight, without spilling
        elements = 512 if double else {torch.float32: 1024}.get(value.dtype, 2048)
        block_q = max(1, min(64, elements // block_d))
    return {
        "STRIDE": value.stride(1),
        "D": D,
        "L": L,
        "P": P,
        "FUSED": references is not None,
        "BOXES": references is not None and references.shape[-1] == 4,
        "COMPUTE": tl.float64 if double else tl.float32,
        "PAIRS": value.dtype is torch.bfloat16 and not double and D == block_d >= 2 and _readable_in_pairs(value),
        "BLOCK_Q": block_q,
        "LANES": lanes,
        "VEC": vec,
        "CHUNK": _chunk(L * P, lanes),
        "WIDE": max(_whole_span(t) for t in (value, references, points, weights) if t is not None) >= _INT32_LIMIT
        or value.shape[0] * Q * value.shape[2] * D >= _INT32_LIMIT,
        # in 16 bits, and at few points, instructions take longer than the cache: the walk would cost more than it saves
        "BAND": BAND if value.dtype is torch.float32 and L * P >= 8 and Q == value.shape[1] < 2**20 else 0,
        "FALLBACK": True,
    }


def _chunk(points: int, lanes: int) -> int:
    """How many points lanes share out at a time: a power of two that leaves few lanes and few turns idle. A point costs
    about 28 instructions, a chunk 50."""
    sizes = [2**i for i in range(lanes.bit_length())]
    return min(sizes, key=lambda size: (28 * size + 50) * -(-points // size))


def _readable_in_pairs(value: Tensor) -> bool:
    """Whether every row begins at a multiple of 4 bytes."""
    return all(stride % 2 == 0 for stride in value.stride()[:-1]) and value.data_ptr() % 4 == 0


def meta_parameters(value: Tensor, references: Tensor | None, points: Tensor, weights: Tensor) -> dict[str, Any]:
    """The compile-time parameters of a call; heights, widths, S and Q are none of them, so that an image of another
    size compiles nothing."""
    _, Q, H, L, P, _ = points.shape
    D = value.shape[3]
    double = compute_dtype(value, references, points, weights) is torch.float64
    wide = max(value.shape[1], Q) * H * D >= _INT32_LIMIT
    for tensor in (value, points, weights):  # memory that is small is not walked far
        if tensor.untyped_storage().nbytes() >= _INT32_LIMIT:
            wide = wide or _span(tensor) >= _INT32_LIMIT
    block_d = power_of_2(D)
    # the points of a level are unrolled, levels are not: 16 points unrolled are 100 kB of backward code, and compile
    # in half a minute where four take a few seconds
    unroll = P if P <= 4 and block_d == D and D <= 64 else 1
    if interpreting():  # its cost is per program and per operation, whatever their size
        # at least 2: its atomic_add reads a mask that is broadcast from one row of one element wrongly
        block_q = max(2, power_of_2(Q))
    else:
        # elements of a tile over 4 warps: 16 bytes of value a lane, and enough of them in flight, without spilling
        elements = {torch.float64: 512, torch.float32: 1024}.get(value.dtype, 2048)
        block_q = max(1, min(64, (512 if double else elements) // block_d))
    return {
        "D": D,
        "L": L,
        "P": P,
        "FUSED": references is not None,
        "BOXES": references is not None and references.shape[-1] == 4,
        "COMPUTE": tl.float64 if double else tl.float32,
        "WIDE": wide,
        "UNROLL": unroll,
        "BLOCK_Q": block_q,
        "BLOCK_D": block_d,
        "BLOCK_LP": max(power_of_2(L * P), block_d),
    }


def backward_parameters(meta: dict[str, Any], needs: tuple[bool, bool, bool, bool]) -> dict[str, Any]:
    """The backward's compile-time parameters beyond the forward's.

    The small gradients of a query are collected in register tiles, as wide as the channels where they fit: then the
    tiles share one register layout, and nothing passes through shared memory.
    """
    block_2lp = max(power_of_2(2 * meta["L"] * meta["P"]), meta["BLOCK_D"])
    names = ("NEED_VALUE", "NEED_REFERENCES", "NEED_POINTS", "NEED_WEIGHTS")
    block_q = meta["BLOCK_Q"]
    if not interpreting():  # a quarter to a half of the forward's tile: 96 registers a thread at D=32 instead of 203
        elements = 256 if meta["COMPUTE"] == tl.float64 else 512
        block_q = max(1, min(block_q, elements // meta["BLOCK_D"], 4096 // block_2lp))
    return (
        meta
        | dict(zip(names, needs, strict=True))
        | {
            "BLOCK_Q": block_q,
            "BLOCK_2LP": block_2lp,
        }
    )


def forward_options(value: Tensor, points: Tensor, arch: int | None = None) -> dict[str, int]:
    """Compiler options of a forward, from the table or by a rule. ptxas takes as many registers as it may, to have
    loads in flight, and puts a number or two that lie idle for long into local memory; with these limits it doesn't."""
    tuned = tuning.find("forward", value, points, arch)
    if tuned is not None:
        return tuned.options
    if value.dtype.itemsize > 4 or value.shape[3] > 64:
        return {}
    return {"maxnreg": 128 if value.dtype.itemsize == 2 else 116}


def backward_options(value: Tensor) -> dict[str, int]:
    """Compiler options of a backward. For 16-bit values ptxas aims at 96 registers and spills one to get there on some
    architectures; a stated limit takes that aim away."""
    return {"maxnreg": 128} if value.dtype.itemsize == 2 and value.shape[3] <= 64 else {}


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any input is, else float32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype is torch.float64:
            return torch.float64
    return torch.float32


def power_of_2(n: int) -> int:
    """The least power of two that is no less than `n`; Triton's own takes as long as allocating a tensor."""
    return 1 << (n - 1).bit_length()


def stored_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype a kernel stores for a result of ``tensor``'s dtype: that one; float32 for bfloat16 in the interpreter,
    whose conversion truncates where the device rounds to nearest."""
    return torch.float32 if interpreting() and tensor.dtype is torch.bfloat16 else tensor.dtype


def grid(B: int, H: int, Q: int, meta: dict[str, Any]) -> tuple[int]:
    """Query blocks run fastest, then heads, then the batch: neighbours in time share a head's pixels in the cache."""
    return (B * H * -(-Q // meta["BLOCK_Q"]),)


def device_of(value: Tensor) -> Any:
    """Launch on value's device; Triton launches on the current one."""
    index = value.get_device()
    if index < 0 or index == torch.cuda.current_device():  # as nearly always: entering a device takes longer
        return _HERE
    return torch.cuda.device(index)


def _dense_rows(
    value: Tensor, references: Tensor | None, points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The kernels take any stride of batch, pixel, query and head; what lies inside one row has to be dense."""
    if value.stride(3) != 1:
        value = value.contiguous()
    P = points.shape[4]
    if points.stride()[3:] != (2 * P, 2, 1):
        points = points.contiguous()
    if weights.stride()[3:] != (P, 1):
        weights = weights.contiguous()
    if references is not None and references.stride(3) != 1:
        references = references.contiguous()
    return value, references, points, weights


def _whole_span(tensor: Tensor) -> int:
    """Elements from the first to the last."""
    return 1 + sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _span(tensor: Tensor) -> int:
    """Elements from the first to the last of one batch entry and one head, as the kernels' offsets count them."""
    sizes, strides = tensor.shape[1:], tensor.stride()[1:]
    return 1 + sum((size - 1) * abs(stride) for size, stride in zip(sizes, strides, strict=True))
