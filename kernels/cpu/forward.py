"""Forward: output[b, q, h, :] = sum over l, p of weight * bilinear(value[b, level l, h, :], location).

Work: units of neighbouring queries of one image, taken by whichever thread is free; all heads of a query one after
another, as its offsets, logits and output lie in memory.
Reads: per point two coordinates and a weight (or offset and logit), and four rows of D channels. Writes: D channels.
Bound: loads. A point of 32 float32 channels takes 8 loads of 64 bytes and as many multiply-adds; coordinates, softmax
and coefficients of all points of a query are computed side by side in vectors, and handed on through scratch memory: of
all its heads first, so that pixels of large levels are on their way from main memory before the first is read.
"""

from .emit import BYTES, Emitter, Value, Variable
from .points import AT_ONCE, COMMON_ARGUMENTS, SLOTS, TAKEN, Block, Kind, Levels, Row, channels, corners, not_finite

ARGUMENTS = (
    *COMMON_ARGUMENTS,
    *("output", "H", "Q", "unit_queries", "image_units"),
)


def emit(kind: Kind) -> Emitter:
    """The function of one kind of call; see `ARGUMENTS`."""
    e = Emitter("forward", ARGUMENTS)
    a = e.arguments
    levels = Levels(e, kind, a["levels"])
    scratch = a["scratch"] + e.fetch_add(SLOTS, 1) * a["scratch_bytes"]
    with e.until_taken(TAKEN, a["units"]) as unit:
        b, place = unit // a["image_units"], unit % a["image_units"]
        first = place * a["unit_queries"]
        last = e.smaller(first + a["unit_queries"], a["Q"])
        with e.loop(first, last) as i:
            q = e.to_int64(e.load(a["order"] + i * 4, "int32"))
            with e.loop(0, a["H"]) as head:
                row = Row(e, kind, levels, scratch, b, q, head)
                row.locate()
                for point, pixel in row.ahead():
                    row.prefetch(point, pixel)
            with e.loop(0, a["H"]) as head:
                _emit_row(e, kind, levels, Row(e, kind, levels, scratch, b, q, head))
    return e


def _emit_row(e: Emitter, kind: Kind, levels: Levels, row: Row) -> None:
    a = e.arguments
    output = a["output"] + ((row.b * a["Q"] + row.q) * a["H"] + row.head) * (kind.D * BYTES[kind.value])
    broken = []
    for group in channels(kind):
        sums = _sum(e, kind, row, group)
        _store(e, kind, output, group, sums)
        broken += [not_finite(e, [total]) for total in sums]
    with e.when(e.either_bit(broken), likely=False):
        _emit_exact(e, kind, levels, row, output)


def _sum(e: Emitter, kind: Kind, row: Row, group: list[Block]) -> list[Value]:
    """The weighted sum over points of some channels."""
    size = BYTES[kind.compute]
    # an addition waits for the one before it: several sums side by side, as far as there are registers
    chains = next(n for n in (4, 2, 1) if n * len(group) <= kind.registers // 2)
    sums = [[Variable(e, e.number(0.0, kind.compute, part.lanes)) for _ in range(chains)] for part in group]
    for point in e.loop_over(kind.LP, AT_ONCE):
        addresses = row.pixels_of(point, row.pixel(point))
        coefficients = [e.load(address + point * size, kind.compute) for address in row.scratch.coefficients]
        for part, totals in zip(group, sums, strict=True):
            for i, (coefficient, address) in enumerate(zip(coefficients, addresses, strict=True)):
                total = totals[i % chains]
                total.set(total.get() + coefficient * row.channels(address, part))
    return [e.add_up([total.get() for total in totals]) for totals in sums]


def _emit_exact(e: Emitter, kind: Kind, levels: Levels, row: Row, output: Value) -> None:
    """The same with every neighbour looked at by itself, for numbers that are not finite."""
    size = BYTES[kind.compute]
    for group in channels(kind):
        sums = [Variable(e, e.number(0.0, kind.compute, part.lanes)) for part in group]
        samples = [Variable(e, e.number(0.0, kind.compute, part.lanes)) for part in group]
        with e.loop(0, kind.LP) as point:
            x, y, weight = (e.load(address + point * size, kind.compute) for address in row.scratch.located)
            nan = e.is_nan(x) | e.is_nan(y)
            for part, sample in zip(group, samples, strict=True):
                sample.set(e.select(nan, float("nan"), e.number(0.0, kind.compute, part.lanes)))
            for corner in corners(e, kind, levels, point // kind.P, x, y):
                with e.when(corner.inside):
                    address = row.value + corner.pixel * e.arguments["value_s"]
                    for part, sample in zip(group, samples, strict=True):
                        sample.set(sample.get() + corner.x * corner.y * row.channels(address, part))
            for total, sample in zip(sums, samples, strict=True):
                total.set(total.get() + weight * sample.get())
        _store(e, kind, output, group, [total.get() for total in sums])


def _store(e: Emitter, kind: Kind, output: Value, group: list[Block], sums: list[Value]) -> None:
    for part, total in zip(group, sums, strict=True):
        e.store_as(total, output + part.first * BYTES[kind.value], kind.compute, kind.value)
