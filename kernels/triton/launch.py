"""From tensors to kernel launches: block sizes, strides, output buffers. One launch of ours a call; a backward also
fills the zeros that it adds to, rounds 16-bit gradients in a second launch, and sums the references' shares in another.
Without atomics the gradient of value takes three and a sort.

``levels`` is an int64 tensor (L, 2) on the device, read by the kernels; nothing here copies from or to the host.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..registry import interpreting
from . import tuning
from .backward import backward_kernel
from .deterministic import keys_kernel, pixels_kernel, runs_kernel
from .forward import forward_kernel

_INT32_LIMIT = 2**31
_MOST_PROGRAMS = 65535  # along the second and third axis of a grid
RUN = 32  # sorted points that one row of a tile adds up
_POINTS_AT_ONCE = 2**23
_HERE = nullcontext()


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
    in_order = need_value and B * Q > 0 and torch.are_deterministic_algorithms_enabled()
    needs = (need_value and not in_order, need_references, need_points, need_weights)
    compute = compute_dtype(value, references, points, weights)
    # reductions in float32 whatever the dtype, rounded once at the end: repeated 16-bit adds lose percents
    grad_value = value.new_zeros((B, S, H, D) if needs[0] else 0, dtype=compute)
    grad_points = points.new_empty(points.shape if need_points else 0, dtype=stored_dtype(points))
    grad_weights = weights.new_empty(weights.shape if need_weights else 0, dtype=stored_dtype(weights))
    coordinates = 2 if references is None else references.shape[-1]
    shares = value.new_empty((B, Q, H, L, coordinates) if need_references else 0, dtype=compute)
    if B * Q > 0:
        value, references, points, weights = _dense_rows(value, references, points, weights)
        if grad_output.stride(-1) != 1:  # what sum().backward() gives: every stride zero
            grad_output = grad_output.contiguous()
        if in_order:
            grad_value = _grad_value_in_order(grad_output, value, levels, references, points, weights)
    if B * Q > 0 and any(needs):
        meta = backward_parameters(meta_parameters(value, references, points, weights), needs)
        with device_of(value):
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
                S,
                Q,
                H,
                *grad_output.stride()[:2],
                *value.stride()[:3],
                *points.stride()[:3],
                *weights.stride()[:3],
                *(references.stride()[:3] if references is not None else (0, 0, 0)),
                **meta,
                **backward_options(value),
            )
    grad_references = value.new_empty(0)
    if references is not None and need_references:
        grad_references = shares.sum(2).to(references.dtype)
    return (
        grad_value.to(value.dtype),
        grad_references,
        grad_points.to(points.dtype),
        grad_weights.to(weights.dtype),
    )


def _grad_value_in_order(
    grad_output: Tensor, value: Tensor, levels: Tensor, references: Tensor | None, points: Tensor, weights: Tensor
) -> Tensor:
    """The gradient of value (B, S, H, D) without atomics: three launches and a sort for as many samples as keep the
    temporary memory, about 70 bytes a point and four times value's in float32, within bounds."""
    B, S, H, D = value.shape
    _, Q, _, L, P, _ = points.shape
    N = Q * L * P
    meta = in_order_parameters(meta_parameters(value, references, points, weights))
    chunks = triton.cdiv(N, meta["runs"]["CHUNK"])
    compute = compute_dtype(value, references, points, weights)
    grad_value = value.new_empty(B, S, H, D, dtype=stored_dtype(value))
    samples = max(1, min(_POINTS_AT_ONCE // (H * N), _MOST_PROGRAMS // H))
    with device_of(value):
        for begin in range(0, B, samples):
            part = slice(begin, begin + samples)
            rows = min(samples, B - begin) * H
            # 16 keys for each pixel, and for none
            key = torch.int32 if rows * (S + 1) * 16 < _INT32_LIMIT else torch.int64
            keys = value.new_empty(rows * N, dtype=key)
            coefficients = value.new_empty(rows * N, 4, dtype=compute)
            keys_kernel[triton.cdiv(Q, meta["keys"]["BLOCK_Q"]), rows](
                levels,
                points[part],
                weights[part],
                references[part] if references is not None else None,
                keys,
                coefficients,
                S,
                Q,
                H,
                *points.stride()[:3],
                *weights.stride()[:3],
                *(references.stride()[:3] if references is not None else (0, 0, 0)),
                **meta["keys"],
            )
            keys, order = keys.sort(stable=True)
            sums = value.new_empty(rows, S + chunks, 4, D, dtype=compute)
            firsts, lasts = levels.new_zeros(2, rows, S, 4, dtype=torch.int32)
            runs_kernel[triton.cdiv(chunks, meta["runs"]["BLOCK_Q"]), rows](
                grad_output[part],
                keys,
                order,
                coefficients,
                sums,
                firsts,
                lasts,
                S,
                Q,
                H,
                *grad_output.stride()[:2],
                **meta["runs"],
            )
            pixels_kernel[triton.cdiv(S, meta["pixels"]["BLOCK_Q"]), rows](
                levels, sums, firsts, lasts, grad_value[part], S, H, chunks, **meta["pixels"]
            )
    return grad_value


def in_order_parameters(meta: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The compile-time parameters of the three kernels that add without atomics, from a backward's."""
    points = triton.next_power_of_2(meta["L"] * meta["P"])
    if interpreting():  # its cost is per program and per operation, whatever their size
        queries, rows, chunk = meta["BLOCK_Q"], 256, 4
    else:
        queries = max(1, 512 // points)
        rows = max(1, (256 if meta["COMPUTE"] == tl.float64 else 512) // meta["BLOCK_D"])
        chunk = RUN
    channels = {name: meta[name] for name in ("D", "COMPUTE", "BLOCK_D")}
    return {
        "keys": {name: meta[name] for name in ("L", "P", "FUSED", "BOXES", "COMPUTE")}
        | {"BLOCK_Q": queries, "BLOCK_LP": points},
        "runs": channels | {"LP": meta["L"] * meta["P"], "CHUNK": chunk, "UNROLL": 4, "BLOCK_Q": rows},
        "pixels": channels | {"L": meta["L"], "BLOCK_Q": rows},
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
        "FALLBACK": True,
    }


def _chunk(points: int, lanes: int) -> int:
    """How many points lanes share out at a time: a power of two that leaves few lanes and few turns idle. A point costs
    about 28 instructions, a chunk 50."""
    sizes = [2**i for i in range(lanes.bit_length())]
    return min(sizes, key=lambda size: (28 * size + 50) * -(-points // size))


def _readable_in_pairs(value: Tensor) -> bool:
    """Whether every row begins at a multiple of 4 bytes."""
    return all(stride % 2 == 0 for stride in value.stride()[:3]) and value.storage_offset() % 2 == 0


def meta_parameters(value: Tensor, references: Tensor | None, points: Tensor, weights: Tensor) -> dict[str, Any]:
    """The compile-time parameters of a call; heights, widths, S and Q are none of them, so that an image of another
    size compiles nothing."""
    _, Q, H, L, P, _ = points.shape
    D = value.shape[3]
    double = compute_dtype(value, references, points, weights) is torch.float64
    wide = value.shape[1] * H * D >= _INT32_LIMIT
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


def _span(tensor: Tensor) -> int:
    """Elements from the first to the last of one batch entry and one head, as the kernels' offsets count them."""
    sizes, strides = tensor.shape[1:], tensor.stride()[1:]
    return 1 + sum((size - 1) * abs(stride) for size, stride in zip(sizes, strides, strict=True))
