"""What forward and backward share: where the points of a query lie, what they weigh, and which pixels they read.

    pixel x = location * w - 0.5 (align_corners=False); the neighbours are floor(x) and floor(x) + 1, and so in y

The L*P points of one (query, head) lie next to each other in memory, so vectors run along them: with 16 lanes the
coordinates, coefficients and weights of a usual query's 16 points take one instruction each.

A neighbour outside the level counts as zero. Instead of asking which ones do, the pair of neighbours is moved into the
level, and each pixel gets the coefficient max(0, 1 - distance): the same number inside, and zero where the sample does
not reach. Zero times a number that is not finite is NaN, so a result that is not finite is not trusted: the kernels
then read the true neighbours one by one (`corners`).
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .emit import BYTES, Compute, Emitter, Float, Value, vector_bytes

AT_ONCE = 4  # points in one turn of a loop
_PAGE = 4096
_LARGEST = 2.0**31 - 128  # a float32 below 2**31: becomes an int32


class Kind(NamedTuple):
    """What a kernel is compiled for: dtypes by name, and the sizes that do not change with the image."""

    value: Float
    references: Float
    points: Float
    """locations or offsets"""
    weights: Float
    """weights or logits"""
    compute: Compute
    D: int
    L: int
    P: int
    coordinates: int
    """of a reference point, 2 or 4; 0 where locations and weights are given"""

    @property
    def fused(self) -> bool:
        return self.coordinates > 0

    @property
    def rounded(self) -> bool:
        """Whether value is stored in another dtype than it is computed in."""
        return self.value != self.compute

    @property
    def LP(self) -> int:
        return self.L * self.P

    @property
    def padded(self) -> int:
        """L*P rounded up to what loops over points take at a time."""
        return -(-self.LP // AT_ONCE) * AT_ONCE

    @property
    def padded_levels(self) -> int:
        """L, and the levels that the points beyond L*P would belong to: those have no pixel."""
        return -(-self.padded // self.P)

    @property
    def lanes(self) -> int:
        """Numbers of the compute dtype in a vector register."""
        return vector_bytes() // BYTES[self.compute]

    @property
    def registers(self) -> int:
        """Vector registers of the processor: 32 with AVX-512 and on ARM, 16 on other x86."""
        return 16 if vector_bytes() == 32 else 32


def apart(size: int) -> int:
    """Bytes from the start of one thread's scratch memory to the next one's: a page lies between.

    A processor that reads or writes one cache line fetches its neighbours too, within a page, and takes them from
    another thread that writes there.
    """
    return size + _PAGE


# what both kernels take first, as `launch` fills it in: counters that threads share, addresses, and strides in bytes
TAKEN, SLOTS = "taken", "slots"
COMMON_ARGUMENTS = (
    *(TAKEN, SLOTS, "units", "scratch", "scratch_bytes", "levels", "order"),
    *("value", "references", "points", "weights"),
    *("value_b", "value_s", "value_h", "references_b", "references_q", "references_l"),
    *("points_b", "points_q", "points_h", "weights_b", "weights_q", "weights_h"),
    *("ahead", "ahead_end"),
)


class Block(NamedTuple):
    """Points, or channels, that one vector holds."""

    first: int
    lanes: int


def blocks(kind: Kind) -> list[Block]:
    """All points of a query and head, in vectors."""
    lanes = kind.lanes
    return [Block(first, min(lanes, kind.LP - first)) for first in range(0, kind.LP, lanes)]


def channels(kind: Kind) -> list[list[Block]]:
    """The D channels in vectors, and those in groups of as many as there are registers for."""
    parts, first, lanes = [], 0, kind.lanes
    while first < kind.D:
        while lanes > kind.D - first:
            lanes //= 2
        parts.append(Block(first, lanes))
        first += lanes
    return [parts[i : i + 8] for i in range(0, len(parts), 8)]


# a number for each point, in the order of memory
_FLOATS = ("w", "h", "last_x", "last_y", "has_right", "has_lower")
_INTS = ("width", "start")
_STEPS = ("to_right", "to_lower", "sums_to_right", "sums_to_lower")
# a number for each level
_SIZES = ("first", "rows", "columns")


def level_table(sizes: Sequence[int], kind: Kind, row_bytes: int, sums_bytes: int = 0) -> bytes:
    """What the kernels know of levels, as `Levels` reads it.

    Args:
        sizes: (h, w, h, w, ...).
        row_bytes: from a pixel of value to the next.
        sums_bytes: from a pixel's sums to the next one's, where the backward adds up grad_value.
    """

    def last(extent: int) -> float:
        """The last pixel that has a neighbour; rounded down where float32 does not have it, to stay in the level."""
        number = max(extent - 2, 0)
        spare = max(number.bit_length() - 24, 0) if kind.compute == "float32" else 0
        return min(float(number >> spare << spare), _LARGEST)

    columns: dict[str, list[float]] = {name: [] for name in (*_FLOATS, *_INTS, *_STEPS, *_SIZES)}
    start = 0
    for h, w in zip(sizes[::2], sizes[1::2], strict=True):
        numbers: dict[str, float] = {
            "w": w,
            "h": h,
            # the last pixel that has a right neighbour, a lower neighbour
            "last_x": last(w),
            "last_y": last(h),
            "has_right": w > 1,
            "has_lower": h > 1,
            "width": w,
            "start": start,
            # bytes to the neighbours; where there is none, to the pixel itself
            "to_right": row_bytes * (w > 1),
            "to_lower": row_bytes * w * (h > 1),
            "sums_to_right": sums_bytes * (w > 1),
            "sums_to_lower": sums_bytes * w * (h > 1),
            "first": start,
            "rows": h,
            "columns": w,
        }
        for name, number in numbers.items():
            columns[name].extend([number] * (1 if name in _SIZES else kind.P))
        start += h * w
    padding = [0] * (kind.padded - kind.LP)
    packed = b""
    for names, letter in ((_FLOATS, "d" if kind.compute == "float64" else "f"), (_INTS, "i"), (_STEPS, "q")):
        for name in names:
            packed += struct.pack(f"={kind.padded}{letter}", *columns[name], *padding)
    for name in _SIZES:
        packed += struct.pack(f"={kind.padded_levels}q", *columns[name], *[0] * (kind.padded_levels - kind.L))
    return packed


class Levels:
    """The level table in memory."""

    def __init__(self, e: Emitter, kind: Kind, table: Value) -> None:
        self.e, self.kind = e, kind
        self.addresses: dict[str, Value] = {}
        for names, size, count in (
            (_FLOATS, BYTES[kind.compute], kind.padded),
            (_INTS, 4, kind.padded),
            (_STEPS, 8, kind.padded),
            (_SIZES, 8, kind.padded_levels),
        ):
            for name in names:
                self.addresses[name] = table
                table = table + size * count

    def of(self, name: str, block: Block) -> Value:
        """A column for the points of a block."""
        dtype = self.kind.compute if name in _FLOATS else "int32"
        return self.e.load(self.addresses[name] + block.first * BYTES[dtype], dtype, block.lanes)

    def number(self, name: str, i: Value | int) -> Value:
        """What is known of a point, or of a level, as int64."""
        return self.e.load(self.addresses[name] + i * 8, "int64")

    def corners(self, upper_left: Value, point: Value, *, sums: bool = False) -> list[Value]:
        """Addresses of a point's four pixels of value, or of their sums, from that of the upper left one."""
        which = "sums_to" if sums else "to"
        lower_left = upper_left + self.number(f"{which}_lower", point)
        to_right = self.number(f"{which}_right", point)
        return [upper_left, upper_left + to_right, lower_left, lower_left + to_right]


