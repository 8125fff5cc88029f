"""The gradient of value without atomics: the same bits in every run, and for a sample in any batch.

Three kernels and a sort, over points (q, k) of one batch entry and head, k counting levels and points:

1. `keys_kernel`: each point's four products of weight and bilinear coefficient, and a key: its cell, and which of the
   four neighbours lie inside the level. A stable sort of the keys puts points of one key side by side, by query: a run.
2. `runs_kernel`: a row of the tile walks CHUNK sorted points and adds their g = grad_output[b, q, h, :] up, times each
   coefficient; when the run ends, the sums [4, D] of the neighbours inside are stored. A chunk that begins inside a run
   stores its share apart, so that a crowded cell is many chunks' work.
3. `pixels_kernel`: a pixel is a corner of four cells, whose sums it adds in a fixed order, shares in theirs.

A cell is named by its upper left pixel, and a level closes on itself: the cell left of the first column is also the one
right of the last column. Their runs differ in the key and fill other corners' places, since the left corners of the one
and the right corners of the other are outside the level. So there are as many cells as pixels, and the host need not
know the levels.

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
    firsts_ptr,  # (B, H, S, 4), zeroed: 1 + the chunk in which the cell's points with this corner begin
    lasts_ptr,  # (B, H, S, 4): the chunk in which they end
    S,
    Q,
    H,
    grad_output_stride_b,
    grad_output_stride_q,
    LP: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
    CHUNK: tl.constexpr,
    UNROLL: tl.constexpr,
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
    corner = tl.arange(0, 4)[None, :]
    keys_ptr += bh * N
    order_ptr += bh * N
    coefficients_ptr += 4 * bh * N
    grad_output_ptr += b * grad_output_stride_b + head * D
    sums_ptr += bh * (S + chunks) * (4 * D)
    firsts_ptr += bh * S * 4
    lasts_ptr += bh * S * 4
    first_cell = (bh * (S + 1)).to(keys_ptr.dtype.element_ty)

    begin = chunk * CHUNK
    previous = tl.load(keys_ptr + begin - 1, mask=(begin > 0) & (begin < N), other=-1)
    following = tl.load(keys_ptr + begin, mask=begin < N, other=-1)
    continued = begin >= 0  # the run began in an earlier chunk
    sum00 = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    sum01 = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    sum10 = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    sum11 = tl.zeros([BLOCK_Q, BLOCK_D], COMPUTE)
    for step in tl.range(CHUNK, loop_unroll_factor=UNROLL):
        at = begin + step
        key = following
        following = tl.load(keys_ptr + at + 1, mask=at + 1 < N, other=-1)
        new = key != previous
        previous = key
        continued = continued & (new == 0)
        cell = ((key >> 4) - first_cell).to(tl.int32)
        active = (at < N) & (cell < S)
        n = (tl.load(order_ptr + at, mask=active, other=bh * N) - bh * N).to(tl.int32)
        row = grad_output_ptr + (n // LP).to(tl.int64) * grad_output_stride_q
        g = tl.load(row[:, None] + d, mask=active[:, None] & (d < D), other=0.0).to(COMPUTE)
        coefficient = coefficients_ptr + 4 * n.to(tl.int64)
        fresh = new[:, None]
        sum00 = tl.where(fresh, 0.0, sum00) + tl.load(coefficient, mask=active, other=0.0)[:, None] * g
        sum01 = tl.where(fresh, 0.0, sum01) + tl.load(coefficient + 1, mask=active, other=0.0)[:, None] * g
        sum10 = tl.where(fresh, 0.0, sum10) + tl.load(coefficient + 2, mask=active, other=0.0)[:, None] * g
        sum11 = tl.where(fresh, 0.0, sum11) + tl.load(coefficient + 3, mask=active, other=0.0)[:, None] * g
        ends = active & (following != key)
        last = ends | (active & (step == CHUNK - 1))
        place = sums_ptr + (tl.where(continued, S + chunk, cell).to(tl.int64) * (4 * D))[:, None] + d
        # a neighbour outside the level is left out, not multiplied by zero, which infinity would show
        tl.store(place, sum00, mask=(last & (key & 1 != 0))[:, None] & (d < D))
        tl.store(place + D, sum01, mask=(last & (key & 2 != 0))[:, None] & (d < D))
        tl.store(place + 2 * D, sum10, mask=(last & (key & 4 != 0))[:, None] & (d < D))
        tl.store(place + 3 * D, sum11, mask=(last & (key & 8 != 0))[:, None] & (d < D))
        inside = (key[:, None] >> corner) & 1 != 0
        slot = (cell * 4)[:, None] + corner
        tl.store(firsts_ptr + slot, (chunk + 1)[:, None] + 0 * corner, mask=(active & new)[:, None] & inside)
        tl.store(lasts_ptr + slot, chunk[:, None] + 0 * corner, mask=ends[:, None] & inside)


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

    # of which cells this pixel is the upper left, upper right, lower left and lower right corner
    upper = start + row * width
    lower = start + above * width
    slot = firsts_ptr + bh * S * 4
    end = lasts_ptr + bh * S * 4
    first00 = tl.load(slot + (upper + column) * 4, mask=there, other=0)
    first01 = tl.load(slot + (upper + before) * 4 + 1, mask=there, other=0)
    first10 = tl.load(slot + (lower + column) * 4 + 2, mask=there, other=0)
    first11 = tl.load(slot + (lower + before) * 4 + 3, mask=there, other=0)
    # how many chunks later the run ends
    more00 = tl.load(end + (upper + column) * 4, mask=first00 > 0, other=-1) + 1 - first00
    more01 = tl.load(end + (upper + before) * 4 + 1, mask=first01 > 0, other=-1) + 1 - first01
    more10 = tl.load(end + (lower + column) * 4 + 2, mask=first10 > 0, other=-1) + 1 - first10
    more11 = tl.load(end + (lower + before) * 4 + 3, mask=first11 > 0, other=-1) + 1 - first11

    sums_ptr += bh * (S + chunks) * (4 * D) + d
    in_d = d < D
    result = _sums(sums_ptr, upper + column, 0, first00 > 0, in_d, D)
    result += _sums(sums_ptr, upper + before, 1, first01 > 0, in_d, D)
    result += _sums(sums_ptr, lower + column, 2, first10 > 0, in_d, D)
    result += _sums(sums_ptr, lower + before, 3, first11 > 0, in_d, D)
    most = tl.max(tl.maximum(tl.maximum(more00, more01), tl.maximum(more10, more11)), axis=0)
    later = tl.zeros((), tl.int32)
    while later < most:
        share = S + later
        result += _sums(sums_ptr, share + first00, 0, later < more00, in_d, D)
        result += _sums(sums_ptr, share + first01, 1, later < more01, in_d, D)
        result += _sums(sums_ptr, share + first10, 2, later < more10, in_d, D)
        result += _sums(sums_ptr, share + first11, 3, later < more11, in_d, D)
        later += 1
    target = grad_value_ptr + (((bh // H) * S + pixel) * H + bh % H)[:, None] * D + d
    tl.store(target, result.to(grad_value_ptr.dtype.element_ty), mask=(pixel < S)[:, None] & in_d)


@triton.jit
def _sums(sums_ptr, place, CORNER: tl.constexpr, there, in_d, D: tl.constexpr):
    """The sums [BLOCK_Q, BLOCK_D] of one corner at these places; zero where there are none."""
    row = sums_ptr + (place.to(tl.int64) * (4 * D) + CORNER * D)[:, None]
    return tl.load(row, mask=there[:, None] & in_d, other=0.0)
