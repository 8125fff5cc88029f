"""The sorted backward: every gradient, without atomics, the same bits in every run and for a sample in any batch.

A point lies in a cell, between four pixels. Sorted by cell, the points of a cell read its four rows of value while
those are in the first cache, and add their g = grad_output[b, q, h, :] up in registers, so that a cell writes its four
sums once, where a backward by query makes four additions in memory for every point. Five kernels and a sort, over
points (q, k) of one batch entry and head, k counting levels and points:

1. `keys_kernel`: each point's record (weight, fx, fy), and a key: its cell, and which of the four neighbours lie inside
   the level. A stable sort of the keys puts points of one key side by side, by query: a run.
2. `cells_kernel`: LANES threads walk RUN sorted points. They share out the points' places and coefficients as in the
   forward. A point's four dot products of g with its neighbours give the slopes of weight and place, which take its
   record's place; the sums [4, D] of a run are stored where it ends. A walk that begins inside a run stores its share
   apart, so that a crowded cell is the work of many.
3. `shares_kernel`: where a cell may hold thousands of points, combines the shares of a long run, 16 at a time.
4. `pixels_kernel`: a pixel is a corner of four cells, whose sums it adds in a fixed order, shares in theirs.
5. `points_kernel`: from slopes to the gradients of a query's inputs, the softmax's Jacobian with them.

A cell is named by its upper left pixel, and a level closes on itself: the cell left of the first column is also the one
right of the last column. Their runs differ in the key and fill other corners' places, since the left corners of the one
and the right corners of the other are outside the level. So there are as many cells as pixels, and the host need not
know the levels.

Reads: g, a record and four rows of value a point. Writes: a record a point, 4*D sums a cell that has points, and the
gradients. Every order of additions depends on the sample alone: its points, and how it lies in memory.
"""

import triton
import triton.language as tl

from .bilinear import RUN_TIME, check_levels, level_size, levels_of, neighbours, settle

SHARES = tl.constexpr(16)  # of one run that become one where a run is long


