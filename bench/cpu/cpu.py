"""``msdeform bench cpu``: the operator's implementations on a CPU, all in turn, with one thread and with more.

    msdeform bench cpu --out bench/results                             # everything that can be imported here
    msdeform bench cpu --cases odd --backends cpu openvino --threads 1 2

A case, a dtype and a function are a cell, which has a process of its own (:mod:`.worker`). An implementation that
crashes or hangs there is left out, and the cell begins again without it. Cells that are recorded, of the same code on
the same machine, are not measured again.
"""

import os
import sys
from unittest import mock

import torch

from ..harness import records
from ..harness.isolate import ChildFailed, answers
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import aligned
from ..operator import cases, implementations
from ..operator.runner import START_LIMIT
from ..options import CPU_IMPLEMENTATIONS, CpuOptions
from .tables import MAIN, OURS, all_rows
from .worker import Cell, respond

CODE = ("bench/cpu/worker.py",)


def run(options: CpuOptions) -> int:
    """``msdeform bench cpu``; returns 1 if one of our own backends failed its check."""
    results = open_results("msdeform bench cpu", options, torch.device("cpu"), measured=CODE)
    cells = plan(options)
    absent = {name: implementations.absent(name, torch.device("cpu")) for cell in cells for name in cell.backends}
    missing = {name: reason for name, reason in absent.items() if reason is not None}
    # processes started here wait in OpenMP as those of PyTorch's users do: the command line asks for another way, which
    # is better for a busy machine and slower for calls of few milliseconds
    with mock.patch.dict(os.environ):
        os.environ.pop("OMP_WAIT_POLICY", None)
        for cell in cells:
            keys = [records.key(row) for row in cell.failed([one for one in cell.backends if one not in missing], "")]
            if not results.to_measure(*keys):
                continue
            print(f"{cell.case}, {cell.dtype}, {cell.function}", file=sys.stderr, flush=True)
            for row in measured(cell, options, missing):
                results.add(row)
    for name, reason in missing.items():
        results.add({"kind": "missing", "backend": name, "reason": reason})
    results.report()
    rows = results.of("cpu")
    print(aligned(all_rows(rows), 6))
    return 1 if any(row["ours"] and row["failure"] is not None for row in rows) else 0


def plan(options: CpuOptions) -> list[Cell]:
    """The cells of a command, in order."""
    threads = tuple(dict.fromkeys(options.threads or (1, torch.get_num_threads())))
    backends = options.backends or CPU_IMPLEMENTATIONS
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
        request = (cell._replace(backends=tuple(left)), options.seconds, options.rounds)
        rows, last = [], None
        try:
            for answer in answers(respond, *request, start_limit=START_LIMIT, limit=options.limit):
                if "missing" in answer:
                    missing[answer["missing"]] = answer["reason"]
                elif "row" in answer:
                    rows.append(answer["row"])
                last = answer.get("begin", last)
        except ChildFailed as error:
            if last is None:  # before any implementation was found
                return cell.failed(left, str(error))
            failed[last] = str(error)
            rows = []
        else:
            break
    return rows + [row for name, failure in failed.items() for row in cell.failed([name], failure)]
