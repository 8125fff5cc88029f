"""The gradient of value without atomics: the same bits in every run, and for a sample in any batch.

Three kernels and a sort, over points (q, k) of one batch entry and head, k counting levels and points:

1. `keys_kernel`: each point's four products of weight and bilinear coefficient, and a key: its cell, and which of the
   four neighbours lie inside the level. A stable sort of the keys puts the points of a cell side by side, by query.
2. `runs_kernel`: a row of the tile walks CHUNK sorted points and adds their g = grad_output[b, q, h, :] up, times each
   coefficient; when the cell ends, the four sums [4, D] are stored. A chunk that begins inside a cell stores that
   cell's share apart, so that a crowded cell is many chunks' work.
3. `pixels_kernel`: a pixel is a corner of four cells, whose sums it adds in a fixed order, shares in theirs.

A cell is named by its upper left pixel, and a level closes on itself: the cell left of the first column is also the one
right of the last column. No sum mixes them, since the left corners of the one and the right corners of the other are
outside the level. So there are as many cells as pixels, and sums have their place without the host knowing the levels.

Reads: g once a point, by row. Writes: 4*D sums a cell that has points, and D a pixel. Every order of additions depends
on the sample's points alone.
"""

import triton
import triton.language as tl

from .sampling import check_levels, levels_of, neighbours, settle


@triton.jit(do_not_specialize=["S", "Q"])
def keys_kernel(
    levels_ptr,
    points_ptr,  # locations, or offsets if FUSED
    weights_ptr,  # weights, or logits if FUSED
    references_ptr,
    keys_ptr,  # (B, H, Q*L*P), int32 or int64
    coefficients_ptr,  # (B, H, Q*L*P, 4) of COMPUTE
    S,
    Q,
    H,
    points_stride_b,
    points_stride_q,
    points_stride_h,
    weights_stride_b,
    weights_stride_q,
    weights_stride_h,
    references_stride_b,
    references_stride_q,
    references_stride_l,
    L: tl.constexpr,
    P: tl.constexpr,
    FUSED: tl.constexpr,
    BOXES: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_LP: tl.constexpr,
):
    bh = tl.program_id(1).to(tl.int64)
    b = bh // H
    head = bh % H
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    k = tl.arange(0, BLOCK_LP)
    there = (q < Q)[:, None] & (k < L * P)[None, :]
    q = tl.minimum(q, Q - 1).to(tl.int64)
    inner = tl.minimum(k, L * P - 1)
    level = inner // P

    row = weights_ptr + b * weights_stride_b + head * weights_stride_h + q * weights_stride_q
    weight = tl.load(row[:, None] + inner[None, :]).to(COMPUTE)
    if FUSED:
        weight = tl.where((k < L * P)[None, :], weight, float("-inf"))
        weight = tl.exp(weight - tl.max(weight, axis=1)[:, None])
        weight *= (1.0 / tl.sum(weight, axis=1))[:, None]
    row = points_ptr + b * points_stride_b + head * points_stride_h + q * points_stride_q
    x = tl.load(row[:, None] + 2 * inner[None, :]).to(COMPUTE)
    y = tl.load(row[:, None] + 2 * inner[None, :] + 1).to(COMPUTE)

    w, h, start = levels_of(levels_ptr, level, L, BLOCK_LP)
    # sizes that don't add up give NaN, which is in no cell
    consistent = check_levels(levels_ptr, L, S)
    extent_x = tl.where(consistent, w.to(COMPUTE), float("nan"))[None, :]
    extent_y = tl.where(consistent, h.to(COMPUTE), float("nan"))[None, :]
    if FUSED:
        row = references_ptr + b * references_stride_b + q * references_stride_q
        reference = row[:, None] + level[None, :] * references_stride_l
        if BOXES:
            x *= tl.load(reference + 2).to(COMPUTE) * (extent_x * (0.5 / P))
            y *= tl.load(reference + 3).to(COMPUTE) * (extent_y * (0.5 / P))
        x += tl.load(reference).to(COMPUTE) * extent_x - 0.5
        y += tl.load(reference + 1).to(COMPUTE) * extent_y - 0.5
    else:
        x = x * extent_x - 0.5
        y = y * extent_y - 0.5
    x = settle(x, extent_x)
    y = settle(y, extent_y)
    corner, in00, in01, in10, in11, fx, fy = neighbours(x, y, w[None, :], h[None, :], start[None, :], there)

    inside = in00.to(tl.int32) | in01.to(tl.int32) << 1 | in10.to(tl.int32) << 2 | in11.to(tl.int32) << 3
    # from the column and the row before the first to the last ones
    cell = corner + tl.where(in00 | in10, 0, w[None, :]) + tl.where(in00 | in01, 0, (w * h)[None, :])
    cell = tl.where(inside != 0, cell, S).to(keys_ptr.dtype.element_ty)  # S: points that reach no pixel come last
    n = (bh * Q + q)[:, None] * (L * P) + k[None, :]
    tl.store(keys_ptr + n, (bh.to(cell.dtype) * (S + 1) + cell) * 16 + inside, mask=there)
    right = weight * fx
    left = weight - right
    coefficient = coefficients_ptr + 4 * n
    tl.store(coefficient, left - left * fy, mask=there)
    tl.store(coefficient + 1, right - right * fy, mask=there)
    tl.store(coefficient + 2, left * fy, mask=there)
    tl.store(coefficient + 3, right * fy, mask=there)


