"""Bilinear sampling of one point by a tile of queries: the arithmetic that forward and backward share.

    pixel x = location * w - 0.5 (align_corners=False); the four neighbours are floor(x), floor(x)+1 in each direction,
    weighted by their distance; a neighbour outside the level is skipped.

Everything here works on vectors [BLOCK_Q], one element per query; a tile's lanes along the channels repeat it.
"""

import triton
import triton.language as tl

# arguments of kernels that change with the image or the number of queries, or could: none of them is compiled for
RUN_TIME = ["S", "Q", "H", "N", "walks", "step", "largest"] + [
    f"{tensor}_stride_{axis}"
    for tensor in ("grad_output", "value", "points", "weights", "references")
    for axis in ("b", "s", "q", "h", "l")
]


@triton.jit
def level_size(levels, level, AXIS: tl.constexpr, L: tl.constexpr, BY_VALUE: tl.constexpr):
    """Height (AXIS 0) or width (AXIS 1) of ``level``, a number or a tile of them, as int32.

    ``levels`` is a pointer to int64 (L, 2), or BY_VALUE a tuple of 2*L numbers, each 2*n+1 for a size n: see `launch`.
    """
    if BY_VALUE:
        size = (levels[AXIS] >> 1) + 0 * level
        for l in tl.static_range(1, L):
            size = tl.where(level == l, levels[2 * l + AXIS] >> 1, size)
    else:
        size = tl.load(levels + 2 * level + AXIS)
    return size.to(tl.int32)


@triton.jit
def _size64(levels, i: tl.constexpr, BY_VALUE: tl.constexpr):
    """Entry i of the flat sizes as int64, which may be anything."""
    if BY_VALUE:
        size = (levels[i] >> 1).to(tl.int64)
    else:
        size = tl.load(levels + i)
    return size


@triton.jit
def check_levels(levels, L: tl.constexpr, BY_VALUE: tl.constexpr, S):
    """Whether the level sizes add up to S, each at least 1. The kernels turn sizes that don't add up into NaN, not into
    reads outside the tensor."""
    total = tl.zeros((), tl.int64)
    least = tl.zeros((), tl.int64) + S
    most = tl.zeros((), tl.int64)
    for level in tl.static_range(L):
        h = _size64(levels, 2 * level, BY_VALUE)
        w = _size64(levels, 2 * level + 1, BY_VALUE)
        least = tl.minimum(least, tl.minimum(h, w))
        most = tl.maximum(most, tl.maximum(h, w))
        total += h * w
    # sizes within [1, S] have products within int64; of others the sum means nothing, and is not asked
    return (least >= 1) & (most <= S) & (total == S)


@triton.jit
def regular_levels(levels, L: tl.constexpr, BY_VALUE: tl.constexpr, S):
    """Whether the level sizes add up to S, each at least 2 and at most 2**23 + 1: a float32 counts their pixels."""
    total = tl.zeros((), tl.uint64)
    excess = tl.zeros((), tl.int32)
    for level in tl.static_range(L):
        h64 = _size64(levels, 2 * level, BY_VALUE)
        w64 = _size64(levels, 2 * level + 1, BY_VALUE)
        h = h64.to(tl.int32)
        w = w64.to(tl.int32)
        # bits from the 23rd on are set in what is below zero or too large; beyond 32 bits none may be
        excess |= ((h - 2) | (w - 2)) >> 23 | (h64 >> 32).to(tl.int32) | (w64 >> 32).to(tl.int32)
        total += h.to(tl.uint32).to(tl.uint64) * w.to(tl.uint32).to(tl.uint64)
    return (excess == 0) & (total.to(tl.int64) == S)


