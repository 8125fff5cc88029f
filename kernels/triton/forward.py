"""Forward: output[b, q, h, :] = sum over l, p of weight * bilinear(value[b, level l, h, :], location).

Work: one program per (batch, head, BLOCK_Q queries); a tile [BLOCK_Q, BLOCK_D] accumulates in registers.
Reads: per point two coordinates and a weight (or offset and logit), and four rows of D channels. Writes: D channels.
Bound: instruction issue and L1, not HBM: neighbouring queries of an encoder sample neighbouring pixels.
Idea: locations and softmax inside the kernel as in DCNv4's operator; a query's softmax needs one pass for its maximum,
after which numerator and denominator accumulate together (as in FlashAttention), so no weight is ever stored.
"""

import triton
import triton.language as tl

from .sampling import level_total, neighbours, row_logits, settle


@triton.jit(do_not_specialize=["S", "Q"])
def forward_kernel(
    value_ptr,
    levels_ptr,
    points_ptr,  # locations, or offsets if FUSED
    weights_ptr,  # weights, or logits if FUSED
    references_ptr,
    output_ptr,
    S,
    Q,
    H,
    value_stride_b,
    value_stride_s,
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
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    FUSED: tl.constexpr,
    BOXES: tl.constexpr,  # references are cxcywh
    COMPUTE: tl.constexpr,  # float32, or float64
    WIDE: tl.constexpr,  # 64-bit offsets
    UNROLL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_LP: tl.constexpr,
):
    query_blocks = tl.cdiv(Q, BLOCK_Q)
    program = tl.program_id(0)
    bh = program // query_blocks
    b = (bh // H).to(tl.int64)
    h_index = bh % H
    q = (program % query_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)  # [BLOCK_Q]
    d = tl.arange(0, BLOCK_D)
    in_q = q < Q
    if WIDE:
        q_offset = q.to(tl.int64)
    else:
        q_offset = q

    value_ptr += b * value_stride_b + h_index.to(tl.int64) * value_stride_h
    points_ptr += b * points_stride_b + h_index.to(tl.int64) * points_stride_h
    weights_ptr += b * weights_stride_b + h_index.to(tl.int64) * weights_stride_h
    points_row = points_ptr + q_offset * points_stride_q
    weights_row = weights_ptr + q_offset * weights_stride_q

    if FUSED:
        references_row = references_ptr + b * references_stride_b + q_offset * references_stride_q
        peak = tl.max(row_logits(weights_row, in_q, L * P, BLOCK_LP, COMPUTE), axis=1)
        total = tl.zeros([BLOCK_Q], COMPUTE)

    consistent = level_total(levels_ptr, L, S)
    accumulator = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    start = tl.zeros((), tl.int64)
    for level in range(L):
        h64 = tl.load(levels_ptr + 2 * level)
        w64 = tl.load(levels_ptr + 2 * level + 1)
        h = h64.to(tl.int32)
        w = w64.to(tl.int32)
        # inconsistent sizes make every coordinate NaN, and NaN reads nothing
        extent_x = tl.where(consistent, w.to(COMPUTE), float("nan"))
        extent_y = tl.where(consistent, h.to(COMPUTE), float("nan"))
        if WIDE:
            level_start = start
        else:
            level_start = start.to(tl.int32)
        below = w.to(level_start.dtype) * value_stride_s
        if FUSED:
            reference = references_row + level * references_stride_l
            base_x = tl.load(reference, mask=in_q, other=0.0).to(COMPUTE) * extent_x - 0.5
            base_y = tl.load(reference + 1, mask=in_q, other=0.0).to(COMPUTE) * extent_y - 0.5
            if BOXES:
                step_x = tl.load(reference + 2, mask=in_q, other=0.0).to(COMPUTE) * (extent_x * (0.5 / P))
                step_y = tl.load(reference + 3, mask=in_q, other=0.0).to(COMPUTE) * (extent_y * (0.5 / P))
        for point in tl.range(P, loop_unroll_factor=UNROLL):
            index = level * P + point
            x = tl.load(points_row + 2 * index, mask=in_q, other=0.0).to(COMPUTE)
            y = tl.load(points_row + 2 * index + 1, mask=in_q, other=0.0).to(COMPUTE)
            weight = tl.load(weights_row + index, mask=in_q, other=0.0).to(COMPUTE)
            if FUSED:
                weight = tl.exp(weight - peak)
                total += weight
                if BOXES:
                    x = base_x + x * step_x
                    y = base_y + y * step_y
                else:
                    x = base_x + x
                    y = base_y + y
            else:
                x = x * extent_x - 0.5
                y = y * extent_y - 0.5
            x = settle(x, extent_x)
            y = settle(y, extent_y)
            pixel, in00, in01, in10, in11, fx, fy = neighbours(x, y, w, h, level_start, in_q)
            corner = value_ptr + (pixel * value_stride_s)[:, None] + d[None, :]
            if BLOCK_D == D:
                v00 = tl.load(corner, mask=in00[:, None], other=0.0).to(COMPUTE)
                v01 = tl.load(corner + value_stride_s, mask=in01[:, None], other=0.0).to(COMPUTE)
                v10 = tl.load(corner + below, mask=in10[:, None], other=0.0).to(COMPUTE)
                v11 = tl.load(corner + below + value_stride_s, mask=in11[:, None], other=0.0).to(COMPUTE)
            else:
                in_d = (d < D)[None, :]
                v00 = tl.load(corner, mask=in00[:, None] & in_d, other=0.0).to(COMPUTE)
                v01 = tl.load(corner + value_stride_s, mask=in01[:, None] & in_d, other=0.0).to(COMPUTE)
                v10 = tl.load(corner + below, mask=in10[:, None] & in_d, other=0.0).to(COMPUTE)
                v11 = tl.load(corner + below + value_stride_s, mask=in11[:, None] & in_d, other=0.0).to(COMPUTE)
            right = weight * fx
            left = weight - right
            accumulator += (left - left * fy)[:, None] * v00
            accumulator += (right - right * fy)[:, None] * v01
            accumulator += (left * fy)[:, None] * v10
            accumulator += (right * fy)[:, None] * v11
        start += h64 * w64
    if FUSED:
        accumulator = accumulator / total[:, None]

    row = output_ptr + (b * Q + q)[:, None] * (H * D) + h_index * D + d[None, :]
    tl.store(row, accumulator.to(output_ptr.dtype.element_ty), mask=in_q[:, None] & (d < D)[None, :])
