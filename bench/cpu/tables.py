"""Tables of what the commands for a CPU measured: the operator's implementations, first calls, commands' start."""

from collections.abc import Sequence

from ..harness.records import Row
from ..harness.tables import HAS_NONE, Column, Line, failed, fields, lines_of, number, numbers
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


def _cells(rows: Sequence[Row], *names: str) -> dict[tuple[object, ...], list[Row]]:
    """Rows that agree in these fields, in the order in which they first came."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _milliseconds(row: Row | None) -> str:
    """A median, or in a word why there is none."""
    if row is None:
        return "not measured"
    if row["median_us"] is not None:
        return number(row["median_us"], 1e3) + (" (noisy)" if row["noisy"] else "")
    return "has none" if row["failure"] == HAS_NONE else failed(row)


def _times(row: Row | None) -> str:
    """How many times as long as ours, or why that is not known."""
    return _milliseconds(row) if row is None or row["median_us"] is None else f"{number(row['ratio'])}x"


def _spread(row: Row) -> str:
    return "" if row["median_us"] is None else f"{number(row['p20_us'], 1e3)}-{number(row['p80_us'], 1e3)}"


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
        "ms": _milliseconds,
        "p20-p80": _spread,
        "rounds": lambda row: str(row["calls"] or ""),
        "ns a point": lambda row: "" if row["median_us"] is None else number(row["ns_a_point"]),
        "times as long as ours": _interval,
    }
    return lines_of(rows, columns)


def speed_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each case, dtype and number of threads: time of ours, nanoseconds a point, and how many times as long
    the fastest of the others and the reference take, forward and forward with backward."""
    columns = ("ms", "ns a point", "fastest other", "reference")
    titles = [f"{title}: {column}" for title in _TITLES.values() for column in columns]
    lines: list[Line] = [("case", "dtype", "threads", *titles)]
    for cell, mine in _cells(rows, "case", "dtype", "threads").items():
        line = [str(part) for part in cell]
        for direction in DIRECTIONS:
            ours, *others = _compared(mine, direction)
            point = "-" if ours is None else number(ours["ns_a_point"])
            line += [_milliseconds(ours), point, *others]
        lines.append(line)
    return lines


def short_table(rows: Sequence[Row]) -> list[Line]:
    """The same in short: an encoder and a decoder in float32, with the most threads."""
    others = ("fastest other", "reference")
    lines: list[Line] = [("case", "threads", "forward ms", *others, "with backward", *others)]
    for case in SHORT:
        found = [row for row in rows if row["case"] == case and row["dtype"] == "float32"]
        if found:
            threads = max(row["threads"] for row in found)
            mine = [row for row in found if row["threads"] == threads]
            cells = [_compared(mine, direction) for direction in DIRECTIONS]
            parts = (part for ours, *rest in cells for part in (_milliseconds(ours), *rest))
            lines.append((case, str(threads), *parts))
    return lines


def _compared(rows: Sequence[Row], direction: str) -> tuple[Row | None, str, str]:
    """Ours in one direction, and how many times as long the fastest other and the reference take."""
    found = {row["backend"]: row for row in rows if row["direction"] == direction}
    return found.get(OURS), fastest_other(list(found.values())), _times(found.get("reference"))


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
    for cell, mine in _cells(rows, "case", "dtype", "threads", "direction").items():
        found = {row["backend"]: row for row in mine}
        lines.append((*map(str, cell[:3]), direction_title(mine[0]), *(_times(found.get(name)) for name in names)))
    return lines


def area_table(rows: Sequence[Row]) -> list[Line]:
    """Nanoseconds a point of ours in encoders of several image areas, by threads, and what more threads gain."""
    ours = [row for row in rows if row["backend"] == OURS and row["dtype"] == "float32" and row["case"] in cases.AREAS]
    counts = sorted({row["threads"] for row in ours})
    head = [f"{title}: {_threads(count)}" for title in _TITLES.values() for count in counts]
    if len(counts) > 1:
        head += [f"{title}: {_threads(counts[-1])} over {counts[0]}" for title in _TITLES.values()]
    lines: list[Line] = [("case", "pixels of value", "points", *head)]
    for case in cases.AREAS:
        found = {(row["direction"], row["threads"]): row for row in ours if row["case"] == case}
        if not found:
            continue
        one = next(iter(found.values()))
        cells = [_point(found.get((direction, count))) for direction in DIRECTIONS for count in counts]
        for direction in DIRECTIONS if len(counts) > 1 else ():
            first, last = ((found.get((direction, counts[i])) or {}).get("ns_a_point") for i in (0, -1))
            cells.append(f"{first / last:.2f}x" if first and last else "-")
        lines.append((case, str(one["shape"]["S"]) if one["shape"] else "-", str(one["points"] or "-"), *cells))
    return lines


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _point(row: Row | None) -> str:
    return _milliseconds(row) if row is None or row["ns_a_point"] is None else number(row["ns_a_point"])


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
    for (program,), mine in _cells(rows, "program").items():
        found = {row["way"]: number(row["cpu_ms"]) if row["failure"] is None else "failed" for row in mine}
        lines.append((str(program), *(found.get(way, "-") for way in WAYS)))
    return lines
