"""Backward: the gradients of value, of locations and weights, or of references, offsets and logits.

    grad_value[pixel] += weight * coefficient * grad_output                       for the four pixels of every point
    grad_weight        = sum over pixels of coefficient * dot(grad_output, value[pixel])
    grad_x             = weight * sum over pixels of d coefficient / d x * dot(grad_output, value[pixel]); and so in y

and through the softmax: grad_logit = weight * (grad_weight - sum over points of weight * grad_weight).

Work: units of some heads of one image, all of its queries in one order, by one thread: no two threads write to a pixel,
so nothing is atomic, and the sums have the same bits for any number of threads. Where there are fewer heads than
threads, a unit is shared out: each thread goes through all queries, adds to its own rows of pixels, and computes the
points' gradients of its own queries. Pixels of large levels are fetched ahead, as in the forward.
Reads: what the forward does, and rows of D channels of grad_output. Writes: adds to four rows of D channels per point;
every gradient once.
Bound: loads and stores. A point of 32 float32 channels takes 16 loads and 8 stores of 64 bytes, and the four dot
products' sums across lanes, 16 of them side by side.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

from .emit import BYTES, Emitter, Value, Variable
from .points import (
    AT_ONCE,
    COMMON_ARGUMENTS,
    SLOTS,
    TAKEN,
    Block,
    Kind,
    Levels,
    Located,
    Row,
    blocks,
    channels,
    corners,
    not_finite,
)

ARGUMENTS = (
    *COMMON_ARGUMENTS,
    *("grad_output", "grad_output_b", "grad_output_q"),
    *("grad_value", "grad_references", "grad_points", "grad_weights", "sums"),
    *("H", "Q", "S", "heads", "groups", "shares", "sums_s", "sums_unit"),
)


class Wanted(NamedTuple):
    """Which gradients are computed."""

    value: bool
    references: bool
    points: bool
    weights: bool

    @property
    def of_queries(self) -> bool:
        """Any that each query has of its own."""
        return self.references or self.points or self.weights


class Scratch:
    """What is handed from the loop over points back to vectors over points."""

    def __init__(self, kind: Kind, address: Value) -> None:
        size = BYTES[kind.compute] * kind.padded
        self.dots = address  # four for each point, next to each other
        self.gradients = [address + size * i for i in range(4, 7)]  # of x, y and weight
        self.bounds = address + 7 * size  # of each level, the first pixel of this thread and the first of the next

    @staticmethod
    def bytes(kind: Kind) -> int:
        return -(-(7 * BYTES[kind.compute] * kind.padded + 16 * kind.padded_levels) // 64) * 64


def emit(kind: Kind, wanted: Wanted, *, shared: bool, summed: bool) -> Emitter:
    """The function of one kind of call; see `ARGUMENTS`.

    Args:
        shared: whether several threads add to the pixels of the same heads, each to its own rows.
        summed: whether grad_value is added up in memory of its own, and then taken over: in another dtype, or where
            no other thread writes close by.
    """
    e = Emitter("backward", ARGUMENTS)
    _Unit(e, kind, wanted, shared, summed).emit()
    return e


class _Unit:
    """All queries of some heads of one image, or a thread's share of them."""

    def __init__(self, e: Emitter, kind: Kind, wanted: Wanted, shared: bool, summed: bool) -> None:
        self.e, self.kind, self.wanted, self.shared, self.summed = e, kind, wanted, shared, summed
        self.size = BYTES[kind.compute]
        self.parts = [part for group in channels(kind) for part in group]
        self.levels = Levels(e, kind, e.arguments["levels"])
        self.slot = e.fetch_add(SLOTS, 1)
        own = e.arguments["scratch"] + self.slot * e.arguments["scratch_bytes"]
        self.scratch, self.rows = Scratch(kind, own), own + Scratch.bytes(kind)

    def emit(self) -> None:
        e, a, wanted = self.e, self.e.arguments, self.wanted
        with e.until_taken(TAKEN, a["units"]) as unit:
            share, group = unit % a["shares"], unit // a["shares"]
            b, self.first_head = group // a["groups"], group % a["groups"] * a["heads"]
            self.end_head = e.smaller(self.first_head + a["heads"], a["H"])
            first, last = a["Q"] * share // a["shares"], a["Q"] * (share + 1) // a["shares"]
            if wanted.value:
                self._begin(b, share, group)
            with e.loop(*((0, a["Q"]) if wanted.value else (first, last))) as i:
                q = e.to_int64(e.load(a["order"] + i * 4, "int32"))
                with e.loop(self.first_head, self.end_head) as head:
                    self._locate(Row(e, self.kind, self.levels, self.rows, b, q, head))
                with e.loop(self.first_head, self.end_head) as head:
                    row = Row(e, self.kind, self.levels, self.rows, b, q, head)
                    self._emit_row(row, (i >= first) & (i < last) if self.shared else None)
            if wanted.value and self.summed:
                self._take_over()

    # the pixels

    def _begin(self, b: Value, share: Value, group: Value) -> None:
        """Where this unit adds up grad_value, and which of its pixels are this thread's; they are filled with zeros."""
        e, kind, a, number = self.e, self.kind, self.e.arguments, self.levels.number
        self.grad_value = a["grad_value"] + (b * a["S"] * a["H"] + self.first_head) * (kind.D * BYTES[kind.value])
        self.sums = self.grad_value
        if self.summed:
            self.sums = a["sums"] + (group if self.shared else self.slot) * a["sums_unit"]
        with e.loop(0, kind.L) as level:
            rows, columns = number("rows", level), number("columns", level)
            for i in range(2):
                pixel = number("first", level) + rows * (share + i) // a["shares"] * columns
                e.store(pixel, self.scratch.bounds + level * 16 + 8 * i, "int64")
        for pixel, head in self._own_pixels():
            for part in self.parts:
                zeros = e.number(0.0, kind.compute, part.lanes)
                e.store(zeros, self._sums_of(head) + pixel * a["sums_s"] + part.first * self.size, kind.compute)

    def _take_over(self) -> None:
        """grad_value from the sums."""
        e, kind, a = self.e, self.kind, self.e.arguments
        size = BYTES[kind.value]
        for pixel, head in self._own_pixels():
            target = self.grad_value + (pixel * a["H"] + head - self.first_head) * (kind.D * size)
            for part in self.parts:
                sums = self._sums_of(head) + pixel * a["sums_s"] + part.first * self.size
                e.store_as(e.load(sums, kind.compute, part.lanes), target + part.first * size, kind.compute, kind.value)

    def _sums_of(self, head: Value) -> Value:
        """Address of the sums of a head's first pixel."""
        return self.sums + (head - self.first_head) * (self.kind.D * self.size)

    def _own_pixels(self) -> Iterator[tuple[Value, Value]]:
        """The number of each of this thread's pixels, and each head, for a ``for`` that runs to its end."""
        e = self.e
        with (
            e.loop(0, self.kind.L) as level,
            e.loop(*self._bounds(level)) as pixel,
            e.loop(self.first_head, self.end_head) as head,
        ):
            yield pixel, head

    def _bounds(self, level: Value) -> tuple[Value, Value]:
        address = self.scratch.bounds + level * 16
        return self.e.load(address, "int64"), self.e.load(address + 8, "int64")

    def _add(self, address: Value, part: Block, amount: Value) -> None:
        place = address + part.first * self.size
        self.e.store(self.e.load(place, self.kind.compute, part.lanes) + amount, place, self.kind.compute)

    # one query

    def _locate(self, row: Row) -> None:
        row.locate()
        for point, pixel in row.ahead():
            if self.wanted.of_queries:
                row.prefetch(point, pixel)
            if self.wanted.value:
                for address in self._sums_at(row, point, pixel):
                    self.e.prefetch(address, self.kind.D * self.size)

    def _sums_at(self, row: Row, point: Value, pixel: Value) -> list[Value]:
        """Addresses of the sums of a point's four pixels."""
        address = self._sums_of(row.head) + pixel * self.e.arguments["sums_s"]
        return self.levels.corners(address, point, sums=True)

    def _emit_row(self, row: Row, own: Value | None) -> None:
        """
        Args:
            own: whether the points' gradients are this thread's to compute; None if they always are.
        """
        e, kind, a = self.e, self.kind, self.e.arguments
        grad = a["grad_output"] + row.b * a["grad_output_b"] + row.q * a["grad_output_q"]
        grad = grad + row.head * (kind.D * BYTES[kind.value])
        doubtful = [not_finite(e, row.load(row.scratch.coefficients, block)) for block in blocks(kind)]
        for group in channels(kind):
            doubtful += [not_finite(e, [part]) for part in self._load_grad(grad, group)]
        # what is not finite must not reach pixels that the sample does not
        with e.either(e.either_bit(doubtful), likely=False) as (exactly, fast):
            with exactly:
                self._emit_exact(row, grad, pixels=self.wanted.value)
            with fast:
                if own is None:
                    self._emit_fast(row, grad, points=self.wanted.of_queries)
                else:
                    with e.either(own) as (mine, others):
                        with mine:
                            self._emit_fast(row, grad, points=self.wanted.of_queries)
                        with others:
                            self._emit_fast(row, grad, points=False)
        if self.wanted.of_queries:
            with nullcontext() if own is None else e.when(own):
                self._store_row(row)

    def _load_grad(self, grad: Value, group: list[Block]) -> list[Value]:
        kind, size = self.kind, BYTES[self.kind.value]
        return [self.e.load_as(grad + part.first * size, kind.value, kind.compute, part.lanes) for part in group]

    def _emit_fast(self, row: Row, grad: Value, *, points: bool) -> None:
        """Add to pixels if that is wanted; if ``points``, the gradients of x, y and weight of every point."""
        e, kind = self.e, self.kind
        if not (points or self.wanted.value):
            return
        for group in channels(kind):
            gradient = self._load_grad(grad, group)
            waiting: list[Value] = []  # products, not yet added up across their lanes
            for point in e.loop_over(kind.padded, AT_ONCE):
                pixel = row.pixel(point)
                if points:
                    waiting += self._products(row, point, pixel, group, gradient)
                while len(waiting) >= kind.lanes:
                    dots = e.sum_rows(waiting[: kind.lanes])
                    place = self.scratch.dots + (point * 4 + (4 - len(waiting))) * self.size
                    if group[0].first > 0:
                        dots = dots + e.load(place, kind.compute, kind.lanes)
                    e.store(dots, place, kind.compute)
                    waiting = waiting[kind.lanes :]
                if self.wanted.value:
                    self._scatter(row, point, pixel, group, gradient)
        if not points:
            return
        doubtful = []
        for block in blocks(kind):
            gradients = self._point_gradients(block, row.located(block))
            doubtful.append(not_finite(e, gradients))
            row.store(self.scratch.gradients, gradients, block)
        with e.when(e.either_bit(doubtful), likely=False):
            self._emit_exact(row, grad, pixels=False)

    def _products(self, row: Row, point: Value, pixel: Value, group: list[Block], gradient: list[Value]) -> list[Value]:
        """grad_output times each of the four pixels, in vectors whose lanes are to be added up."""
        e, lanes = self.e, self.kind.lanes
        products = []
        for address in row.pixels_of(point, pixel):
            product = e.number(0.0, self.kind.compute, lanes)
            for part, of_grad in zip(group, gradient, strict=True):
                product = product + e.widen(of_grad * row.channels(address, part), lanes, 0.0)
            products.append(product)
        return products

    def _scatter(self, row: Row, point: Value, pixel: Value, group: list[Block], gradient: list[Value]) -> None:
        """Add grad_output to the four pixels, each with its coefficient; to those that are this thread's."""
        e, kind = self.e, self.kind
        addresses = self._sums_at(row, point, pixel)
        low, high = self._bounds(point // kind.P) if self.shared else (pixel, pixel)
        for line in range(2):
            on_line = pixel + self.levels.number("columns", point // kind.P) * line if self.shared else pixel
            with e.when((on_line >= low) & (on_line < high)) if self.shared else nullcontext():
                for i in (2 * line, 2 * line + 1):
                    coefficient = e.load(row.scratch.coefficients[i] + point * self.size, kind.compute)
                    for part, of_grad in zip(group, gradient, strict=True):
                        self._add(addresses[i], part, coefficient * of_grad)

    def _point_gradients(self, block: Block, of: Located) -> tuple[Value, Value, Value]:
        """Gradients of pixel coordinates x, y and of the weight, from the dot products of the four pixels."""
        e, near = self.e, of.near
        dots = e.load(self.scratch.dots + 4 * self.size * block.first, self.kind.compute, 4 * block.lanes)
        dot = [e.pick(dots, range(i, 4 * block.lanes, 4)) for i in range(4)]

        def slope(distance: Value) -> Value:
            """Of the coefficient: it falls to the right of its pixel and rises to the left."""
            rising = e.select(distance >= -1.0, e.constant(1.0, distance), 0.0)
            rising = e.select(distance >= 0.0, -1.0, rising)
            return e.select(distance >= 1.0, 0.0, rising)

        has_right, has_lower = self.levels.of("has_right", block), self.levels.of("has_lower", block)
        on_upper = near.left * dot[0] + near.right * dot[1]
        on_lower = near.left * dot[2] + near.right * dot[3]
        upper_slope, lower_slope = slope(near.y), slope(near.y - 1.0) * has_lower
        left_slope, right_slope = slope(near.x), slope(near.x - 1.0) * has_right
        on_left = near.upper * dot[0] + near.lower * dot[2]
        on_right = near.upper * dot[1] + near.lower * dot[3]
        return (
            of.weight * (left_slope * on_left + right_slope * on_right),
            of.weight * (upper_slope * on_upper + lower_slope * on_lower),
            near.upper * on_upper + near.lower * on_lower,
        )

    def _emit_exact(self, row: Row, grad: Value, *, pixels: bool) -> None:
        """The same with every neighbour looked at by itself, for numbers that are not finite."""
        e, kind, size = self.e, self.kind, self.size
        gradient = self._load_grad(grad, self.parts)
        totals = [Variable(e, e.number(0.0, kind.compute)) for _ in range(3)]
        with e.loop(0, kind.LP) as point:
            x, y, weight = (e.load(column + point * size, kind.compute) for column in row.scratch.located)
            nan = e.is_nan(x) | e.is_nan(y)
            for total in totals:
                total.set(e.select(nan, float("nan"), e.number(0.0, kind.compute)))
            for corner in corners(e, kind, self.levels, point // kind.P, x, y):
                with e.when(corner.inside):
                    address = row.value + corner.pixel * e.arguments["value_s"]
                    dot = e.sum_of(
                        [g * row.channels(address, part) for part, g in zip(self.parts, gradient, strict=True)]
                    )
                    factors = (
                        corner.y * corner.slope_x * weight,
                        corner.x * corner.slope_y * weight,
                        corner.x * corner.y,
                    )
                    for total, factor in zip(totals, factors, strict=True):
                        total.set(total.get() + factor * dot)
                    if pixels:
                        low, high = self._bounds(point // kind.P)
                        with e.when((corner.pixel >= low) & (corner.pixel < high)):
                            address = self._sums_of(row.head) + corner.pixel * e.arguments["sums_s"]
                            for part, of_grad in zip(self.parts, gradient, strict=True):
                                self._add(address, part, corner.x * corner.y * weight * of_grad)
            for column, total in zip(self.scratch.gradients, totals, strict=True):
                e.store(total.get(), column + point * size, kind.compute)

    def _store_row(self, row: Row) -> None:
        """From the gradients of x, y and weight of every point to those of the inputs."""
        e, kind, wanted, a = self.e, self.kind, self.wanted, self.e.arguments
        place = ((row.b * a["Q"] + row.q) * a["H"] + row.head) * kind.LP
        gradients = [row.load(self.scratch.gradients, block) for block in blocks(kind)]
        if wanted.weights:
            of_weights = [weight for _, _, weight in gradients]
            if kind.fused:
                weights = [row.load(row.scratch.located[2:], block)[0] for block in blocks(kind)]
                products = [weight * g for weight, g in zip(weights, of_weights, strict=True)]
                mean = e.sum_of(products)
                of_weights = [product - weight * mean for weight, product in zip(weights, products, strict=True)]
            for block, numbers in zip(blocks(kind), of_weights, strict=True):
                address = a["grad_weights"] + (place + block.first) * BYTES[kind.weights]
                e.store_as(numbers, address, kind.compute, kind.weights)
        for block, (in_x, in_y, _) in zip(blocks(kind), gradients, strict=True):
            w, h = self.levels.of("w", block), self.levels.of("h", block)
            x, y = in_x * w, in_y * h  # of locations
            offset_x, offset_y = (in_x, in_y) if kind.coordinates == 2 else (x, y)
            if kind.coordinates == 4:
                scale = 0.5 / kind.P
                reference = row.reference(block)
                offset_x, offset_y = x * scale * reference[2], y * scale * reference[3]
            if wanted.points:
                order = [i // 2 + (i % 2) * block.lanes for i in range(2 * block.lanes)]
                address = a["grad_points"] + (place + block.first) * 2 * BYTES[kind.points]
                e.store_as(e.pick(offset_x, order, offset_y), address, kind.compute, kind.points)
            if wanted.references:
                columns = [x, y]
                if kind.coordinates == 4:
                    offsets = row.pairs(block)
                    columns += [x * scale * offsets[0], y * scale * offsets[1]]
                row.store(self._reference_columns(), columns, block)
        if wanted.references:
            self._store_references(place)

    def _reference_columns(self) -> list[Value]:
        """Each point's part of its reference point's gradient: where dot products were."""
        return [self.scratch.dots + self.size * self.kind.padded * c for c in range(self.kind.coordinates)]

    def _store_references(self, place: Value) -> None:
        """This head's part of the gradient of the reference points, added up over points."""
        e, kind, a = self.e, self.kind, self.e.arguments
        total = Variable(e, e.number(0.0, kind.compute))
        for c, column in enumerate(self._reference_columns()):
            with e.loop(0, kind.L) as level:
                total.set(e.number(0.0, kind.compute))
                with e.loop(level * kind.P, level * kind.P + kind.P) as point:
                    total.set(total.get() + e.load(column + point * self.size, kind.compute))
                row = a["grad_references"] + (place // kind.P + level) * (kind.coordinates * self.size)
                e.store(total.get(), row + c * self.size, kind.compute)