@triton.jit
def in_bands(levels, index, L: tl.constexpr, BY_VALUE: tl.constexpr, HIGH: tl.constexpr):
    """The pixels [BLOCK_Q] that come at ``index`` when every level is walked in bands of HIGH rows, each column by
    column. Exact for regular levels of fewer than 2**20 pixels together; others give any numbers."""
    w = tl.zeros_like(index)
    h = tl.zeros_like(index)
    start = tl.zeros_like(index)
    begin = tl.zeros((), tl.int32)
    for level in tl.static_range(L):
        next_h = _size64(levels, 2 * level, BY_VALUE).to(tl.int32)
        next_w = _size64(levels, 2 * level + 1, BY_VALUE).to(tl.int32)
        on = index >= begin
        w = tl.where(on, next_w, w)
        h = tl.where(on, next_h, h)
        start = tl.where(on, begin, start)
        begin += next_h * next_w
    place = index - start
    # half a unit keeps a quotient away from the next integer, by more than a float32 errs below 2**20
    band = tl.floor((place.to(tl.float32) + 0.5) / (HIGH * w).to(tl.float32)).to(tl.int32)
    place -= band * (HIGH * w)
    high = tl.minimum(HIGH, h - band * HIGH)
    column = tl.floor((place.to(tl.float32) + 0.5) / high.to(tl.float32)).to(tl.int32)
    return start + (band * HIGH + place - column * high) * w + column


@triton.jit
def levels_of(levels, level, L: tl.constexpr, BY_VALUE: tl.constexpr, LANES: tl.constexpr):
    """Width, height and first pixel of the levels ``level`` [LANES], each int32 [LANES]."""
    start = tl.zeros([LANES], tl.int32)
    for l in tl.static_range(L - 1):
        size = _size64(levels, 2 * l, BY_VALUE) * _size64(levels, 2 * l + 1, BY_VALUE)
        start += tl.where(level > l, size.to(tl.int32), 0)
    h = level_size(levels, level, 0, L, BY_VALUE)
    w = level_size(levels, level, 1, L, BY_VALUE)
    return w, h, start


@triton.jit
def clamp(x, last):
    """Move x into [0, last]; NaN becomes 0, so that an integer can be made of it."""
    return tl.minimum(tl.where(x > 0.0, x, 0.0), last)


@triton.jit
def hat(distance):
    """The bilinear coefficient of a pixel at this distance in one direction: zero from one pixel on. NaN stays NaN."""
    return tl.maximum(1.0 - tl.abs(distance), 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def settle(x, extent):
    """Move a far coordinate to just outside the level, where the sample is zero, before it becomes an integer. NaN
    stays NaN."""
    x = tl.where(x < -2.0, -2.0, x)
    return tl.where(x > extent + 1.0, extent + 1.0, x)


@triton.jit
def neighbours(x, y, w, h, start, in_range):
    """The four neighbours of settled pixel coordinates x, y in a level of w x h pixels beginning at ``start``.

    Returns (index of the upper left one among the S pixels, four masks: upper left, upper right, lower left, lower
    right, fx, fy). The index has the integer type of ``start``; the others are at +1, +w and +w+1.
    """
    floor_x = tl.floor(x)
    floor_y = tl.floor(y)
    # a comparison with NaN is false: only then is the conversion to an integer defined
    column = tl.where(floor_x >= -2.0, floor_x, -2.0).to(tl.int32)
    row = tl.where(floor_y >= -2.0, floor_y, -2.0).to(tl.int32)
    left = (column >= 0) & (column < w) & in_range
    right = (column >= -1) & (column < w - 1) & in_range
    upper = (row >= 0) & (row < h)
    lower = (row >= -1) & (row < h - 1)
    pixel = start + (row * w + column)
    return pixel, upper & left, upper & right, lower & left, lower & right, x - floor_x, y - floor_y


@triton.jit
def row_logits(rows, in_range, COUNT: tl.constexpr, WIDTH: tl.constexpr, COMPUTE: tl.constexpr):
    """COUNT logits of each row as a tile [BLOCK_Q, WIDTH], minus infinity beyond them. WIDTH is that of the channels
    where COUNT fits, so that a row's reduction lies in the registers where the channels' lanes want it."""
    k = tl.arange(0, WIDTH)[None, :]
    return tl.load(rows[:, None] + k, mask=in_range[:, None] & (k < COUNT), other=float("-inf")).to(COMPUTE)
