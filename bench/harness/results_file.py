"""The file that a command's rows go to: opened with their provenance, filled as they come, reported at the end."""

import contextlib
import datetime
import re
from pathlib import Path
from typing import Any

import torch

from . import records
from .provenance import code, command_line, host_load, provenance
from .records import Row

Cell = tuple[object, ...]
"""what a row is of, as :func:`.records.key` says it"""


class ResultsFile:
    """Rows of one run: appended to a file as they come, if there is a folder for them, and counted in a report."""

    def __init__(self, out: Path | None, source: Row, *, again: bool = False, retry: bool = False) -> None:
        """`out` is a folder, in which a file is named after day and device, or a file, ``*.jsonl``; `source` is every
        row's provenance. What is recorded of its code and device is not measured again, unless `again` or, of what
        failed, `retry`."""
        self.source = source
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        self.already = 0
        self.path = out
        if out is not None and out.suffix != ".jsonl":
            name = re.sub(r"[^a-z0-9]+", "-", source["device"].lower()).strip("-")
            self.path = out / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{name}.jsonl"
        self._recorded: set[Cell] = set()
        if out is not None and out.exists() and not again:
            found = records.read(out)
            self.skipped += found.broken
            self._recorded = records.done(found.rows, source, failed=not retry)

    def has(self, *cells: Cell) -> bool:
        return all(cell in self._recorded for cell in cells)

    def to_measure(self, *cells: Cell) -> bool:
        """Whether one of these cells of one measurement is not recorded yet; otherwise they are counted."""
        recorded = self.has(*cells)
        self.already += len(cells) if recorded else 0
        return not recorded

    def of(self, kind: str) -> list[Row]:
        """This run's rows of a kind."""
        return [row for row in self.rows if row["kind"] == kind]

    def add(self, row: Row) -> None:
        """Keep a row, with its provenance, and with when it came and how busy the machine was then."""
        row = {**row, **self.source, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        row["host_load"] = host_load()
        self.rows.append(row)
        failure = row.get("failure") or (row["reason"] if row["kind"] == "missing" else None)
        if failure is not None:
            self.skipped.append(f"{', '.join(str(part) for part in records.key(row)[1:])}: {failure}")
        if self.path is not None and not self.has(records.key(row)):
            records.append(self.path, [row])

    def report(self) -> None:
        """Print where the rows are, and what was not measured."""
        if self.already:
            print(f"{self.already} cells were recorded already, of this code on this device (--again measures them)")
        if self.path is None:
            print("no rows were kept (--out DIR keeps them)")
        elif self.rows:
            shown = self.path
            with contextlib.suppress(ValueError):
                shown = self.path.resolve().relative_to(Path.cwd())
            print(f"{len(self.rows)} rows appended to {shown}")
        if self.skipped:
            print("\nnot measured")
            print("\n".join(f"  {line}" for line in dict.fromkeys(self.skipped)))
        print()


def open_results(
    program: str,
    options: Any,
    device: torch.device,
    *,
    measured: tuple[str, ...] = (),
    keep: bool = False,
    again: bool | None = None,
) -> ResultsFile:
    """The results file that a command's options name, with the provenance of this command on this device.

    Args:
        program: the command, ``msdeform bench cpu``; ``out`` of its options names the file or folder.
        measured: patterns of files that decide these measurements, beside those that decide all.
        keep: keep rows in the usual folder where ``out`` names none.
        again: as of :class:`ResultsFile`; what the option says when None.
    """
    source = provenance(device, command_line(program, options)) | {"code": code(*measured)}
    again = options.again if again is None else again
    return ResultsFile(folder(options.out, keep=keep), source, again=again)


def folder(out: Path | None, *, keep: bool) -> Path | None:
    """Where rows are kept: the folder named, that of the checkout, or none."""
    if out is not None or not keep:
        return out
    root = records.RESULTS.parent.parent
    return records.RESULTS if (root / ".git").exists() else Path("msdeform-results")
