"""Plots of recorded rows: how much faster than the baseline, and how near to what the device could do.

A plot carries the digest of what it shows, so that a test can tell without drawing whether it is up to date.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

from ..harness.records import Row
from ..harness.tables import CELL

_COLOURS = (
    *("#2a6f97", "#e07a5f", "#81b29a", "#6d597a", "#f2cc8f"),
    *("#3d405b", "#b56576", "#118ab2", "#8d99ae", "#577590"),
)
# fields that a plot shows
SPEEDUP = ("backend", "ratio", "ratio_low", "ratio_high", *CELL)
ROOFLINE = ("backend", "median_us", "traffic_floor_us", "issue_floor_us", *CELL)


def digest(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Of what a plot of rows shows."""
    return hashlib.sha256(json.dumps([[row[name] for name in names] for row in rows]).encode()).hexdigest()[:16]


def speedups(rows: Sequence[Row]) -> list[Row]:
    """Rows that a plot of ratios takes: measured in turn with the baseline, forward or backward."""
    return [row for row in rows if row["ratio"] is not None and row["direction"] != "both"]


def roofs(rows: Sequence[Row]) -> list[Row]:
    """Rows that a roofline takes: measured on a GPU, forward or backward."""
    return [row for row in rows if row["traffic_floor_us"] is not None and row["direction"] != "both"]


def speedup(rows: Sequence[Row], baseline: str) -> Any:
    """A figure: a line for each cell, a dot for each implementation with its 95% interval."""
    figure, axes, backends = _figure(rows)
    for backend, colour, mine, at in backends:
        middle = [1 / row["ratio"] for row in mine]
        below = [m - 1 / row["ratio_high"] for m, row in zip(middle, mine, strict=True)]
        above = [1 / row["ratio_low"] - m for m, row in zip(middle, mine, strict=True)]
        axes.errorbar(middle, at, xerr=[below, above], fmt="o", color=colour, label=backend, markersize=5)
    axes.axvline(1, color="#777777", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel(f"times faster than {baseline}, with 95% interval")
    axes.legend(loc="best", frameon=False)
    return figure


def roofline(rows: Sequence[Row]) -> Any:
    """A figure: the time of each row in units of the higher of its floors, which no implementation can go below."""
    figure, axes, backends = _figure(rows)
    for backend, colour, mine, at in backends:
        for floor, marker, size in (("traffic", "o", 5), ("issue", "x", 6)):
            placed = [(row, y) for row, y in zip(mine, at, strict=True) if row[f"{floor}_floor_us"]]
            shares = [row[f"{floor}_floor_us"] / row["median_us"] for row, _ in placed]
            label = f"{backend}, {'traffic' if floor == 'traffic' else 'instruction issue'}"
            if placed:
                axes.plot(shares, [y for _, y in placed], marker, color=colour, label=label, markersize=size)
    axes.axvline(1, color="#777777", linewidth=1)
    axes.set_xlim(left=0)
    axes.set_xlabel("floor / measured time: 1 is as fast as the device allows")
    axes.legend(loc="best", frameon=False)
    return figure


def _figure(rows: Sequence[Row]) -> tuple[Any, Any, list[tuple[str, str, list[Row], list[int]]]]:
    """A figure with a line for each cell; of each implementation name, colour, rows and the lines they belong to."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cells = list(dict.fromkeys(tuple(row[name] for name in CELL) for row in rows))
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.28 * len(cells)), layout="constrained")
    axes.set_yticks(range(len(cells)), [" ".join(map(str, cell)) for cell in cells], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    backends = []
    for i, backend in enumerate(dict.fromkeys(row["backend"] for row in rows)):
        mine = [row for row in rows if row["backend"] == backend]
        at = [cells.index(tuple(row[name] for name in CELL)) for row in mine]
        backends.append((backend, _COLOURS[i % len(_COLOURS)], mine, at))
    return figure, axes, backends


def svg(figure: Any, digest: str) -> bytes:
    """A figure as SVG with its digest, the same for the same rows; closes it."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    drawn = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "msdeform", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Description": f"rows {digest}"})
    plt.close(figure)
    lines = [line.rstrip() for line in drawn.getvalue().decode().splitlines()]
    return ("\n".join(lines) + "\n").encode()
