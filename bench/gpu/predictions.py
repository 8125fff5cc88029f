"""Predicted times beside measured ones.

A row of kind ``prediction`` names a part of a pass: ``forward`` or ``backward`` of the fused function, held against the
operator's row, or a piece of a kernel's name, held against the profiled kernels. Rows are committed before the run.
"""

from pathlib import Path

from ..harness import records
from ..harness.records import Records, Row
from ..harness.tables import Line, aligned, number

FILE = records.RESULTS / "predictions.jsonl"
_NAMES = ("case", "dtype", "backend")
_OPERATOR = {"function": "fused_ms_deform_attn", "locations": "grid"}


def text(measured: Records, file: Path = FILE) -> str | None:
    """A line for each prediction of something that was measured; None where there is none."""
    lines: list[Line] = [(*_NAMES, "part", "predicted us", "measured us", "measured / predicted")]
    for row in records.read(file).of("prediction") if file.is_file() else ():
        found = _measured(row, measured)
        if found is not None:
            expected = f"{number(row['low_us'])} to {number(row['high_us'])}"
            ratio = found / ((row["low_us"] + row["high_us"]) / 2)
            lines.append((*(row[name] for name in (*_NAMES, "part")), expected, number(found), f"{ratio:.2f}"))
    return aligned(lines, 4) if len(lines) > 1 else None


def _measured(row: Row, measured: Records) -> float | None:
    """Microseconds that were measured of what a prediction names."""
    cell, part = {name: row[name] for name in _NAMES}, row["part"]
    if part in ("forward", "backward"):
        cell |= {**_OPERATOR, "direction": part}
        return next((one["median_us"] for one in measured.of("operator") if cell.items() <= one.items()), None)
    for one in measured.of("kernels"):
        lines = [line for line in one["kernels"] or () if part.lower() in line["name"].lower()]
        if lines and cell.items() <= one.items():
            return sum(line["launches"] * line["median_us"] for line in lines)
    return None
