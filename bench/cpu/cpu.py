"""``msdeform bench cpu``: the operator's implementations on a CPU, all in turn, with one thread and with more.

    msdeform bench cpu --out bench/results                             # everything that can be imported here
    msdeform bench cpu --cases odd --backends cpu openvino --threads 1 2

A case, a dtype and a function are a cell, which has a process of its own (:mod:`.cpu_worker`). An implementation that
crashes or hangs there is left out, and the cell begins again without it. Cells that are recorded, of the same code on
the same machine, are not measured again.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ...kernels.diagnostics.options import BACKENDS
from ..harness import records
from ..harness.isolate import ChildFailed, answers
from ..harness.measure import Ratio, Timing
from ..harness.provenance import code, provenance
from ..harness.records import Row
from ..harness.tables import DIFFERS, HAS_NONE, Line, aligned, number
from ..operator import cases, implementations
from ..operator.runner import START_LIMIT, Book, command_line
from ..options import CPU_PEERS, CpuOptions
from .worker import DIRECTIONS, OURS

CODE = ("bench/cpu/worker.py",)
MAIN = "fused_ms_deform_attn"
SHORT = ("encoder-800x1066-b1", "decoder-800x1066")


class Cell(NamedTuple):
    """What one process measures."""

    case: str
    dtype: str
    function: str
    threads: tuple[int, ...]
    backends: tuple[str, ...]

    def failed(self, backends: Sequence[str], failure: str) -> list[Row]:
        """Rows without numbers."""
        names = ("error", "bound", "ns_a_point", "baseline", "composed", "limits", "shape", "points")
        empty = dict.fromkeys((*names, *Timing.__dataclass_fields__, *Ratio.__dataclass_fields__))
        lead = {"kind": "cpu", "case": self.case, "dtype": self.dtype, "function": self.function}
        return [
            {**lead, **empty, "direction": direction, "threads": count, "backend": name, "failure": failure}
            | {"ours": name in BACKENDS}
            for name in backends
            for count in self.threads
            for direction in DIRECTIONS
        ]


def run(options: CpuOptions) -> int:
    """``msdeform bench cpu``; returns 1 if one of our own backends failed its check."""
    source = provenance(torch.device("cpu"), command_line("msdeform bench cpu", options))
    book = Book(options.out, {**source, "code": code(*CODE)}, again=options.again)
    cells = plan(options)
    absent = {name: implementations.absent(name, torch.device("cpu")) for cell in cells for name in cell.backends}
    missing = {name: reason for name, reason in absent.items() if reason is not None}
    with _usual_waiting():
        for cell in cells:
            keys = [records.key(row) for row in cell.failed([one for one in cell.backends if one not in missing], "")]
            if book.has(*keys):
                book.already += len(keys)
                continue
            print(f"{cell.case}, {cell.dtype}, {cell.function}", file=sys.stderr, flush=True)
            for row in measured(cell, options, missing):
                book.add(row)
    for name, reason in missing.items():
        book.add({"kind": "missing", "backend": name, "reason": reason})
    book.report()
    rows = [row for row in book.rows if row["kind"] == "cpu"]
    print(aligned(all_lines(rows), 6))
    return 1 if any(row["ours"] and row["failure"] is not None for row in rows) else 0


def plan(options: CpuOptions) -> list[Cell]:
    """The cells of a command, in order."""
    threads = tuple(dict.fromkeys(options.threads or (1, torch.get_num_threads())))
    backends = options.backends or CPU_PEERS
    cells = [
        Cell(case, dtype, function, threads, backends)
        for case in options.cases or cases.ON_A_CPU
        for dtype in options.dtypes
        for function in options.functions
    ]
    if not options.cases and not options.backends:
        cells += [
            Cell(case, "float32", MAIN, threads, (OURS,))
            for case in cases.AREAS
            if case not in cases.ON_A_CPU and "float32" in options.dtypes and MAIN in options.functions
        ]
    return cells


def measured(cell: Cell, options: CpuOptions, missing: dict[str, str]) -> list[Row]:
    """The rows of a cell, by as many processes as it takes; `missing` gets what cannot be measured here, and why."""
    failed: dict[str, str] = {}
    rows: list[Row] = []
    while left := [name for name in cell.backends if name not in failed and name not in missing]:
        request = {**cell._asdict(), "backends": left, "seconds": options.seconds, "rounds": options.rounds}
        rows, last = [], None
        try:
            for answer in answers("msdeform.bench.cpu.worker", request, start_limit=START_LIMIT, limit=options.limit):
                if "missing" in answer:
                    missing[answer["missing"]] = answer["reason"]
                elif "row" in answer:
                    rows.append(answer["row"])
                last = answer.get("begin", last)
        except ChildFailed as error:
            if last is None:  # before any implementation was looked at
                return cell.failed(left, str(error))
            failed[last] = str(error)
            rows = []
        else:
            break
    return rows + [row for name, failure in failed.items() for row in cell.failed([name], failure)]


@contextlib.contextmanager
def _usual_waiting() -> Iterator[None]:
    """Processes started meanwhile wait in OpenMP as PyTorch's users' do: the command line asks for another way, which
    is better for a busy machine and slower for calls of few milliseconds."""
    asked = os.environ.pop("OMP_WAIT_POLICY", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["OMP_WAIT_POLICY"] = asked


def _cells(rows: Sequence[Row], *names: str) -> dict[tuple[object, ...], list[Row]]:
    """Rows that agree in these fields, in the order in which they first came."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _said(row: Row | None) -> str:
    """Milliseconds, or in a word why there are none."""
    if row is None:
        return "not measured"
    if row["median_us"] is not None:
        return number(row["median_us"], 1e3) + (" (noisy)" if row["noisy"] else "")
    if row["failure"] == HAS_NONE:
        return "has none"
    differs = row["failure"].startswith(DIFFERS)
    return "failed" if not differs else "wrong" if row["ours"] else "differs"