@triton.jit(do_not_specialize=RUN_TIME)
def keys_kernel(
    levels,
    points_ptr,  # locations, or offsets if FUSED
    weights_ptr,  # weights, or logits if FUSED
    references_ptr,
    keys_ptr,  # (B, H, Q*L*P), int32 or int64
    records_ptr,  # (B, H, Q*L*P, 4) of COMPUTE: weight, fx, fy
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
    BY_VALUE: tl.constexpr,  # levels are numbers, not a pointer to them
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
    # tiles are [BLOCK_LP, BLOCK_Q]: of two axes without a stride of one, Triton lays its lanes along the first
    there = (k < L * P)[:, None] & (q < Q)[None, :]
    q = tl.minimum(q, Q - 1).to(tl.int64)
    inner = tl.minimum(k, L * P - 1)
    level = inner // P

    row = weights_ptr + b * weights_stride_b + head * weights_stride_h + q * weights_stride_q
    weight = tl.load(row[None, :] + inner[:, None]).to(COMPUTE)
    if FUSED:
        weight = tl.where((k < L * P)[:, None], weight, float("-inf"))
        weight = tl.exp(weight - tl.max(weight, axis=0)[None, :])
        weight *= (1.0 / tl.sum(weight, axis=0))[None, :]
    row = points_ptr + b * points_stride_b + head * points_stride_h + q * points_stride_q
    x = tl.load(row[None, :] + 2 * inner[:, None]).to(COMPUTE)
    y = tl.load(row[None, :] + 2 * inner[:, None] + 1).to(COMPUTE)

    w, h, start = levels_of(levels, level, L, BY_VALUE, BLOCK_LP)
    # sizes that don't add up give NaN, which is in no cell
    consistent = check_levels(levels, L, BY_VALUE, S)
    extent_x = tl.where(consistent, w.to(COMPUTE), float("nan"))[:, None]
    extent_y = tl.where(consistent, h.to(COMPUTE), float("nan"))[:, None]
    if FUSED:
        row = references_ptr + b * references_stride_b + q * references_stride_q
        reference = row[None, :] + level[:, None] * references_stride_l
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
    corner, in00, in01, in10, in11, fx, fy = neighbours(x, y, w[:, None], h[:, None], start[:, None], there)

    inside = in00.to(tl.int32) | in01.to(tl.int32) << 1 | in10.to(tl.int32) << 2 | in11.to(tl.int32) << 3
    # from the column and the row before the first to the last ones
    cell = corner + tl.where(in00 | in10, 0, w[:, None]) + tl.where(in00 | in01, 0, (w * h)[:, None])
    cell = tl.where(inside != 0, cell, S).to(keys_ptr.dtype.element_ty)  # S: points that reach no pixel come last
    n = (bh * Q + q)[None, :] * (L * P) + k[:, None]
    tl.store(keys_ptr + n, (bh.to(cell.dtype) * (S + 1) + cell) * 16 + inside, mask=there)
    _store_record(records_ptr, n, weight, fx, fy, 0.0 * fx, there)


@triton.jit(do_not_specialize=RUN_TIME)
def cells_kernel(
    levels,
    grad_output_ptr,
    value_ptr,
    keys_ptr,  # (B, H, Q*L*P), sorted
    order_ptr,  # where each was before, among all
    records_ptr,  # (B, H, Q*L*P, 4): weight, fx, fy; becomes slopes of the weight, x and y, and the weight
    sums_ptr,  # (B, H, S + walks, 4, D) of COMPUTE: of cells, then shares of walks that begin inside a cell
    firsts_ptr,  # (B, H, S, 4), zeroed: 1 + the walk in which the cell's points with this corner begin
    lasts_ptr,  # (B, H, S, 4): the walk in which they end
    S,
    Q,
    H,
    grad_output_stride_b,
    value_stride_b,
    value_stride_h,
    GRAD_STRIDE: tl.constexpr,  # from a query of grad_output to the next
    STRIDE: tl.constexpr,  # from a pixel of value to the next
    NEXT: tl.constexpr,  # the same, or zero if there is one pixel
    L: tl.constexpr,
    P: tl.constexpr,
    BY_VALUE: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
    NEED_SLOPES: tl.constexpr,
    RUN: tl.constexpr,  # points of a walk
    SHARE: tl.constexpr,  # points that lanes share out at a time, at most LANES
    WALKS: tl.constexpr,  # of a program
    LANES: tl.constexpr,
    VEC: tl.constexpr,
    PAIRS: tl.constexpr,  # their dtype, if value and grad_output may be read two 16-bit channels at a time
    ALIGNED: tl.constexpr,  # whether heads and batch entries lie multiples of a lane's channels apart
):
    bh = tl.program_id(1).to(tl.int64)
    b = bh // H
    head = bh % H
    N = Q * (L * P)
    walks = tl.cdiv(N, RUN)
    walk = tl.program_id(0) * WALKS + tl.arange(0, WALKS)
    lane = tl.arange(0, LANES)
    d = (lane[:, None] * VEC + tl.arange(0, VEC)[None, :])[:, None, :]
    grad_output_offset = b * grad_output_stride_b + head * D
    value_offset = b * value_stride_b + head * value_stride_h
    if ALIGNED:
        grad_output_offset = tl.multiple_of(grad_output_offset, VEC if PAIRS is None else 2 * VEC)
        value_offset = tl.multiple_of(value_offset, VEC if PAIRS is None else 2 * VEC)
    grad_output_ptr += grad_output_offset
    value_ptr += value_offset
    if PAIRS is not None:  # words of 32 bits
        grad_output_ptr = grad_output_ptr.to(tl.pointer_type(tl.int32))
        value_ptr = value_ptr.to(tl.pointer_type(tl.int32))
    grad_output_base = grad_output_ptr + d
    value_base = value_ptr + d
    keys_ptr += bh * N
    order_ptr += bh * N
    records_ptr += 4 * bh * N
    sums_base = sums_ptr + bh * (S + walks) * (4 * D) + d
    firsts_ptr += bh * S * 4
    lasts_ptr += bh * S * 4
    first_cell = (bh * (S + 1)).to(keys_ptr.dtype.element_ty)

    begin = walk * RUN
    # a run that an earlier walk began has the key of that walk's last point
    earlier = tl.load(keys_ptr + begin - 1, mask=(begin > 0) & (begin <= N), other=-1)[None, :]
    sum00 = tl.zeros([LANES, WALKS, VEC, 2] if PAIRS is not None else [LANES, WALKS, VEC], COMPUTE)
    sum01 = sum00
    sum10 = sum00
    sum11 = sum00
    for part in range(RUN // SHARE):
        # [LANES, WALKS]: this lane's point of every walk
        step = part * SHARE + lane % SHARE
        at = begin[None, :] + step[:, None]
        there = at < N
        key = tl.load(keys_ptr + at, mask=there, other=0)
        before = tl.load(keys_ptr + at - 1, mask=there & (at > 0), other=-1)
        after = tl.load(keys_ptr + at + 1, mask=at + 1 < N, other=-1)
        n = (tl.load(order_ptr + at, mask=there, other=bh * N) - bh * N).to(tl.int32)
        weight, fx, fy, _ = _load_record(records_ptr, n.to(tl.int64), there)
        inside = tl.where(there, (key & 15).to(tl.int32), 0)
        cell = ((key >> 4) - first_cell).to(tl.int32)
        ends = (after != key) & (inside != 0)
        last = ends | ((step == RUN - 1)[:, None] & (inside != 0))
        slot = 4 * cell
        for corner in tl.static_range(4):
            has = (inside >> corner) & 1 != 0
            tl.store(firsts_ptr + slot + corner, walk[None, :] + 1 + 0 * slot, mask=has & (key != before))
            tl.store(lasts_ptr + slot + corner, walk[None, :] + 0 * slot, mask=has & ends)

        level = n % (L * P) // P
        w = level_size(levels, level, 1, L, BY_VALUE)
        h = level_size(levels, level, 0, L, BY_VALUE)
        columns = inside & 5 | inside >> 1 & 5  # which rows
        only_left = (inside & 10 == 0) & (inside != 0)
        only_right = (inside & 5 == 0) & (inside != 0)
        only_lower = (inside & 3 == 0) & (inside != 0)
        # the first pixel inside; a point that reaches none reads the first of all
        pixel = tl.where(inside != 0, cell, 0) - tl.where(only_right, w - 1, 0) - tl.where(only_lower, (h - 1) * w, 0)
        below = pixel + tl.where(columns == 5, w, 0)
        # two neighbouring pixels are read of a row, which are a point's where both are inside. Where one is, the other
        # is whichever the tensor has, and left and right are swapped if need be
        swapped = tl.where(only_left, pixel > 0, only_right & (pixel < S - 1))
        swapped_below = tl.where(only_left, below > 0, only_right & (below < S - 1))
        one = tl.minimum(S - 1, 1)
        pixel -= tl.where((only_left & swapped) | (only_right & (pixel == S - 1)), one, 0)
        below -= tl.where((only_left & swapped_below) | (only_right & (below == S - 1)), one, 0)
        right = weight * fx
        left = weight - right
        lower_left = left * fy
        lower_right = right * fy
        place = tl.where(key == earlier, S + walk[None, :], cell)
        stored = tl.where(last, inside, 0)
        flushes = tl.where(last, 1, 0) << (lane % SHARE)[:, None]
        flushes = tl.reduce_or(tl.reshape(flushes, [LANES * WALKS], can_reorder=True), axis=0)

        coefficients = left - lower_left, right - lower_right, lower_left, lower_right
        dots, sums = _walk(
            (grad_output_base, value_base, sums_base),
            (n // (L * P), pixel, below, coefficients, place, stored, flushes),
            (sum00, sum01, sum10, sum11),
            lane,
            d,
            GRAD_STRIDE,
            STRIDE,
            NEXT,
            D,
            NEED_SLOPES,
            PAIRS,
            0,
            SHARE,
        )
        sum00, sum01, sum10, sum11 = sums
        if NEED_SLOPES:
            s00, s01, s10, s11 = [_over_lanes(dots[i], lane, SHARE, LANES) for i in (0, 1, 2, 3)]
            s00, s01 = tl.where(swapped, s01, s00), tl.where(swapped, s00, s01)
            s10, s11 = tl.where(swapped_below, s11, s10), tl.where(swapped_below, s10, s11)
            s00 = tl.where(inside & 1 != 0, s00, 0.0)
            s01 = tl.where(inside & 2 != 0, s01, 0.0)
            s10 = tl.where(inside & 4 != 0, s10, 0.0)
            s11 = tl.where(inside & 8 != 0, s11, 0.0)
            upper = s00 + fx * (s01 - s00)
            score = upper + fy * (s10 + fx * (s11 - s10) - upper)
            # in pixels. a NaN coordinate has read nothing, so its NaN has to be carried over from fx and fy
            slope_x = weight * (s01 - s00 + fy * (s11 - s10 - s01 + s00)) + 0.0 * fx
            slope_y = weight * (s10 - s00 + fx * (s11 - s10 - s01 + s00)) + 0.0 * fy
            _store_record(records_ptr, n.to(tl.int64), score, slope_x, slope_y, weight, there)


@triton.jit
def _walk(
    bases,
    points,
    sums,
    lane,
    d,
    GRAD_STRIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    NEXT: tl.constexpr,
    D: tl.constexpr,
    NEED_SLOPES: tl.constexpr,
    PAIRS: tl.constexpr,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Take points first to first + COUNT of every walk. Returns the dot products, each [LANES, WALKS], of the lane's
    own point among them, as far as COUNT lanes have added them up; and the sums.

    Of two halves that each leave a number in every lane, one half of the lanes keeps the first and sends the second,
    the other half does the opposite: two numbers take one shuffle, where adding them up one by one takes two.
    """
    HALF: tl.constexpr = COUNT // 2
    if COUNT <= 2:
        g = _row(bases[0], points[0], d, GRAD_STRIDE, D, sums[0].dtype, PAIRS, FIRST)
        # both rows on their way before the first may end a run
        then = _row(bases[0], points[0], d, GRAD_STRIDE, D, sums[0].dtype, PAIRS, FIRST + COUNT - 1)
        dots, sums = _step(bases, points, sums, g, d, STRIDE, NEXT, D, NEED_SLOPES, PAIRS, FIRST)
        if COUNT == 2:
            others, sums = _step(bases, points, sums, then, d, STRIDE, NEXT, D, NEED_SLOPES, PAIRS, FIRST + 1)
    else:
        dots, sums = _walk(bases, points, sums, lane, d, GRAD_STRIDE, STRIDE, NEXT, D, NEED_SLOPES, PAIRS, FIRST, HALF)
        others, sums = _walk(
            bases, points, sums, lane, d, GRAD_STRIDE, STRIDE, NEXT, D, NEED_SLOPES, PAIRS, FIRST + HALF, HALF
        )
    if COUNT > 1:
        dots = [_halves(dots[i], others[i], lane, HALF) for i in (0, 1, 2, 3)]
    return dots, sums


@triton.jit
def _step(
    bases,
    points,
    sums,
    g,
    d,
    STRIDE: tl.constexpr,
    NEXT: tl.constexpr,
    D: tl.constexpr,
    NEED_SLOPES: tl.constexpr,
    PAIRS: tl.constexpr,
    POINT: tl.constexpr,
):
    """Take one point of every walk: each lane's part of its dot products, and the sums, stored where a run ends."""
    _, value_base, sums_base = bases
    _, pixel, below, coefficients, place, stored, flushes = points
    sum00, sum01, sum10, sum11 = [sums[i] + _spread(_of(coefficients[i], POINT), PAIRS) * g for i in (0, 1, 2, 3)]
    s00 = tl.zeros(pixel.shape, sum00.dtype)
    s01 = s00
    s10 = s00
    s11 = s00
    if NEED_SLOPES:
        s00 = _dot(g, _row(value_base, pixel, d, STRIDE, D, sum00.dtype, PAIRS, POINT), PAIRS)
        s01 = _dot(g, _row(value_base + NEXT, pixel, d, STRIDE, D, sum00.dtype, PAIRS, POINT), PAIRS)
        s10 = _dot(g, _row(value_base, below, d, STRIDE, D, sum00.dtype, PAIRS, POINT), PAIRS)
        s11 = _dot(g, _row(value_base + NEXT, below, d, STRIDE, D, sum00.dtype, PAIRS, POINT), PAIRS)
    if (flushes >> POINT) & 1 != 0:
        inside = _of(stored, POINT)
        target = sums_base + _of(place, POINT).to(tl.int64)[:, :, None] * (4 * D)
        # a neighbour outside the level is left out, not multiplied by zero, which infinity would show
        _put(target, sum00, (inside & 1 != 0)[:, :, None] & (d < D), D, PAIRS)
        _put(target + D, sum01, (inside & 2 != 0)[:, :, None] & (d < D), D, PAIRS)
        _put(target + 2 * D, sum10, (inside & 4 != 0)[:, :, None] & (d < D), D, PAIRS)
        _put(target + 3 * D, sum11, (inside & 8 != 0)[:, :, None] & (d < D), D, PAIRS)
        ended = _spread(inside != 0, PAIRS)
        sum00 = tl.where(ended, 0.0, sum00)
        sum01 = tl.where(ended, 0.0, sum01)
        sum10 = tl.where(ended, 0.0, sum10)
        sum11 = tl.where(ended, 0.0, sum11)
    return (s00, s01, s10, s11), (sum00, sum01, sum10, sum11)


@triton.jit
def _of(x, POINT: tl.constexpr):
    """x of a walk's point, for all lanes of the walk."""
    return tl.gather(x, tl.full(x.shape, POINT, tl.int32), 0)


@triton.jit
def _row(
    base,
    index,
    d,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
    PAIRS: tl.constexpr,
    POINT: tl.constexpr,
):
    """A point's row of D channels, as a tile [LANES, WALKS, VEC]; of PAIRS, words of two channels: [..., VEC, 2]."""
    pointers = base + _of(index, POINT).to(tl.int64)[:, :, None] * STRIDE
    if PAIRS is not None:
        row = _widen(tl.load(pointers), PAIRS)
    elif d.shape[0] * d.shape[2] == D:
        row = tl.load(pointers).to(COMPUTE)
    else:
        row = tl.load(pointers, mask=d < D, other=0.0).to(COMPUTE)
    return row


@triton.jit
def _widen(words, DTYPE: tl.constexpr):
    if tl.bfloat16 == DTYPE:  # the upper half of a float32
        even = (words << 16).to(tl.float32, bitcast=True)
        odd = (words & -65536).to(tl.float32, bitcast=True)
    else:
        even = words.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
        odd = (words >> 16).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
    return tl.join(even, odd)


@triton.jit
def _spread(x, PAIRS: tl.constexpr):
    """x for every channel of a lane."""
    return x[:, :, None, None] if PAIRS is not None else x[:, :, None]


@triton.jit
def _dot(g, row, PAIRS: tl.constexpr):
    """What a lane's channels add to the dot product."""
    products = g * row
    return tl.sum(tl.sum(products, axis=2), axis=2) if PAIRS is not None else tl.sum(products, axis=2)


@triton.jit
def _put(target, sums, mask, D: tl.constexpr, PAIRS: tl.constexpr):
    """Store sums; of pairs, all even channels before all odd ones, so that a lane still stores 16 bytes at a time."""
    if PAIRS is not None:
        even, odd = tl.split(sums)
        tl.store(target, even, mask=mask)
        tl.store(target + D // 2, odd, mask=mask)
    else:
        tl.store(target, sums, mask=mask)


@triton.jit
def _halves(a, b, lane, BIT: tl.constexpr):
    """a + a of the partner lane where BIT of the lane is clear, b + b of the partner where it is set."""
    upper = (lane & BIT != 0)[:, None]
    partner = (lane ^ BIT)[:, None] + tl.zeros(a.shape, tl.int32)
    return tl.where(upper, b, a) + tl.gather(tl.where(upper, a, b), partner, 0)


@triton.jit
def _over_lanes(x, lane, SHARE: tl.constexpr, LANES: tl.constexpr):
    """Add up over the lanes that have the same point."""
    for i in tl.static_range(5):
        if (SHARE << i) < LANES:
            x += tl.gather(x, (lane ^ (SHARE << i))[:, None] + tl.zeros(x.shape, tl.int32), 0)
    return x


@triton.jit
def _load_record(records_ptr, n, mask):
    """The four numbers of the points n, each a tile like n; 16 bytes at a time."""
    four = tl.load(records_ptr + 4 * n[:, :, None] + tl.arange(0, 4)[None, None, :], mask=mask[:, :, None], other=0.0)
    even, odd = tl.split(tl.reshape(four, [n.shape[0], n.shape[1], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _store_record(records_ptr, n, first, second, third, fourth, mask):
    four = tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), [n.shape[0], n.shape[1], 4])
    tl.store(records_ptr + 4 * n[:, :, None] + tl.arange(0, 4)[None, None, :], four, mask=mask[:, :, None])


@triton.jit(do_not_specialize=RUN_TIME)
def shares_kernel(
    levels,
    keys_ptr,  # (B, H, N), sorted
    sums_ptr,  # as `cells_kernel` leaves them, as are the two below
    firsts_ptr,
    lasts_ptr,
    S,
    N,
    walks,
    step,  # a power of SHARES: of how many walks each share is the sum
    D: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BY_VALUE: tl.constexpr,
):
    """Of SHARES neighbouring shares, put the sum of those that are of one long run in the place of the first. A run is
    long if its walks are more than those of a program, so that it goes on beyond its walks' begin or end."""
    bh = tl.program_id(1).to(tl.int64)
    begin = tl.program_id(0) * (step * SHARES)
    keys_ptr += bh * N
    earlier = tl.load(keys_ptr + begin * RUN)
    d = tl.arange(0, BLOCK_D)
    sums_ptr += (bh * (S + walks) + S) * (4 * D) + d
    for side in tl.static_range(2):
        key = earlier if side == 0 else tl.load(keys_ptr + tl.minimum((begin + step * SHARES) * RUN, N) - 1)
        if (key & 15 != 0) & ((side == 0) | (key != earlier)):
            inside = (key & 15).to(tl.int32)
            any_corner = tl.where(inside & 1 != 0, 0, tl.where(inside & 2 != 0, 1, tl.where(inside & 4 != 0, 2, 3)))
            slot = 4 * ((key >> 4) - bh) + any_corner  # a batch entry and head has S + 1 cells
            first = tl.load(firsts_ptr + slot)
            last = tl.load(lasts_ptr + slot)
            if last - first >= step * SHARES:
                walk = begin + step * tl.arange(0, SHARES)
                # the one in which the run begins has its share where the run's first is
                there = (walk + step > first) & (walk <= last)
                rows = sums_ptr + (tl.maximum(walk, first).to(tl.int64) * (4 * D))[:, None]
                target = sums_ptr + tl.maximum(begin, first).to(tl.int64) * (4 * D)
                for corner in tl.static_range(4):
                    in_d = (d < D) & ((inside >> corner) & 1 != 0)
                    share = tl.load(rows + corner * D, mask=there[:, None] & in_d[None, :], other=0.0)
                    tl.store(target + corner * D, tl.sum(share, axis=0), mask=in_d)


@triton.jit(do_not_specialize=RUN_TIME)
def pixels_kernel(
    levels,
    sums_ptr,
    firsts_ptr,
    lasts_ptr,
    grad_value_ptr,  # (B, S, H, D), contiguous
    S,
    H,
    walks,
    largest,  # log2 of how many walks a share may be the sum
    L: tl.constexpr,
    BY_VALUE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,  # pixels of a program
    BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):
    bh = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)[None, :]
    consistent = check_levels(levels, L, BY_VALUE, S)
    there = (pixel < S) & consistent
    width = tl.full([BLOCK_Q], 1, tl.int32)
    height = tl.full([BLOCK_Q], 1, tl.int32)
    start = tl.zeros([BLOCK_Q], tl.int32)
    begin = tl.zeros((), tl.int32)
    for level in tl.static_range(L):
        h = level_size(levels, level, 0, L, BY_VALUE)
        w = level_size(levels, level, 1, L, BY_VALUE)
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
    last00 = tl.load(end + (upper + column) * 4, mask=first00 > 0, other=-1)
    last01 = tl.load(end + (upper + before) * 4 + 1, mask=first01 > 0, other=-1)
    last10 = tl.load(end + (lower + column) * 4 + 2, mask=first10 > 0, other=-1)
    last11 = tl.load(end + (lower + before) * 4 + 3, mask=first11 > 0, other=-1)

    sums_ptr += bh * (S + walks) * (4 * D) + d
    in_d = d < D
    result = _sums(sums_ptr, upper + column, 0, first00 > 0, in_d, D)
    result += _sums(sums_ptr, upper + before, 1, first01 > 0, in_d, D)
    result += _sums(sums_ptr, lower + column, 2, first10 > 0, in_d, D)
    result += _sums(sums_ptr, lower + before, 3, first11 > 0, in_d, D)
    # then shares, the first of them of the walk after the one that began the run
    shift00 = _walks_of_a_share(first00, last00, largest)
    shift01 = _walks_of_a_share(first01, last01, largest)
    shift10 = _walks_of_a_share(first10, last10, largest)
    shift11 = _walks_of_a_share(first11, last11, largest)
    more00 = (last00 >> shift00) + 1 - (first00 >> shift00)
    more01 = (last01 >> shift01) + 1 - (first01 >> shift01)
    more10 = (last10 >> shift10) + 1 - (first10 >> shift10)
    more11 = (last11 >> shift11) + 1 - (first11 >> shift11)
    most = tl.max(tl.maximum(tl.maximum(more00, more01), tl.maximum(more10, more11)), axis=0)
    later = tl.zeros((), tl.int32)
    while later < most:
        # in pairs, so that the result waits for one addition a turn
        left = _sums(sums_ptr, S + _share(first00, shift00, later), 0, later < more00, in_d, D)
        left += _sums(sums_ptr, S + _share(first10, shift10, later), 2, later < more10, in_d, D)
        right = _sums(sums_ptr, S + _share(first01, shift01, later), 1, later < more01, in_d, D)
        right += _sums(sums_ptr, S + _share(first11, shift11, later), 3, later < more11, in_d, D)
        result += left + right
        later += 1
    if PAIRS:  # from all even channels before all odd ones
        result = tl.reshape(result, [BLOCK_Q, 2, BLOCK_D // 2])
        result = tl.reshape(tl.permute(result, (0, 2, 1)), [BLOCK_Q, BLOCK_D])
    target = grad_value_ptr + (((bh // H) * S + pixel) * H + bh % H)[:, None] * D + d
    tl.store(target, result.to(grad_value_ptr.dtype.element_ty), mask=(pixel < S)[:, None] & in_d)


@triton.jit
def _walks_of_a_share(first, last, largest):
    """Log2 of how many walks `shares_kernel` made one share of, in a run whose walks with shares are first to last: the
    largest power of SHARES up to last - first, but at most ``largest``. The exponent of a float32 says which."""
    exponent = (tl.maximum(last - first, 1).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    return tl.minimum(exponent & -4, largest)  # SHARES is 2**4


@triton.jit
def _share(first, shift, number):
    """Where a run's share of this number stands: the first at its walk, the others where their walks are aligned."""
    return tl.where(number == 0, first, ((first >> shift) + number) << shift)


@triton.jit
def _sums(sums_ptr, place, CORNER: tl.constexpr, there, in_d, D: tl.constexpr):
    """The sums [BLOCK_Q, BLOCK_D] of one corner at these places; zero where there are none."""
    row = sums_ptr + (place.to(tl.int64) * (4 * D) + CORNER * D)[:, None]
    return tl.load(row, mask=there[:, None] & in_d, other=0.0)


@triton.jit(do_not_specialize=RUN_TIME)
def points_kernel(
    levels,
    points_ptr,  # offsets, for the shares of boxes
    references_ptr,
    records_ptr,  # (B, H, Q*L*P, 4): slopes of the weight, x and y in pixels, and the weight
    grad_points_ptr,  # (B, Q, H, L, P, 2), contiguous, as are the two below
    grad_weights_ptr,  # (B, Q, H, L, P)
    grad_references_ptr,  # (B, Q, H, L, 2 or 4) of COMPUTE: one share per head
    S,
    Q,
    H,
    points_stride_b,
    points_stride_q,
    points_stride_h,
    references_stride_b,
    references_stride_q,
    references_stride_l,
    L: tl.constexpr,
    P: tl.constexpr,
    BY_VALUE: tl.constexpr,  # levels are numbers, not a pointer to them
    FUSED: tl.constexpr,
    BOXES: tl.constexpr,
    NEED_POINTS: tl.constexpr,
    NEED_WEIGHTS: tl.constexpr,
    NEED_REFERENCES: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_LP: tl.constexpr,
):
    bh = tl.program_id(1).to(tl.int64)
    b = bh // H
    head = bh % H
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    k = tl.arange(0, BLOCK_LP)
    in_q = q < Q
    there = (k < L * P)[:, None] & in_q[None, :]
    q = tl.minimum(q, Q - 1).to(tl.int64)
    inner = tl.minimum(k, L * P - 1)
    level = inner // P
    n = (bh * Q + q)[None, :] * (L * P) + k[:, None]
    score, slope_x, slope_y, weight = _load_record(records_ptr, n, there)

    output_row = (b * Q + q) * H + head
    if NEED_WEIGHTS:
        if FUSED:
            score = weight * (score - tl.sum(weight * score, axis=0)[None, :])
        place = grad_weights_ptr + (output_row * (L * P))[None, :] + k[:, None]
        tl.store(place, score.to(grad_weights_ptr.dtype.element_ty), mask=there)
    if NEED_POINTS or NEED_REFERENCES:
        consistent = check_levels(levels, L, BY_VALUE, S)
        w, h, _ = levels_of(levels, level, L, BY_VALUE, BLOCK_LP)
        extent_x = tl.where(consistent, w.to(COMPUTE), float("nan"))[:, None]
        extent_y = tl.where(consistent, h.to(COMPUTE), float("nan"))[:, None]
        if BOXES:
            row = references_ptr + b * references_stride_b + q * references_stride_q
            reference = row[None, :] + level[:, None] * references_stride_l
            step_x = slope_x * (extent_x * (0.5 / P))
            step_y = slope_y * (extent_y * (0.5 / P))
            grad_x = step_x * tl.load(reference + 2).to(COMPUTE)
            grad_y = step_y * tl.load(reference + 3).to(COMPUTE)
        elif FUSED:
            grad_x = slope_x
            grad_y = slope_y
        else:
            grad_x = slope_x * extent_x
            grad_y = slope_y * extent_y
        if NEED_POINTS:
            place = grad_points_ptr + (output_row * (2 * L * P))[None, :] + 2 * k[:, None]
            both = tl.join(grad_x, grad_y).to(grad_points_ptr.dtype.element_ty)
            tl.store(place[:, :, None] + tl.arange(0, 2)[None, None, :], both, mask=there[:, :, None])
        if NEED_REFERENCES:
            if BOXES:
                row = points_ptr + b * points_stride_b + head * points_stride_h + q * points_stride_q
                offset_x = tl.load(row[None, :] + 2 * inner[:, None]).to(COMPUTE)
                offset_y = tl.load(row[None, :] + 2 * inner[:, None] + 1).to(COMPUTE)
            WIDTH: tl.constexpr = 4 if BOXES else 2
            for l in tl.static_range(L):
                on = there & (level == l)[:, None]
                share = grad_references_ptr + (output_row * L + l) * WIDTH
                tl.store(share, tl.sum(tl.where(on, slope_x * extent_x, 0.0), axis=0), mask=in_q)
                tl.store(share + 1, tl.sum(tl.where(on, slope_y * extent_y, 0.0), axis=0), mask=in_q)
                if BOXES:
                    tl.store(share + 2, tl.sum(tl.where(on, step_x * offset_x, 0.0), axis=0), mask=in_q)
                    tl.store(share + 3, tl.sum(tl.where(on, step_y * offset_y, 0.0), axis=0), mask=in_q)
