"""In which order the queries of an encoder are handed to programs.

An order is a list of programs of BLOCK_Q queries each, all of one head, and says whether query blocks or heads run
fastest. The queries of an encoder are the pixels of its levels, one level after another, each row by row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..kernels.contract import Sizes

Array = np.ndarray
NOBODY = -1
"""in place of a query: a lane of an incomplete tile that has nothing to do"""

# of a level (h, w), the place of each pixel in the walk, or NOBODY: a permutation of its pixels with gaps
Walk = Callable[[int, int], Array]


@dataclass(frozen=True)
class Order:
    """How queries are cut into programs, and the order in which programs begin."""

    walk: Walk
    heads_fastest: bool = False
    shuffled: bool = False
    """queries of all levels in any order: the worst case"""

    def programs(self, sizes: Sizes, block: int) -> Array:
        """Queries of each program, (programs, block) int64, NOBODY where a lane is idle."""
        walked, start = [], 0
        for h, w in sizes:
            places = self.walk(h, w)
            walked.append(np.where(places == NOBODY, NOBODY, places + start))
            start += h * w
        queries = np.concatenate(walked)
        if self.shuffled:
            queries = np.random.default_rng(0).permutation(queries)
        queries = np.concatenate([queries, np.full(-len(queries) % block, NOBODY)])
        return queries.reshape(-1, block)


def rows(h: int, w: int) -> Array:
    """Row by row, as the levels lie in memory."""
    return np.arange(h * w)


def tiles(wide: int, high: int) -> Walk:
    """Tiles row by row; those at the right and lower edge are filled up with idle lanes, so that every tile has the
    same shape and none is shared by two programs."""

    def walk(h: int, w: int) -> Array:
        y, x = np.mgrid[: -(-h // high) * high, : -(-w // wide) * wide]
        places = np.where((y < h) & (x < w), y * w + x, NOBODY)
        return places.reshape(-1, high, places.shape[1] // wide, wide).transpose(0, 2, 1, 3).ravel()

    return walk


def bands(high: int) -> Walk:
    """Bands of `high` rows, each column by column: tiles without idle lanes, as a program may go on in the next band.

    One division finds the band, another the column: the last band, of fewer rows, needs no case of its own.
    """

    def walk(h: int, w: int) -> Array:
        place = np.arange(h * w)
        band = place // (w * high)
        rows_of_band = np.minimum(high, h - band * high)
        x, y = np.divmod(place - band * w * high, rows_of_band)
        return (band * high + y) * w + x

    return walk


def morton(h: int, w: int) -> Array:
    """By the interleaved bits of row and column (Morton 1966)."""
    y, x = np.divmod(np.arange(h * w), w)
    code = np.zeros(h * w, np.int64)
    for bit in range(max(h, w).bit_length()):
        code |= (x >> bit & 1) << 2 * bit | (y >> bit & 1) << 2 * bit + 1
    return np.argsort(code)


def hilbert(h: int, w: int) -> Array:
    """Along Hilbert's curve through the smallest square of a power of two that holds the level."""
    y, x = np.divmod(np.arange(h * w), w)
    code = np.zeros(h * w, np.int64)
    side = 1 << (max(h, w) - 1).bit_length()
    half = side // 2
    while half > 0:
        right, lower = (x & half) > 0, (y & half) > 0
        code += half * half * ((3 * right) ^ lower)
        # each quarter is the curve again, turned so that it ends where the next one begins
        flip = right & ~lower
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        x, y = np.where(lower, x, y), np.where(lower, y, x)
        half //= 2
    return np.argsort(code)


ORDERS: dict[str, Order] = {
    "rows": Order(rows),
    "rows, heads fastest": Order(rows, heads_fastest=True),
    "tiles 16x2": Order(tiles(16, 2)),
    "tiles 8x4": Order(tiles(8, 4)),
    "tiles 8x8": Order(tiles(8, 8)),
    "bands of 4": Order(bands(4)),
    "bands of 8": Order(bands(8)),
    "morton": Order(morton),
    "hilbert": Order(hilbert),
    "random": Order(rows, shuffled=True),
}