@triton.jit(do_not_specialize=["S", "Q"])
def runs_kernel(
    grad_output_ptr,
    keys_ptr,  # (B, H, Q*L*P), sorted
    order_ptr,  # where each was before, among all
    coefficients_ptr,
    sums_ptr,  # (B, H, S + chunks, 4, D) of COMPUTE: of cells, then shares of chunks that begin inside a cell
    firsts_ptr,  # (B, H, S), zeroed: 1 + the chunk in which the cell begins
    lasts_ptr,  # (B, H, S): the chunk in which it ends
    S,
    Q,
    H,
    grad_output_stride_b,
    grad_output_stride_q,
    LP: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_Q: tl.constexpr,  # chunks of a program
    BLOCK_D: tl.constexpr,
):
    bh = tl.program_id(1).to(tl.int64)
    b = bh // H
    head = bh % H
    N = Q * LP
    chunks = tl.cdiv(N, CHUNK)
    chunk = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)[None, :]
    keys_ptr += bh * N
    order_ptr += bh * N
    coefficients_ptr += 4 * bh * N
    grad_output_ptr += b * grad_output_stride_b + head * D
    sums_ptr += bh * (S + chunks) * (4 * D)
    nowhere = bh * (S + 1) + S

    begin = chunk.to(tl.int64) * CHUNK
    cell = tl.load(keys_ptr + begin - 1, mask=(begin > 0) & (begin < N), other=-1).to(tl.int64) >> 4
    following = tl.load(keys_ptr + begin, mask=begin < N, other=-1).to(tl.int64)
    continued = begin >= 0  # the cell began in an earlier chunk
    sum00 = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    sum01 = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    sum10 = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    sum11 = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    for step in range(CHUNK):
        at = begin + step
        key = following
        following = tl.load(keys_ptr + at + 1, mask=at + 1 < N, other=-1).to(tl.int64)
        new = key >> 4 != cell
        cell = key >> 4
        continued = continued & (new == 0)
        active = (at < N) & (cell < nowhere)
        n = (tl.load(order_ptr + at, mask=active, other=bh * N) - bh * N).to(tl.int32)
        g = tl.load(
            grad_output_ptr + ((n // LP).to(tl.int64) * grad_output_stride_q)[:, None] + d,
            mask=active[:, None] & (d < D),
            other=0.0,
        ).to(COMPUTE)
        # a neighbour outside is not multiplied by zero, which infinity would show
        in00 = active & (key & 1 != 0)
        in01 = active & (key & 2 != 0)
        in10 = active & (key & 4 != 0)
        in11 = active & (key & 8 != 0)
        coefficient = coefficients_ptr + 4 * n.to(tl.int64)
        c00 = tl.load(coefficient, mask=in00, other=0.0)[:, None]
        c01 = tl.load(coefficient + 1, mask=in01, other=0.0)[:, None]
        c10 = tl.load(coefficient + 2, mask=in10, other=0.0)[:, None]
        c11 = tl.load(coefficient + 3, mask=in11, other=0.0)[:, None]
        fresh = new[:, None]
        sum00 = tl.where(fresh, 0.0, sum00) + tl.where(in00[:, None], c00 * g, 0.0)
        sum01 = tl.where(fresh, 0.0, sum01) + tl.where(in01[:, None], c01 * g, 0.0)
        sum10 = tl.where(fresh, 0.0, sum10) + tl.where(in10[:, None], c10 * g, 0.0)
        sum11 = tl.where(fresh, 0.0, sum11) + tl.where(in11[:, None], c11 * g, 0.0)
        pixel = cell - bh * (S + 1)
        ends = active & (following >> 4 != cell)
        last = ends | (active & (step == CHUNK - 1))
        place = sums_ptr + (tl.where(continued, S + chunk, pixel) * (4 * D))[:, None] + d
        stored = last[:, None] & (d < D)
        tl.store(place, sum00, mask=stored)
        tl.store(place + D, sum01, mask=stored)
        tl.store(place + 2 * D, sum10, mask=stored)
        tl.store(place + 3 * D, sum11, mask=stored)
        tl.store(firsts_ptr + bh * S + pixel, chunk + 1, mask=active & new)
        tl.store(lasts_ptr + bh * S + pixel, chunk, mask=ends)


@triton.jit(do_not_specialize=["S", "chunks"])
def pixels_kernel(
    levels_ptr,
    sums_ptr,
    firsts_ptr,
    lasts_ptr,
    grad_value_ptr,  # (B, S, H, D), contiguous
    S,
    H,
    chunks,
    L: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_Q: tl.constexpr,  # pixels of a program
    BLOCK_D: tl.constexpr,
):
    bh = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)[None, :]
    consistent = check_levels(levels_ptr, L, S)
    there = (pixel < S) & consistent
    width = tl.full([BLOCK_Q], 1, tl.int32)
    height = tl.full([BLOCK_Q], 1, tl.int32)
    start = tl.zeros([BLOCK_Q], tl.int32)
    begin = tl.zeros((), tl.int32)
    for level in tl.static_range(L):
        h = tl.load(levels_ptr + 2 * level).to(tl.int32)
        w = tl.load(levels_ptr + 2 * level + 1).to(tl.int32)
        on = there & (pixel >= begin)
        width = tl.where(on, w, width)
        height = tl.where(on, h, height)
        start = tl.where(on, begin, start)
        begin += h * w
    row = (pixel - start) // width
    column = (pixel - start) % width
    above = tl.where(row == 0, height, row) - 1
    before = tl.where(column == 0, width, column) - 1

    sums_ptr += bh * (S + chunks) * (4 * D)
    result = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    for corner in tl.static_range(4):
        # the cell of which this pixel is the upper left, upper right, lower left, lower right corner
        cell = start + (above if corner >= 2 else row) * width + (before if corner % 2 else column)
        first = tl.load(firsts_ptr + bh * S + cell, mask=there, other=0)
        last = tl.load(lasts_ptr + bh * S + cell, mask=first > 0, other=-1)
        place = sums_ptr + (cell.to(tl.int64) * (4 * D))[:, None] + (corner * D + d)
        result += tl.load(place, mask=(first > 0)[:, None] & (d < D), other=0.0)
        share = sums_ptr + ((S + first).to(tl.int64) * (4 * D))[:, None] + (corner * D + d)
        shares = tl.where(first > 0, last + 1 - first, 0)
        most = tl.max(shares, axis=0)
        while most > 0:
            result += tl.load(share, mask=(shares > 0)[:, None] & (d < D), other=0.0)
            share += 4 * D
            shares -= 1
            most -= 1
    target = grad_value_ptr + (((bh // H) * S + pixel) * H + bh % H)[:, None] * D + d
    tl.store(target, result.to(grad_value_ptr.dtype.element_ty), mask=(pixel < S)[:, None] & (d < D))