def _times(row: Row | None) -> str:
    """How many times as long as ours, or why that is not known."""
    return _said(row) if row is None or row["median_us"] is None else f"{number(row['ratio'])}x"


def all_lines(rows: Sequence[Row]) -> list[Line]:
    """Every row, after the head."""
    names = ("case", "dtype", "function", "threads", "direction", "backend")
    lines: list[Line] = [(*names, "ms", "p20-p80", "rounds", "ns a point", "times as long as ours")]
    for row in rows:
        lead = tuple(str(row[name]) for name in names)
        if row["median_us"] is None:
            lines.append((*lead, _said(row), "", "", "", row["failure"].split(":")[0]))
            continue
        spread = f"{number(row['p20_us'], 1e3)}-{number(row['p80_us'], 1e3)}"
        interval = "-"
        if row["ratio"] is not None:
            interval = f"{number(row['ratio'])}x ({number(row['ratio_low'])}-{number(row['ratio_high'])})"
        lines.append((*lead, _said(row), spread, str(row["calls"]), number(row["ns_a_point"]), interval))
    return lines


def speed_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each case, dtype and number of threads: time of ours, nanoseconds a point, and how many times as long
    the fastest of the others and the reference take, forward and forward with backward."""
    columns = ("ms", "ns a point", "fastest other", "reference")
    titles = [f"{title}: {column}" for title in ("forward", "forward + backward") for column in columns]
    lines: list[Line] = [("case", "dtype", "threads", *titles)]
    for cell, mine in _cells(rows, "case", "dtype", "threads").items():
        line = [str(part) for part in cell]
        for direction in DIRECTIONS:
            ours, *others = _compared(mine, direction)
            point = "-" if ours is None else number(ours["ns_a_point"])
            line += [_said(ours), point, *others]
        lines.append(line)
    return lines


def short_table(rows: Sequence[Row]) -> list[Line]:
    """The same in short: an encoder and a decoder in float32, with the most threads."""
    lines: list[Line] = [
        ("case", "threads", "forward ms", "fastest other", "reference", "with backward", "fastest other", "reference")
    ]
    for case in SHORT:
        found = [row for row in rows if row["case"] == case and row["dtype"] == "float32"]
        if found:
            threads = max(row["threads"] for row in found)
            mine = [row for row in found if row["threads"] == threads]
            cells = [_compared(mine, direction) for direction in DIRECTIONS]
            lines.append((case, str(threads), *(part for ours, *others in cells for part in (_said(ours), *others))))
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


def peers_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each case, dtype, number of threads and direction, and a column for each implementation but ours: how
    many times as long as ours it takes."""
    names = [name for name in dict.fromkeys(row["backend"] for row in rows) if name != OURS]
    lines: list[Line] = [("case", "dtype", "threads", "direction", *names)]
    for cell, mine in _cells(rows, "case", "dtype", "threads", "direction").items():
        found = {row["backend"]: row for row in mine}
        direction = "forward" if cell[3] == "forward" else "forward + backward"
        lines.append((*map(str, cell[:3]), direction, *(_times(found.get(name)) for name in names)))
    return lines


def area_table(rows: Sequence[Row]) -> list[Line]:
    """Nanoseconds a point of ours in encoders of several image areas, by threads, and what more threads gain."""
    ours = [row for row in rows if row["backend"] == OURS and row["dtype"] == "float32" and row["case"] in cases.AREAS]
    counts = sorted({row["threads"] for row in ours})
    directions = list(zip(DIRECTIONS, ("forward", "forward + backward"), strict=True))
    head = [f"{title}: {_plural(count)}" for _, title in directions for count in counts]
    gains = [f"{title}: {_plural(counts[-1])} over {counts[0]}" for _, title in directions] if len(counts) > 1 else []
    lines: list[Line] = [("case", "pixels of value", "points", *head, *gains)]
    for case in cases.AREAS:
        found = {(row["direction"], row["threads"]): row for row in ours if row["case"] == case}
        if not found:
            continue
        one = next(iter(found.values()))
        cells = [_point(found.get((direction, count))) for direction, _ in directions for count in counts]
        for direction, _ in directions if gains else ():
            first, last = (found.get((direction, counts[i])) for i in (0, -1))
            known = first is not None and last is not None and first["ns_a_point"] and last["ns_a_point"]
            cells.append(f"{first['ns_a_point'] / last['ns_a_point']:.2f}x" if known and first and last else "-")
        lines.append((case, str(one["shape"]["S"]) if one["shape"] else "-", str(one["points"] or "-"), *cells))
    return lines


def _plural(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _point(row: Row | None) -> str:
    return _said(row) if row is None or row["ns_a_point"] is None else number(row["ns_a_point"])
