"""Measurements as lines of JSON: appended, never changed, and read back with a broken line named and left out.

Every row has a ``kind``, the fields of :data:`KEYS` that say what was measured, its numbers, and its provenance. Of
rows with one key from one place the last one counts.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESULTS = Path(__file__).resolve().parents[1] / "results"

# what names a cell: rows of a kind that agree in these are of the same thing
KEYS: dict[str, tuple[str, ...]] = {
    "operator": ("case", "locations", "dtype", "function", "direction", "backend"),
    "cpu": ("case", "dtype", "function", "direction", "threads", "backend"),
    "first-call": ("case", "dtype", "direction", "backend"),
    "correctness": ("case", "locations", "dtype", "function", "direction", "backend"),
    "kernels": ("case", "dtype", "backend"),
    "counters": ("case", "dtype", "backend", "kernel"),
    "variant": ("case", "dtype", "kernel", "choice"),
    "prediction": ("case", "dtype", "backend", "part"),
    "missing": ("backend",),
    "flops": ("model",),
    "model": ("model", "method", "backend", "dtype", "mode", "batch"),
    "training": ("model", "method", "backend", "dtype", "batch"),
    "dispatch": ("case", "dtype", "function", "direction", "backend", "stage"),
    "executed": ("implementation", "call", "kernel", "dtype", "case", "arch"),
    "trained": ("model", "epochs"),
    "profile": ("what", "backend"),
    "stage": ("stage",),
    "loading": ("data", "cache", "workers"),
    "loading-memory": ("workers", "entries"),
    "training-step": ("model", "backend", "dtype", "batch", "image", "option"),
    "seeds": ("model", "settings", "backend", "seed"),
    "recipe": ("data", "validated", "preset", "recipe", "seed"),
    "startup": ("program", "way"),
    "export": ("model", "image", "format"),
    "exported": ("model", "image", "pictures", "sampling", "sizes", "engine"),
    "deployed": ("model", "image", "batch", "threads", "engine"),
    "explanation": ("model", "image", "backend"),
    "explanation-quality": ("detector", "data", "target", "method", "settings"),
    "accelerated": ("model", "pass"),
    "serve": ("model", "image", "engine", "way", "clients"),
    "serve-broken": ("model", "image", "engine", "requests", "broken"),
}
# and from where: the code is a digest of the sources that are measured, which a commit names where the tree is clean
PLACE = ("code", "device", "host_cpu")


@dataclass
class Records:
    """What files of results hold."""

    rows: list[Row] = field(default_factory=list)
    """in the order of files and lines"""
    broken: list[str] = field(default_factory=list)
    """a sentence for each line that is no row"""

    def of(self, kind: str) -> list[Row]:
        """Rows of a kind; of those with one key the last, in the order in which the keys first came."""
        last: dict[tuple[Any, ...], Row] = {}
        for row in self.rows:
            if row["kind"] == kind:
                last[key(row)] = row
        return list(last.values())


def key(row: Row) -> tuple[Any, ...]:
    """What a row is a measurement of."""
    return (row["kind"], *(row[name] for name in KEYS[row["kind"]]))


def place(row: Row) -> tuple[Any, ...]:
    """Where, and of which code, a row was measured; of a GPU in whatever host: a machine that is lent again is
    another one with the same GPU."""
    return tuple(row.get(name) for name in PLACE if name != "host_cpu" or row.get("device") == "cpu")


def done(rows: Iterable[Row], source: Row, *, failed: bool = True) -> set[tuple[Any, ...]]:
    """Keys of what has been measured already at the place that `source`, a provenance, names; of what failed there,
    too, if `failed`. What was ``unfinished`` goes on."""
    last = {key(row): row for row in at(rows, source)}
    whole = {one: row for one, row in last.items() if not row.get("unfinished")}
    return {one for one, row in whole.items() if failed or row.get("failure") is None}


def at(rows: Iterable[Row], source: Row) -> list[Row]:
    """Rows of the place that `source` names."""
    here = place(source)
    return [row for row in rows if place(row) == here]


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a file, in one write. A last line that a crash cut short is ended first, so that it costs no more
    than itself.

    Raises KeyError for a row without kind or without the fields of its key: nothing is written then.
    """
    for row in rows:
        key(row)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())


def read(*paths: Path) -> Records:
    """Rows of files, and of every ``*.jsonl`` in folders. Raises FileNotFoundError for a path that is not there."""
    records = Records()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"results {path} do not exist")
        for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
            for number, line in enumerate(file.read_bytes().splitlines(), 1):
                try:
                    records.rows += _row(line)
                except ValueError as error:
                    records.broken.append(f"{file.name}, line {number}: {error}; the line is left out")
    return records


def read_and_warn(paths: Iterable[Path]) -> Records:
    """The same, with broken lines named on standard error."""
    found = read(*paths)
    for sentence in found.broken:
        print(sentence, file=sys.stderr)
    return found


def _row(line: bytes) -> list[Row]:
    """The row of a line, or nothing of an empty one; raises ValueError with what is wrong."""
    if not line.strip():
        return []
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("not a row of results")
    if row.get("backend") == "triton-cells":  # its name in rows of earlier code
        row["backend"] = "triton-sorted"
    if row.get("kind") == "explanation-quality":
        row.setdefault("settings", "")  # of earlier code, which measured by all groups
    if row.get("kind") not in KEYS:
        raise ValueError(f"not a row of results: no kind is called {row.get('kind')!r}")
    try:
        key(row)
    except KeyError as error:
        raise ValueError(f"not a row of results: {error} is missing") from None
    return [row]
