"""Forward: output[b, q, h, :] = sum over l, p of weight * bilinear(value[b, level l, h, :], location).

Work: one program per (BLOCK_Q queries, head, batch). The LANES threads that share a query read VEC neighbouring
channels each, 16 bytes; a tile [LANES, BLOCK_Q, VEC] accumulates in registers.
Reads: per point two coordinates and a weight (or offset and logit), and four rows of D channels. Writes: D channels.
Bound: instruction issue and L1, not HBM: neighbouring queries of an encoder sample neighbouring pixels.
Ideas:
- A point's index and coefficients are the same for all channels, so a query's lanes share them out: lane i computes
  those of point i of a chunk of points, in a tile [LANES, BLOCK_Q], and every point is then handed to all lanes by
  a warp shuffle (`tl.gather`) of five numbers: the pixel's index and four coefficients. The tile is laid out so that
  its rows are the lanes; Triton then needs nothing but the shuffles.
- No masks: the sample is moved into the level, and coefficients that fall off as hats, max(0, 1 - |distance|), are
  those of bilinear interpolation with zeros outside. A neighbour outside the level is thus read as some pixel inside,
  times zero. Where that differs, at numbers that are not finite, the result is not finite; then the program starts
  again and does it with masks, as it does for levels that are one pixel wide or high.
- Locations and softmax inside the kernel, as in DCNv4's operator: the maximum first, then numerator and denominator
  together, so no weight is ever stored.
"""

import triton
import triton.language as tl

