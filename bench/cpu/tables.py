"""Tables of what the commands for a CPU measured: the operator's implementations, first calls, commands' start."""

from collections.abc import Sequence
from itertools import product

from ...common.text import counted
from ..harness.records import Row
from ..harness.tables import Column, Line, fields, grouped, lines_of, number, numbers, spread, time
from ..operator import cases

OURS = "cpu"
MAIN = "fused_ms_deform_attn"
SHORT = ("encoder-800x1066-b1", "decoder-800x1066")
DIRECTIONS = ("forward", "both")
"""of the calls that are timed"""
WAYS = ("--help", "typo", "out of range")
"""to start a command that does nothing then"""
_TITLES = {"forward": "forward", "both": "forward + backward"}


def direction_title(row: Row) -> str:
    return _TITLES[row["direction"]]


def _times(row: Row | None) -> str:
    """How many times as long as ours, or why that is not known."""
    return time(row) if row is None or row["median_us"] is None else f"{number(row['ratio'])}x"


def _interval(row: Row) -> str:
    if row["median_us"] is None:
        return row["failure"].split(":")[0]
    if row["ratio"] is None:
        return "-"
    return f"{number(row['ratio'])}x ({number(row['ratio_low'])}-{number(row['ratio_high'])})"


def all_rows(rows: Sequence[Row]) -> list[Line]:
    """Every row, after the head."""
    columns: dict[str, Column] = {
        **fields("case", "dtype", "function", "threads", "direction", "backend"),
        "ms": lambda row: time(row, 1e3),
        "p20-p80": lambda row: spread(row, 1e3),
        "rounds": lambda row: str(row["calls"] or ""),
        "ns a point": numbers("ns_a_point"),
        "times as long as ours": _interval,
    }
    return lines_of(rows, columns)


def speed_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each case, dtype and number of threads: time of ours, nanoseconds a point, and how many times as long
    the fastest of the others and the reference take, forward and forward with backward."""
    columns = ("ms", "ns a point", "fastest other", "reference")
    titles = [f"{title}: {column}" for title in _TITLES.values() for column in columns]
    lines: list[Line] = [("case", "dtype", "threads", *titles)]
    for cell, mine in grouped(rows, "case", "dtype", "threads").items():
        compared = (part for direction in DIRECTIONS for part in _compared(mine, direction))
        lines.append([*map(str, cell), *compared])
    return lines


def short_table(rows: Sequence[Row]) -> list[Line]:
    """The same in short: an encoder and a decoder in float32, with the most threads."""
    others = ("fastest other", "reference")
    lines: list[Line] = [("case", "threads", "forward ms", *others, "with backward", *others)]
    for case in SHORT:
        found = grouped((row for row in rows if row["case"] == case and row["dtype"] == "float32"), "threads")
        if found:
            ((threads,), mine) = max(found.items())
            parts = (part for one in DIRECTIONS for i, part in enumerate(_compared(mine, one)) if i != 1)
            lines.append((case, str(threads), *parts))
    return lines


def _compared(rows: Sequence[Row], direction: str) -> tuple[str, ...]:
    """Ours in one direction, in milliseconds and nanoseconds a point, and how many times as long the fastest other and
    the reference take."""
    found = {row["backend"]: row for row in rows if row["direction"] == direction}
    ours = found.get(OURS)
    point = "-" if ours is None else number(ours["ns_a_point"])
    return time(ours, 1e3), point, fastest_other(list(found.values())), _times(found.get("reference"))


def fastest_other(rows: Sequence[Row]) -> str:
    """How many times as long as ours the fastest implementation of others takes, and its name."""
    timed = [row for row in rows if not row["ours"] and row["ratio"] is not None]
    if not timed:
        return "-"
    best = min(timed, key=lambda row: row["ratio"])
    return f"{number(best['ratio'])}x ({best['backend']})"


def others_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each case, dtype, number of threads and direction, and a column for each implementation but ours: how
    many times as long as ours it takes."""
    names = [name for name in dict.fromkeys(row["backend"] for row in rows) if name != OURS]
    lines: list[Line] = [("case", "dtype", "threads", "direction", *names)]
    for cell, mine in grouped(rows, "case", "dtype", "threads", "direction").items():
        found = {row["backend"]: row for row in mine}
        lines.append((*map(str, cell[:3]), direction_title(mine[0]), *(_times(found.get(name)) for name in names)))
    return lines


def area_table(rows: Sequence[Row]) -> list[Line]:
    """Nanoseconds a point of ours in encoders of several image areas, by threads, and what more threads gain."""
    ours = [row for row in rows if row["backend"] == OURS and row["dtype"] == "float32" and row["case"] in cases.AREAS]
    counts = sorted({row["threads"] for row in ours})
    first, last = (counts[0], counts[-1]) if counts else (1, 1)
    pairs = list(product(_TITLES, counts))
    head = [f"{_TITLES[direction]}: {counted(count, 'thread')}" for direction, count in pairs]
    gained = list(_TITLES) if len(counts) > 1 else []
    head += [f"{_TITLES[direction]}: {counted(last, 'thread')} over {first}" for direction in gained]
    lines: list[Line] = [("case", "pixels of value", "points", *head)]
    for (case,), mine in sorted(grouped(ours, "case").items(), key=lambda item: cases.AREAS.index(item[0][0])):
        found = {(row["direction"], row["threads"]): row for row in mine}
        points = {key: row["ns_a_point"] for key, row in found.items()}
        cells = [number(points[key]) if points.get(key) else time(found.get(key)) for key in pairs]
        for direction in gained:
            one, more = points.get((direction, first)), points.get((direction, last))
            cells.append(f"{one / more:.2f}x" if one and more else "-")
        pixels = str(mine[0]["shape"]["S"]) if mine[0]["shape"] else "-"
        lines.append((case, pixels, str(mine[0]["points"] or "-"), *cells))
    return lines


def first_call_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each backend, dtype and direction, after the head."""
    columns: dict[str, Column] = {
        **fields("backend", "dtype"),
        "direction": direction_title,
        "case": "case",
        "import torch": numbers("import_torch_ms"),
        "import msdeform": numbers("import_ms"),
        "first call": numbers("first_ms"),
        "second call": numbers("second_ms"),
    }
    return lines_of(rows, columns)


def startup_table(rows: Sequence[Row]) -> list[Line]:
    """A head, and a line for each command with its milliseconds."""
    lines: list[Line] = [("command", *WAYS)]
    for (program,), mine in grouped(rows, "program").items():
        found = {row["way"]: number(row["cpu_ms"]) if row["failure"] is None else "failed" for row in mine}
        lines.append((str(program), *(found.get(way, "-") for way in WAYS)))
    return lines
