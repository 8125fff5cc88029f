"""Backward: every gradient of the forward from its inputs alone.

With g = grad_output[b, q, h, :], v_c the four neighbours of a point, c their bilinear coefficients, a its weight::

    grad_value[neighbour] += a * c * g                       vector reductions into a float32 buffer
    s        = g . sum of c * v_c                            grad of the weight; grad_logit = a * (s - sum of a * s)
    grad_x   = a * g . ((1 - fy) * (v01 - v00) + fy * (v11 - v10))         in pixels; grad_y likewise

Work: one program per (batch, head, BLOCK_Q queries), as in the forward.
Reads: what the forward reads, and g. Writes: the small gradients once, and 4*D float32 reductions per point.
Bound: the reductions: 584 M float32 adds into L2 for a published encoder at batch 2.
Idea: four dot products per point (g with each neighbour) give all small gradients; the softmax Jacobian needs all s of
a query, which are kept in a register tile [BLOCK_Q, L*P].
"""

import triton
import triton.language as tl

from .bilinear import RUN_TIME, check_levels, level_size, neighbours, row_logits, settle


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    levels,
    grad_output_ptr,
    value_ptr,
    points_ptr,  # locations, or offsets if FUSED
    weights_ptr,  # weights, or logits if FUSED
    references_ptr,
    grad_value_ptr,  # (B, S, H, D) of COMPUTE, zeroed; contiguous, as are the three below
    grad_points_ptr,  # (B, Q, H, L, P, 2)
    grad_weights_ptr,  # (B, Q, H, L, P)
    grad_references_ptr,  # (B, Q, H, L, 2 or 4) of COMPUTE: one share per head
    S,
    Q,
    H,
    grad_output_stride_b,
    grad_output_stride_q,
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
    GRAD_ALIGN: tl.constexpr,  # of grad_output's strides, in elements
    VALUE_ALIGN: tl.constexpr,
    POINTS_ALIGN: tl.constexpr,
    WEIGHTS_ALIGN: tl.constexpr,
    REFERENCES_ALIGN: tl.constexpr,
    FUSED: tl.constexpr,
    BOXES: tl.constexpr,
    NEED_VALUE: tl.constexpr,
    NEED_POINTS: tl.constexpr,
    NEED_WEIGHTS: tl.constexpr,
    NEED_REFERENCES: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_LP: tl.constexpr,
    BLOCK_2LP: tl.constexpr,
):
    query_blocks = tl.cdiv(Q, BLOCK_Q)
    program = tl.program_id(0)
    bh = program // query_blocks
    b = (bh // H).to(tl.int64)
    h_index = bh % H
    q = (program % query_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)  # [BLOCK_Q]
    d = tl.arange(0, BLOCK_D)
    in_q = q < Q
    in_d = (d < D)[None, :]
    if WIDE:
        q_offset = q.to(tl.int64)
    else:
        q_offset = q

    # strides are not specialised, or another image size would compile anew: what they are multiples of is told instead
    grad_output_ptr += tl.multiple_of(b * grad_output_stride_b, GRAD_ALIGN)
    value_ptr += tl.multiple_of(b * value_stride_b + h_index.to(tl.int64) * value_stride_h, VALUE_ALIGN)
    points_ptr += tl.multiple_of(b * points_stride_b + h_index.to(tl.int64) * points_stride_h, POINTS_ALIGN)
    weights_ptr += tl.multiple_of(b * weights_stride_b + h_index.to(tl.int64) * weights_stride_h, WEIGHTS_ALIGN)
    if FUSED:
        references_ptr += tl.multiple_of(b * references_stride_b, REFERENCES_ALIGN)
    grad_value_ptr += b * S * (H * D) + h_index * D
    points_row = points_ptr + tl.multiple_of(q_offset * points_stride_q, POINTS_ALIGN)
    weights_row = weights_ptr + tl.multiple_of(q_offset * weights_stride_q, WEIGHTS_ALIGN)
    # row of (b, q, h) in the contiguous outputs
    output_row = (b * Q + q) * H + h_index
    g = tl.load(
        grad_output_ptr
        + h_index * D
        + tl.multiple_of(q_offset * grad_output_stride_q, GRAD_ALIGN)[:, None]
        + d[None, :],
        mask=in_q[:, None] & in_d,
        other=0.0,
    ).to(COMPUTE)  # [BLOCK_Q, BLOCK_D]

    if FUSED:
        references_row = references_ptr + tl.multiple_of(q_offset * references_stride_q, REFERENCES_ALIGN)
        logits = row_logits(weights_row, in_q, L * P, BLOCK_LP, COMPUTE)
        peak = tl.max(logits, axis=1)
        exponentials = tl.exp(logits - peak[:, None])
        scale = 1.0 / tl.sum(exponentials, axis=1)
    if NEED_WEIGHTS:
        k = tl.arange(0, BLOCK_LP)[None, :]
        scores = tl.zeros([BLOCK_Q, BLOCK_LP], COMPUTE)
    if NEED_POINTS:
        k2 = tl.arange(0, BLOCK_2LP)[None, :]
        slopes = tl.zeros([BLOCK_Q, BLOCK_2LP], COMPUTE)

    consistent = check_levels(levels, L, BY_VALUE, S)
    start = tl.zeros((), tl.int64)
    for level in range(L):
        h = level_size(levels, level, 0, L, BY_VALUE)
        w = level_size(levels, level, 1, L, BY_VALUE)
        extent_x = tl.where(consistent, w.to(COMPUTE), float("nan"))
        extent_y = tl.where(consistent, h.to(COMPUTE), float("nan"))
        if WIDE:
            level_start = start
        else:
            level_start = start.to(tl.int32)
        row_pixels = w.to(level_start.dtype)
        if FUSED:
            reference = references_row + level * references_stride_l
            base_x = tl.load(reference, mask=in_q, other=0.0).to(COMPUTE) * extent_x - 0.5
            base_y = tl.load(reference + 1, mask=in_q, other=0.0).to(COMPUTE) * extent_y - 0.5
            if BOXES:
                half_x = extent_x * (0.5 / P)
                half_y = extent_y * (0.5 / P)
                step_x = tl.load(reference + 2, mask=in_q, other=0.0).to(COMPUTE) * half_x
                step_y = tl.load(reference + 3, mask=in_q, other=0.0).to(COMPUTE) * half_y
            if NEED_REFERENCES:
                sum_x = tl.zeros([BLOCK_Q], COMPUTE)
                sum_y = tl.zeros([BLOCK_Q], COMPUTE)
                if BOXES:
                    sum_w = tl.zeros([BLOCK_Q], COMPUTE)
                    sum_h = tl.zeros([BLOCK_Q], COMPUTE)
        for point in tl.range(P, loop_unroll_factor=UNROLL):
            index = level * P + point
            point_x = tl.load(points_row + 2 * index, mask=in_q, other=0.0).to(COMPUTE)
            point_y = tl.load(points_row + 2 * index + 1, mask=in_q, other=0.0).to(COMPUTE)
            weight = tl.load(weights_row + index, mask=in_q, other=0.0).to(COMPUTE)
            if FUSED:
                weight = tl.exp(weight - peak) * scale
                if BOXES:
                    x = base_x + point_x * step_x
                    y = base_y + point_y * step_y
                else:
                    x = base_x + point_x
                    y = base_y + point_y
            else:
                x = point_x * extent_x - 0.5
                y = point_y * extent_y - 0.5
            x = settle(x, extent_x)
            y = settle(y, extent_y)
            pixel, in00, in01, in10, in11, fx, fy = neighbours(x, y, w, h, level_start, in_q)
            m00 = in00[:, None]
            m01 = in01[:, None]
            m10 = in10[:, None]
            m11 = in11[:, None]
            if BLOCK_D != D:
                m00 = m00 & in_d
                m01 = m01 & in_d
                m10 = m10 & in_d
                m11 = m11 & in_d
            if NEED_POINTS or NEED_WEIGHTS or NEED_REFERENCES:
                corner = value_ptr + (pixel * STRIDE)[:, None] + d[None, :]
                lower = corner + row_pixels * STRIDE
                s00 = tl.sum(g * tl.load(corner, mask=m00, other=0.0).to(COMPUTE), axis=1)
                s01 = tl.sum(g * tl.load(corner + STRIDE, mask=m01, other=0.0).to(COMPUTE), axis=1)
                s10 = tl.sum(g * tl.load(lower, mask=m10, other=0.0).to(COMPUTE), axis=1)
                s11 = tl.sum(g * tl.load(lower + STRIDE, mask=m11, other=0.0).to(COMPUTE), axis=1)
                if NEED_WEIGHTS:
                    upper_s = s00 + fx * (s01 - s00)
                    score = upper_s + fy * (s10 + fx * (s11 - s10) - upper_s)
                    scores = tl.where(k == index, score[:, None], scores)
                if NEED_POINTS or NEED_REFERENCES:
                    # in pixels. a NaN coordinate has read nothing, so its NaN has to be carried over from fx and fy
                    slope_x = weight * (s01 - s00 + fy * (s11 - s10 - s01 + s00)) + 0.0 * fx
                    slope_y = weight * (s10 - s00 + fx * (s11 - s10 - s01 + s00)) + 0.0 * fy
                    if FUSED:
                        if NEED_REFERENCES:
                            sum_x += slope_x
                            sum_y += slope_y
                            if BOXES:
                                sum_w += slope_x * point_x
                                sum_h += slope_y * point_y
                        if BOXES:
                            slope_x = slope_x * step_x
                            slope_y = slope_y * step_y
                    else:
                        slope_x = slope_x * extent_x
                        slope_y = slope_y * extent_y
                    if NEED_POINTS:
                        slopes = tl.where(k2 == 2 * index, slope_x[:, None], slopes)
                        slopes = tl.where(k2 == 2 * index + 1, slope_y[:, None], slopes)
            if NEED_VALUE:
                target = grad_value_ptr + (pixel * (H * D))[:, None] + d[None, :]
                target_below = target + row_pixels * (H * D)
                right = weight * fx
                left = weight - right
                tl.atomic_add(target, (left - left * fy)[:, None] * g, mask=m00, sem="relaxed")
                tl.atomic_add(target + H * D, (right - right * fy)[:, None] * g, mask=m01, sem="relaxed")
                tl.atomic_add(target_below, (left * fy)[:, None] * g, mask=m10, sem="relaxed")
                tl.atomic_add(target_below + H * D, (right * fy)[:, None] * g, mask=m11, sem="relaxed")
        start += h.to(tl.int64) * w
        if FUSED and NEED_REFERENCES:
            if BOXES:
                row = grad_references_ptr + (output_row * L + level) * 4
                tl.store(row + 2, sum_w * half_x, mask=in_q)
                tl.store(row + 3, sum_h * half_y, mask=in_q)
            else:
                row = grad_references_ptr + (output_row * L + level) * 2
            tl.store(row, sum_x * extent_x, mask=in_q)
            tl.store(row + 1, sum_y * extent_y, mask=in_q)
    if NEED_WEIGHTS:
        if FUSED:
            probabilities = exponentials * scale[:, None]
            mean = tl.sum(probabilities * scores, axis=1)
            scores = probabilities * (scores - mean[:, None])
        row = grad_weights_ptr + (output_row * (L * P))[:, None] + k
        tl.store(row, scores.to(grad_weights_ptr.dtype.element_ty), mask=in_q[:, None] & (k < L * P))
    if NEED_POINTS:
        row = grad_points_ptr + (output_row * (2 * L * P))[:, None] + k2
        tl.store(row, slopes.to(grad_points_ptr.dtype.element_ty), mask=in_q[:, None] & (k2 < 2 * L * P))
