"""Predicted times beside measured ones.

A row of kind ``prediction`` names a part of a pass: ``forward`` or ``backward`` of the fused function, held against the
operator's row, or a piece of a kernel's name, held against the profiled kernels. Rows are committed before the run.
"""

from collections.abc import Iterable
from pathlib import Path

from ..harness import records
from ..harness.records import Records, Row
from ..harness.tables import Line, aligned, number

FILE = records.RESULTS / "predictions.jsonl"


def text(measured: Records, file: Path = FILE) -> str | None:
    """A line for each prediction of something that was measured; None where there is none."""
    if not file.is_file():
        return None
    lines: list[Line] = [("case", "dtype", "backend", "part", "predicted us", "measured us", "measured / predicted")]
    for row in records.read(file).of("prediction"):
        found = _measured(row, measured)
        if found is not None:
            expected = f"{number(row['low_us'])} to {number(row['high_us'])}"
            ratio = found / ((row["low_us"] + row["high_us"]) / 2)
            lead = (row["case"], row["dtype"], row["backend"], row["part"])
            lines.append((*lead, expected, number(found), f"{ratio:.2f}"))
    return aligned(lines, 4) if len(lines) > 1 else None


def _measured(row: Row, measured: Records) -> float | None:
    """Microseconds that were measured of what a prediction names."""
    names = ("case", "dtype", "backend")
    if row["part"] in ("forward", "backward"):
        cell = {name: row[name] for name in names} | {
            "direction": row["part"],
            "function": "fused_ms_deform_attn",
            "locations": "grid",
        }
        return next((one["median_us"] for one in _like(measured.of("operator"), cell)), None)
    for one in _like(measured.of("kernels"), {name: row[name] for name in names}):
        lines = [line for line in one["kernels"] or () if row["part"].lower() in line["name"].lower()]
        if lines:
            return sum(line["launches"] * line["median_us"] for line in lines)
    return None


def _like(rows: Iterable[Row], cell: Row) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in cell.items())]
