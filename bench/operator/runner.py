"""Runs jobs in processes of their own, within a time, and keeps their rows."""

import contextlib
import datetime
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...common.options import spelled
from ...kernels import registry
from ..harness import records
from ..harness.isolate import ChildFailed, answers
from ..harness.provenance import host_load
from ..harness.records import Row
from . import implementations
from .jobs import Job, groups

START_LIMIT = 180.0  # seconds to import torch and a peer, on a busy machine
_MOST_CRASHES = 3  # of one process's jobs, after which the others are given up
_WORKER = "msdeform.bench.operator.worker"


@dataclass
class Settings:
    """How jobs are measured."""

    device: torch.device
    baseline: str | None = "reference"
    """what the operator's implementations alternate with"""
    seconds: float = 0.3
    """about how long each measurement lasts"""
    limit: float = 120.0
    """seconds that one row may take, compilation and check included"""
    deadline: float = float("inf")
    """of time.monotonic(): no job begins after it"""
    threads: int = 1
    """of a CPU"""


def usual_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def usual_backends(device: torch.device) -> tuple[str, ...]:
    """Those to measure where none is named: on a CPU what auto takes, on a GPU all that take its tensors."""
    call = registry.example_inputs(device)
    if device.type == "cpu":
        return (registry.resolve(call, registry.AUTO),)
    return tuple(name for name, backend in registry.BACKENDS.items() if backend.refuses(call) is None)


class Book:
    """Where rows go: to a file as they come, if there is a folder for them, and to the report at the end."""

    def __init__(self, out: Path | None, source: Row, *, again: bool = False, retry: bool = False) -> None:
        """`out` is a folder, in which a file is named after day and device, or a file, ``*.jsonl``. `source` is the
        provenance of every row. What is there already of the same code and device is not measured again, unless
        `again` or, of what failed, `retry`."""
        self.source = source
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        self.already = 0
        self.path = out
        if out is not None and out.suffix != ".jsonl":
            self.path = out / _file_name(source["device"])
        self._recorded: set[tuple[object, ...]] = set()
        if out is not None and out.exists() and not again:
            found = records.read(out)
            self.skipped += found.broken
            self._recorded = records.done(found.rows, source, failed=not retry)

    def has(self, *keys: tuple[object, ...]) -> bool:
        return all(key in self._recorded for key in keys)

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

    def new(self, jobs: Iterable[Job]) -> list[Job]:
        """Those with a key that is not recorded yet; the others are counted."""
        jobs = list(jobs)
        new = [job for job in jobs if not self.has(*job.cells())]
        self.already += sum(len(job.cells()) for job in jobs) - sum(len(job.cells()) for job in new)
        return new

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


def measure(jobs: Sequence[Job], settings: Settings, book: Book, processes: int = 1) -> int:
    """Measure what is not recorded yet, in order; returns how many jobs the deadline left.

    `processes` at a time, for what is not timed: each gets every so-manieth job of a backend.
    """
    found = groups(book.new(jobs))
    if processes == 1:
        return sum(_measure_group(group, settings, book) for group in found)
    size = -(-sum(map(len, found)) // processes)
    shares = [group[i :: -(-len(group) // size)] for group in found for i in range(-(-len(group) // size))]
    with ThreadPoolExecutor(processes) as pool:
        return sum(pool.map(lambda share: _measure_group(share, settings, book), shares))


def _measure_group(jobs: list[Job], settings: Settings, book: Book) -> int:
    """Jobs of one implementation, in as many processes as it takes; returns how many the deadline left."""
    backend = jobs[0].backend
    reason = implementations.absent(backend, settings.device)
    if reason is not None:
        book.add({"kind": "missing", "backend": backend, "reason": reason})
        return 0
    crashes = 0
    while jobs:
        if time.monotonic() >= settings.deadline:
            return len(jobs)
        request = {
            "backend": backend,
            "baseline": settings.baseline,
            "device": str(settings.device),
            "seconds": settings.seconds,
            "threads": settings.threads,
            "jobs": [{"kind": job.kind, **asdict(job)} for job in jobs],
        }
        begun, missing = -1, set()
        try:
            for answer in answers(_WORKER, request, start_limit=START_LIMIT, limit=settings.limit):
                if "missing" in answer:
                    book.add({"kind": "missing", "backend": backend, "reason": answer["missing"]})
                    return 0
                if "begin" in answer:
                    if time.monotonic() >= settings.deadline:
                        return len(jobs) - answer["begin"]
                    begun = answer["begin"]
                    missing = set(jobs[begun].cells())
                else:
                    missing.discard(records.key(answer["row"]))
                    book.add(answer["row"])
                    print(".", end="", flush=True, file=sys.stderr)
            return 0
        except ChildFailed as error:
            failure = str(error)
        crashes += 1
        if begun >= 0:
            _fail(jobs[begun : begun + 1], failure, missing, book)
        jobs = jobs[begun + 1 :]
        if begun < 0 or crashes == _MOST_CRASHES:  # it will not do better with the others
            _fail(jobs, f"given up: {failure}", {key for job in jobs for key in job.cells()}, book)
            return 0
    return 0


def _fail(jobs: Iterable[Job], failure: str, missing: set[tuple[object, ...]], book: Book) -> None:
    for job in jobs:
        for row in job.unmeasured(failure):
            if records.key(row) in missing:
                book.add(row)


def folder(out: Path | None, *, keep: bool) -> Path | None:
    """Where rows are kept: the folder named, that of the checkout, or none."""
    if out is not None or not keep:
        return out
    root = records.RESULTS.parent.parent
    return records.RESULTS if (root / ".git").exists() else Path("msdeform-results")


def command_line(program: str, options: Any) -> list[str]:
    """The command of a row's provenance: a place on someone's disk is no part of a result, so that folders for rows and
    runs are left out, and of other paths only the name is kept."""
    words = spelled(options, without=("out", "runs", "known"))
    return [*program.split(), *(Path(word).name if os.sep in word else word for word in words)]


def _file_name(device: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{name}.jsonl"
