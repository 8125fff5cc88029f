"""What ``msdeform bench instructions`` recorded: counts of executed kernels, by call, before and after.

A row is one kernel of one call (`forward fused`, `backward plain, sorted`) of an implementation; its counts are for one
(query, head). Rows of a call from one run of the command belong together: a call whose kernels were renamed, joined or
split has only the new ones.
"""

from typing import Any, Literal, get_args

from ..harness.records import Records, Row
from ..harness.tables import Line, number
from ..operator.cases import Case

COUNTS = {
    "warp_instructions": "warp instructions",
    "wavefronts": "wavefronts",
    "sectors": "sectors",
    "reductions": "reductions",
    "shared_conflicts": "conflicts",
}
"""fields of a row, and what a table calls them"""
CALL = ("implementation", "call", "dtype", "case", "arch")
CountedDtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[CountedDtype, ...] = get_args(CountedDtype)
ENCODER, DECODER = "encoder-400x533", "decoder-400x533"

Run = list[Row]
"""of one call: its kernels in the order of their launches"""


def runs(found: Records) -> dict[tuple[Any, ...], list[Run]]:
    """The runs of each call that is recorded, the oldest first; calls in the order in which they first came."""
    calls: dict[tuple[Any, ...], dict[str, Run]] = {}
    for row in found.rows:
        if row["kind"] == "executed":
            call = calls.setdefault(tuple(row[name] for name in CALL), {})
            call.setdefault(row["date"], []).append(row)
    return {call: list(by_date.values()) for call, by_date in calls.items()}


def latest(found: Records) -> dict[tuple[Any, ...], Run]:
    """The last run of each call."""
    return {call: recorded[-1] for call, recorded in runs(found).items()}


def issued(row: Row) -> float:
    """About how many machine instructions a kernel's warps issue for a (query, head).

    Those of PTX that were executed, times how many machine instructions the assembler made of one in the whole kernel:
    an average, as nobody executed the machine code.
    """
    return row["warp_instructions"] * row["sass"] / row["ptx"]


def issued_by(
    found: Records, backend: str, direction: str, dtype: str, fused: bool, case: Case, arch: int
) -> float | None:
    """About how many machine instructions one of our backends issues for a (query, head) of a case; None where that was
    not counted: other heads, levels, points or architectures, another's implementation, a call of several backends."""
    if direction == "both":
        parts = [issued_by(found, backend, one, dtype, fused, case, arch) for one in ("forward", "backward")]
        return None if None in parts else sum(part for part in parts if part is not None)
    if (case.L, case.P, case.D) != (4, 4, 32):
        return None
    name, _, how = backend.partition("-")
    call = f"{direction} {'fused' if fused else 'plain'}"
    if name == "triton" and how and direction == "backward":  # asked for in ways of its own
        call += ", tiles" if how == "tiles" else ", sorted"
    run = latest(found).get((name, call, dtype, ENCODER if case.Q is None else DECODER, arch))
    return None if run is None or name not in ("triton", "cuda") else sum(issued(row) for row in run)


def table(found: Records, case: str) -> list[Line]:
    """A head, and a line for each kernel with its counts in each dtype; the first column is whose it is."""
    lines: list[Line] = [("implementation", "call", "kernel", *COUNTS.values())]
    kernels: dict[tuple[str, ...], dict[str, Row]] = {}
    for key, run in latest(found).items():
        named = dict(zip(CALL, key, strict=True))
        if (named["case"], named["arch"]) == (case, 90):
            for row in run:
                kernels.setdefault((row["implementation"], row["call"], row["kernel"]), {})[row["dtype"]] = row
    whose = list(dict.fromkeys(name for name, _, _ in kernels))
    for (name, call, kernel), by_dtype in sorted(kernels.items(), key=lambda pair: whose.index(pair[0][0])):
        # a template's name says more than fits
        short = kernel.partition("_kernel")[0]
        cells = []
        for field in COUNTS:  # a count in each dtype, `198 / 203 / 203`
            texts = [number(by_dtype[dtype][field]) if dtype in by_dtype else "-" for dtype in DTYPES]
            cells.append(" / ".join(texts) if any(row[field] for row in by_dtype.values()) else "0")
        lines.append((name, call, short, *cells))
    return lines


def pairs(found: Records, one: str, other: str) -> list[tuple[str, Row, Row]]:
    """Calls of one kernel that two implementations have, in the encoder's case: what it is, and the two rows."""
    last = latest(found)
    both = []
    for call, run in last.items():
        theirs = last.get((other, *call[1:]), [])
        if call[0] == one and call[3] == ENCODER and len(run) == len(theirs) == 1:
            both.append((f"{call[1]}, {call[2]}", run[0], theirs[0]))
    return both


def before_and_after(found: Records, case: str) -> list[Line]:
    """A head, and a line for each of our kernels whose counts in float32 changed between the first run and the last."""
    lines: list[Line] = [("call", "kernel", *COUNTS.values())]
    for call, recorded in runs(found).items():
        named = dict(zip(CALL, call, strict=True))
        if (named["implementation"], named["dtype"], named["case"], named["arch"]) != ("triton", "float32", case, 90):
            continue
        first, last = recorded[0], recorded[-1]
        if len(first) != len(last):  # no kernel is another's successor
            first, last = (
                [{"kernel": "all", **{name: sum(row[name] for row in run) for name in COUNTS}}] for run in (first, last)
            )
        for before, after in zip(first, last, strict=True):
            if any(before[name] != after[name] for name in COUNTS):
                changes = (f"{number(before[name])} to {number(after[name])}" for name in COUNTS)
                lines.append((named["call"], after["kernel"], *changes))
    return lines