class Neighbours(NamedTuple):
    """Of the points of a block, moved into their levels: one vector each."""

    pixel: Value
    """the upper left one, counted from the first of level 0; int32"""
    x: Value
    """distance from the left column, in pixels; and from the upper row"""
    y: Value
    left: Value
    """coefficients of the two columns and the two rows"""
    right: Value
    upper: Value
    lower: Value


class Located(NamedTuple):
    """The points of a block: one vector each."""

    x: Value
    """pixel coordinates"""
    y: Value
    weight: Value
    near: Neighbours

    def coefficients(self) -> tuple[Value, Value, Value, Value]:
        """What the four pixels are multiplied by, the weight included."""
        left, right = self.near.left * self.weight, self.near.right * self.weight
        return left * self.near.upper, right * self.near.upper, left * self.near.lower, right * self.near.lower


class RowScratch:
    """What a row hands from vectors over its points to the loop over points: a column of a number for each point."""

    def __init__(self, kind: Kind, address: Value) -> None:
        size = BYTES[kind.compute] * kind.padded
        columns = [address + size * i for i in range(7)]
        self.coefficients = columns[:4]  # of the four pixels
        self.located = columns[4:]  # x, y and weight
        self.pixels = address + 7 * size  # the upper left ones

    @staticmethod
    def bytes(kind: Kind) -> int:
        return -(-(7 * BYTES[kind.compute] + 4) * kind.padded // 64) * 64


class Row:
    """One query and head of one image: the addresses of its numbers, and what is computed of them at once.

    The emitter's arguments hold a pointer to every tensor, and its strides in bytes.

    Args:
        scratch: address of memory for the rows of all heads.
    """

    def __init__(self, e: Emitter, kind: Kind, levels: Levels, scratch: Value, b: Value, q: Value, head: Value) -> None:
        self.e, self.kind, self.levels = e, kind, levels
        self.scratch = RowScratch(kind, scratch + head * RowScratch.bytes(kind))
        self.b, self.q, self.head = b, q, head
        a = e.arguments
        self.value = a["value"] + b * a["value_b"] + head * a["value_h"]
        self.points = a["points"] + b * a["points_b"] + q * a["points_q"] + head * a["points_h"]
        self.weights = a["weights"] + b * a["weights_b"] + q * a["weights_q"] + head * a["weights_h"]
        self.references = a["references"] + b * a["references_b"] + q * a["references_q"]

    def channels(self, pixel: Value, part: Block) -> Value:
        """Some channels of the pixel of value at an address."""
        kind = self.kind
        return self.e.load_as(pixel + part.first * BYTES[kind.value], kind.value, kind.compute, part.lanes)

    def locate(self) -> None:
        """Compute what scratch memory holds."""
        for block, weight in zip(blocks(self.kind), self._weights(), strict=True):
            x, y = self._coordinates(block)
            located = Located(x, y, weight, self._neighbours(block, x, y))
            self.store(self.scratch.coefficients, located.coefficients(), block)
            self.store(self.scratch.located, (x, y, weight), block)
            self.e.store(located.near.pixel, self.scratch.pixels + 4 * block.first, "int32")

    def located(self, block: Block) -> Located:
        """The points of a block, from scratch memory."""
        x, y, weight = self.load(self.scratch.located, block)
        return Located(x, y, weight, self._neighbours(block, x, y))

    def pixel(self, point: Value) -> Value:
        """The upper left pixel of a point, from scratch memory; int64."""
        return self.e.to_int64(self.e.load(self.scratch.pixels + point * 4, "int32"))

    def ahead(self) -> Iterator[tuple[Value, Value]]:
        """The points whose pixels are to be fetched before they are used, and each one's upper left pixel, for a
        ``for`` that runs to its end."""
        with self.e.loop(self.e.arguments["ahead"], self.e.arguments["ahead_end"]) as point:
            yield point, self.pixel(point)

    def prefetch(self, point: Value, pixel: Value) -> None:
        """The four pixels of value."""
        for address in self.pixels_of(point, pixel):
            self.e.prefetch(address, self.kind.D * BYTES[self.kind.value])

    def pixels_of(self, point: Value, pixel: Value) -> list[Value]:
        """Addresses of the four pixels of value."""
        return self.levels.corners(self.value + pixel * self.e.arguments["value_s"], point)

    def store(self, columns: Sequence[Value], vectors: Sequence[Value], block: Block) -> None:
        """The numbers of a block's points into columns."""
        size = BYTES[self.kind.compute]
        for address, numbers in zip(columns, vectors, strict=True):
            self.e.store(numbers, address + size * block.first, self.kind.compute)

    def load(self, columns: Sequence[Value], block: Block) -> list[Value]:
        size = BYTES[self.kind.compute]
        return [self.e.load(address + size * block.first, self.kind.compute, block.lanes) for address in columns]

    def pairs(self, block: Block) -> tuple[Value, Value]:
        """Locations or offsets in x and in y, as they are given."""
        kind = self.kind
        row = self.points + block.first * 2 * BYTES[kind.points]
        both = self.e.load_as(row, kind.points, kind.compute, 2 * block.lanes)
        return self.e.pick(both, range(0, 2 * block.lanes, 2)), self.e.pick(both, range(1, 2 * block.lanes, 2))

    def reference(self, block: Block) -> list[Value]:
        """Each coordinate of the points' reference points, a vector over the points of a block."""
        e, kind = self.e, self.kind
        first, last = block.first // kind.P, (block.first + block.lanes - 1) // kind.P
        lanes = kind.coordinates
        rows = [
            e.load_as(self.references + e.arguments["references_l"] * level, kind.references, kind.compute, lanes)
            for level in range(first, last + 1)
        ]
        while len(rows) > 1:  # vectors of twice as many levels
            if len(rows) % 2:
                rows.append(rows[-1])
            lanes *= 2
            rows = [e.pick(a, range(lanes), b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        levels = [(block.first + i) // kind.P - first for i in range(block.lanes)]
        return [e.pick(rows[0], [level * kind.coordinates + c for level in levels]) for c in range(kind.coordinates)]

    def _coordinates(self, block: Block) -> tuple[Value, Value]:
        kind = self.kind
        x, y = self.pairs(block)
        w, h = self.levels.of("w", block), self.levels.of("h", block)
        if not kind.fused:
            return x * w - 0.5, y * h - 0.5
        reference = self.reference(block)
        if kind.coordinates == 2:  # an offset counts pixels
            return reference[0] * w - 0.5 + x, reference[1] * h - 0.5 + y
        scale = 0.5 / kind.P
        return (reference[0] + x * scale * reference[2]) * w - 0.5, (reference[1] + y * scale * reference[3]) * h - 0.5

    def _weights(self) -> list[Value]:
        """Attention weights as given, or the softmax of logits."""
        e, kind = self.e, self.kind
        parts = [
            e.load_as(self.weights + block.first * BYTES[kind.weights], kind.weights, kind.compute, block.lanes)
            for block in blocks(kind)
        ]
        if not kind.fused:
            return parts
        largest = e.largest_of(parts)
        exponentials = [e.exp(part - largest, kind.compute) for part in parts]
        scale = 1.0 / e.sum_of(exponentials)
        return [part * scale for part in exponentials]

    def _neighbours(self, block: Block, x: Value, y: Value) -> Neighbours:
        """Always inside the levels, for any coordinates."""
        e, of = self.e, self.levels.of
        # NaN becomes zero
        column = e.smaller(e.larger(e.floor(x), 0.0), of("last_x", block))
        row = e.smaller(e.larger(e.floor(y), 0.0), of("last_y", block))
        pixel = e.to_int32(row) * of("width", block) + e.to_int32(column) + of("start", block)
        x, y = x - column, y - row

        def hat(distance: Value) -> Value:
            falling = 1.0 - e.abs(distance)
            return e.select(falling < 0.0, 0.0, falling)  # NaN stays NaN

        right, lower = hat(x - 1.0) * of("has_right", block), hat(y - 1.0) * of("has_lower", block)
        return Neighbours(pixel, x, y, hat(x), right, hat(y), lower)


class Corner(NamedTuple):
    """One of the four neighbours of a single sample."""

    inside: Value
    pixel: Value
    """int64; means something only inside"""
    x: Value
    """its coefficient in x, in [0, 1]"""
    y: Value
    slope_x: int
    """of the coefficient in x: -1 or 1"""
    slope_y: int


def corners(e: Emitter, kind: Kind, levels: Levels, level: Value, x: Value, y: Value) -> list[Corner]:
    """The neighbours of a single sample as they are, whatever its coordinates; those of NaN lie outside."""
    rows, columns = levels.number("rows", level), levels.number("columns", level)

    def settle(coordinate: Value, extent: Value) -> Value:
        """Just outside where it is far outside or NaN, so that an integer can be made of it."""
        return e.smaller(e.larger(coordinate, -2.0), e.to_float(extent, kind.compute) + 1.0)

    x, y = settle(x, columns), settle(y, rows)
    floor_x, floor_y = e.floor(x), e.floor(y)
    column, row = e.to_int64(floor_x), e.to_int64(floor_y)
    right, lower = x - floor_x, y - floor_y
    found = []
    for dy, in_y in enumerate((1.0 - lower, lower)):
        for dx, in_x in enumerate((1.0 - right, right)):
            inside = (column >= -dx) & (column < columns - dx) & (row >= -dy) & (row < rows - dy)
            pixel = levels.number("first", level) + (row + dy) * columns + column + dx
            found.append(Corner(inside, pixel, in_x, in_y, 2 * dx - 1, 2 * dy - 1))
    return found


def not_finite(e: Emitter, vectors: Sequence[Value]) -> Value:
    """Whether any number of vectors of one length is infinite or NaN."""
    total = vectors[0] - vectors[0]
    for vector in vectors[1:]:
        total = total + (vector - vector)
    return e.any(e.is_nan(total))