from .bilinear import (
    RUN_TIME,
    check_levels,
    clamp,
    hat,
    in_bands,
    level_size,
    levels_of,
    neighbours,
    regular_levels,
    settle,
)


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    levels,
    value_ptr,
    points_ptr,  # locations, or offsets if FUSED
    weights_ptr,  # weights, or logits if FUSED
    references_ptr,
    output_ptr,
    S,
    Q,
    H,
    value_stride_b,
    value_stride_h,
    points_stride_b,
    points_stride_q,
    points_stride_h,
    weights_stride_b,
    weights_stride_q,
    weights_stride_h,
    references_stride_b,
    references_stride_q,
    references_stride_l,
    STRIDE: tl.constexpr,  # from a pixel of value to the next
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    BY_VALUE: tl.constexpr,  # levels are numbers, not a pointer to them
    VALUE_ALIGN: tl.constexpr,  # of value's strides, in elements
    POINTS_ALIGN: tl.constexpr,
    WEIGHTS_ALIGN: tl.constexpr,
    REFERENCES_ALIGN: tl.constexpr,
    FUSED: tl.constexpr,
    BOXES: tl.constexpr,  # references are cxcywh
    COMPUTE: tl.constexpr,  # float32, or float64
    PAIRS: tl.constexpr,  # bfloat16 value that may be read two channels at a time
    BLOCK_Q: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    CHUNK: tl.constexpr,  # points that lanes share out at a time, at most LANES
    WIDE: tl.constexpr,  # offsets need 64 bits
    BAND: tl.constexpr,  # rows of a band of queries, which are as many as the pixels; 0 walks them as they lie
):
    head = tl.program_id(1)
    b = tl.program_id(2)
    regular = regular_levels(levels, L, BY_VALUE, S)
    # queries beyond the last repeat it, and store the same once more: no mask to keep
    q = tl.minimum(tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q), Q - 1)
    if BAND > 0:
        q = tl.where(regular, in_bands(levels, q, L, BY_VALUE, BAND), q)
    if WIDE:
        head = head.to(tl.int64)
        b = b.to(tl.int64)
        q = q.to(tl.int64)
    # strides are not specialised, or another image size would compile anew: what they are multiples of is told instead
    value_ptr += tl.multiple_of(b * value_stride_b + head * value_stride_h, VALUE_ALIGN)
    points_ptr += tl.multiple_of(b * points_stride_b + head * points_stride_h, POINTS_ALIGN)
    weights_ptr += tl.multiple_of(b * weights_stride_b + head * weights_stride_h, WEIGHTS_ALIGN)
    if FUSED:
        references_ptr += tl.multiple_of(b * references_stride_b, REFERENCES_ALIGN)

    result = tl.zeros([LANES, BLOCK_Q, VEC], COMPUTE)
    if regular:
        result = _sample(
            value_ptr,
            levels,
            points_ptr,
            weights_ptr,
            references_ptr,
            q,
            points_stride_q,
            weights_stride_q,
            references_stride_q,
            references_stride_l,
            True,
            STRIDE,
            D,
            L,
            P,
            BY_VALUE,
            POINTS_ALIGN,
            REFERENCES_ALIGN,
            FUSED,
            BOXES,
            COMPUTE,
            PAIRS,
            False,
            BLOCK_Q,
            LANES,
            VEC,
            CHUNK,
        )
    # zero times a number that is not finite is NaN
    finite = tl.sum(tl.sum(tl.sum(result * 0.0, axis=2), axis=0), axis=0) == 0.0
    if not (regular & finite):
        result = _sample(
            value_ptr,
            levels,
            points_ptr,
            weights_ptr,
            references_ptr,
            q,
            points_stride_q,
            weights_stride_q,
            references_stride_q,
            references_stride_l,
            check_levels(levels, L, BY_VALUE, S),
            STRIDE,
            D,
            L,
            P,
            BY_VALUE,
            POINTS_ALIGN,
            REFERENCES_ALIGN,
            FUSED,
            BOXES,
            COMPUTE,
            False,
            True,
            BLOCK_Q,
            LANES,
            VEC,
            CHUNK,
        )

    d = (tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :])[:, None, :]
    target = output_ptr + (b * Q * (H * D) + head * D) + ((q * (H * D))[None, :, None] + d)
    tl.store(target, result.to(output_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _sample(
    value_ptr,
    levels,
    points_ptr,
    weights_ptr,
    references_ptr,
    q,
    points_stride_q,
    weights_stride_q,
    references_stride_q,
    references_stride_l,
    consistent,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    BY_VALUE: tl.constexpr,
    POINTS_ALIGN: tl.constexpr,
    REFERENCES_ALIGN: tl.constexpr,
    FUSED: tl.constexpr,
    BOXES: tl.constexpr,
    COMPUTE: tl.constexpr,
    PAIRS: tl.constexpr,
    MASKS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The samples' weighted sum, a tile [LANES, BLOCK_Q, VEC]; with MASKS exact for any input, else only if finite."""
    CHUNKS: tl.constexpr = (L * P + CHUNK - 1) // CHUNK
    ONE_LEVEL: tl.constexpr = P % CHUNK == 0  # in every chunk
    lane = tl.arange(0, LANES)
    d = (lane[:, None] * VEC + tl.arange(0, VEC)[None, :])[:, None, :]
    base = value_ptr + d
    total = tl.zeros([LANES, BLOCK_Q], COMPUTE)  # of what each lane weighed
    if PAIRS:
        # bfloat16 is the upper half of float32: one instruction widens a channel, in pairs of 32 bits
        HALF: tl.constexpr = VEC // 2
        pair = (lane[:, None] * HALF + tl.arange(0, HALF)[None, :])[:, None, :]
        pair_base = value_ptr.to(tl.pointer_type(tl.int32)) + pair
        even = tl.zeros([LANES, BLOCK_Q, HALF], COMPUTE)
        odd = tl.zeros([LANES, BLOCK_Q, HALF], COMPUTE)
    else:
        result = tl.zeros([LANES, BLOCK_Q, VEC], COMPUTE)

    points_row = tl.multiple_of(q * points_stride_q, POINTS_ALIGN)
    if FUSED:
        references_row = tl.multiple_of(q * references_stride_q, REFERENCES_ALIGN)
        peaks = tl.full([LANES, BLOCK_Q], float("-inf"), COMPUTE)
        for chunk in range(CHUNKS):
            logits = _weights(
                weights_ptr, q, weights_stride_q, chunk * CHUNK + lane % CHUNK, L * P, CHUNK, float("-inf"), COMPUTE
            )
            peaks = tl.maximum(peaks, logits)
        peak = tl.max(peaks, axis=0)

    first = tl.zeros((), tl.int32)  # pixel of the level
    for chunk in range(CHUNKS):
        k = chunk * CHUNK + lane % CHUNK
        weight = _weights(weights_ptr, q, weights_stride_q, k, L * P, CHUNK, float("-inf") if FUSED else 0.0, COMPUTE)
        if FUSED:
            weight = tl.exp(weight - peak[None, :])
            total += weight
        safe = tl.minimum(k, L * P - 1)
        if ONE_LEVEL:
            level = chunk * CHUNK // P
            width = level_size(levels, level, 1, L, BY_VALUE)
            height = level_size(levels, level, 0, L, BY_VALUE)
            w = width + tl.zeros([LANES], tl.int32)
            h = height + tl.zeros([LANES], tl.int32)
            start = first + tl.zeros([LANES], tl.int32)
            if (chunk + 1) * CHUNK % P == 0:
                first += width * height
        else:
            w, h, start = levels_of(levels, safe // P, L, BY_VALUE, LANES)
        extent_x = w.to(COMPUTE)[:, None]
        extent_y = h.to(COMPUTE)[:, None]
        if MASKS:
            # inconsistent sizes make every coordinate NaN, and NaN reads nothing
            extent_x = tl.where(consistent, extent_x, float("nan"))
            extent_y = tl.where(consistent, extent_y, float("nan"))
        x, y = _pair(points_ptr + (points_row[None, :] + 2 * safe[:, None]), COMPUTE)
        if FUSED:
            reference = references_ptr + (
                references_row[None, :] + tl.multiple_of(safe // P * references_stride_l, REFERENCES_ALIGN)[:, None]
            )
            if BOXES:
                width_of_box, height_of_box = _pair(reference + 2, COMPUTE)
                x *= width_of_box * (extent_x * (0.5 / P))
                y *= height_of_box * (extent_y * (0.5 / P))
            reference_x, reference_y = _pair(reference, COMPUTE)
            x += reference_x * extent_x - 0.5
            y += reference_y * extent_y - 0.5
        else:
            x = x * extent_x - 0.5
            y = y * extent_y - 0.5

        # [LANES, BLOCK_Q]: this lane's point of every query
        if MASKS:
            x = settle(x, extent_x)
            y = settle(y, extent_y)
            in_range = (k < L * P)[:, None]
            pixel, in00, in01, in10, in11, fx, fy = neighbours(x, y, w[:, None], h[:, None], start[:, None], in_range)
            right = weight * fx
            left = weight - right
            lower_right = right * fy
            lower_left = left * fy
            upper_right = right - lower_right
            upper_left = left - lower_left
        else:
            column = clamp(tl.floor(x), extent_x - 2.0)
            row = clamp(tl.floor(y), extent_y - 2.0)
            pixel = start[:, None] + row.to(tl.int32) * w[:, None] + column.to(tl.int32)
            left = weight * hat(x - column)
            right = weight * hat(x - column - 1.0)
            upper = hat(y - row)
            lower = hat(y - row - 1.0)
            upper_left = left * upper
            upper_right = right * upper
            lower_left = left * lower
            lower_right = right * lower

        # more than 8 points unrolled take longer to compile than they are worth
        for i in tl.range(
            CHUNK, loop_unroll_factor=min(CHUNK, 8 if D <= 64 else 4) if LANES * VEC == D and not MASKS else 1
        ):
            point = tl.minimum(chunk * CHUNK + i, L * P - 1)
            # the same level for the whole tile, so its width is read once
            below = (width if ONE_LEVEL else level_size(levels, point // P, 1, L, BY_VALUE)).to(tl.int64)
            of_i = tl.full([LANES, BLOCK_Q], 0, tl.int32) + i
            offset = tl.gather(pixel, of_i, 0).to(tl.int64)[:, :, None]
            c00 = tl.gather(upper_left, of_i, 0)[:, :, None]
            c01 = tl.gather(upper_right, of_i, 0)[:, :, None]
            c10 = tl.gather(lower_left, of_i, 0)[:, :, None]
            c11 = tl.gather(lower_right, of_i, 0)[:, :, None]
            if PAIRS:
                upper_ptr = pair_base + offset * (STRIDE // 2)
                lower_ptr = pair_base + below * (STRIDE // 2) + offset * (STRIDE // 2)
                even, odd = _add_pairs(even, odd, c00, upper_ptr)
                even, odd = _add_pairs(even, odd, c01, upper_ptr + STRIDE // 2)
                even, odd = _add_pairs(even, odd, c10, lower_ptr)
                even, odd = _add_pairs(even, odd, c11, lower_ptr + STRIDE // 2)
            else:
                upper_ptr = base + offset * STRIDE
                lower_ptr = base + below * STRIDE + offset * STRIDE
                if MASKS:
                    m00 = _picked(in00, of_i) & (d < D)
                    m01 = _picked(in01, of_i) & (d < D)
                    m10 = _picked(in10, of_i) & (d < D)
                    m11 = _picked(in11, of_i) & (d < D)
                    result += c00 * tl.load(upper_ptr, mask=m00, other=0.0).to(COMPUTE)
                    result += c01 * tl.load(upper_ptr + STRIDE, mask=m01, other=0.0).to(COMPUTE)
                    result += c10 * tl.load(lower_ptr, mask=m10, other=0.0).to(COMPUTE)
                    result += c11 * tl.load(lower_ptr + STRIDE, mask=m11, other=0.0).to(COMPUTE)
                elif LANES * VEC == D:
                    result += c00 * tl.load(upper_ptr).to(COMPUTE)
                    result += c01 * tl.load(upper_ptr + STRIDE).to(COMPUTE)
                    result += c10 * tl.load(lower_ptr).to(COMPUTE)
                    result += c11 * tl.load(lower_ptr + STRIDE).to(COMPUTE)
                else:
                    result += c00 * tl.load(upper_ptr, mask=d < D, other=0.0).to(COMPUTE)
                    result += c01 * tl.load(upper_ptr + STRIDE, mask=d < D, other=0.0).to(COMPUTE)
                    result += c10 * tl.load(lower_ptr, mask=d < D, other=0.0).to(COMPUTE)
                    result += c11 * tl.load(lower_ptr + STRIDE, mask=d < D, other=0.0).to(COMPUTE)
    if PAIRS:
        result = tl.interleave(even, odd)
    if FUSED:
        # lanes beyond a chunk repeat it
        result *= (1.0 / (tl.sum(total, axis=0) * (CHUNK / LANES)))[None, :, None]
    return result


@triton.jit
def _weights(
    weights_ptr,
    q,
    weights_stride_q,
    k,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    beyond: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Entries k of each query's row as a tile [LANES, BLOCK_Q], ``beyond`` where k is none of COUNT."""
    # contiguity would have Triton read several of a query's weights with one thread, and then move them to their lanes
    offset = (q * weights_stride_q)[None, :] + tl.max_contiguous(tl.minimum(k, COUNT - 1), [1])[:, None]
    weight = tl.load(weights_ptr + offset).to(COMPUTE)
    if COUNT % CHUNK != 0:
        weight = tl.where((k < COUNT)[:, None], weight, beyond)
    return weight


@triton.jit
def _pair(pointers, COMPUTE: tl.constexpr):
    """Two neighbouring numbers, as one load where their alignment is known."""
    return tl.split(tl.load(pointers[:, :, None] + tl.arange(0, 2)[None, None, :]).to(COMPUTE))


@triton.jit
def _add_pairs(even, odd, coefficient, pointers):
    """Add ``coefficient`` times pairs of bfloat16 channels, read as 32-bit integers; the lower half is the even one."""
    both = tl.load(pointers)
    even += coefficient * (both << 16).to(tl.float32, bitcast=True)
    odd += coefficient * (both & -65536).to(tl.float32, bitcast=True)
    return even, odd


@triton.jit
def _picked(mask, of_i):
    """The point's entry of a mask [LANES, BLOCK_Q], for every lane and channel."""
    return (tl.gather(mask.to(tl.int32), of_i, 0) != 0)[:, :, None]
