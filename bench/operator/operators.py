"""``msdeform bench``: time the operator's implementations, ours and others', after checking that they are right.

    msdeform bench                                        # what runs here, on cases that suit the machine
    msdeform bench --cases odd --backends core --out DIR  # some of them, and keep the rows

Every implementation runs in a process of its own, in which it alternates with the baseline; one that crashes or hangs
costs its own cells and no more. What fails its check against float64 gets no speed. Rows are appended to a file of the
day and device, and cells that are there already, of the same code on the same device, are not measured again.
"""

import sys
from collections.abc import Iterable, Sequence

import torch

from ...kernels.diagnostics.options import BACKENDS
from ..harness.provenance import provenance
from ..harness.tables import operator_table
from ..options import COMPILED_PEERS, FUNCTIONS, PEERS, OperatorsOptions
from . import cases, jobs
from .runner import Book, Settings, command_line, folder, measure, usual_device


def run(options: OperatorsOptions) -> int:
    """``msdeform bench``; returns 1 if one of our own backends failed its check."""
    device = usual_device()
    quick = options.quick or device.type == "cpu"
    names = options.cases or (cases.REDUCED if quick else cases.FULL)
    backends = options.backends or [name for name in PEERS if options.compiled or name not in COMPILED_PEERS]
    threads = options.threads or torch.get_num_threads()
    settings = Settings(device, options.baseline, options.seconds, options.limit, threads=threads)
    source = provenance(device, command_line("msdeform bench", options)) | {"host_threads": threads}
    book = Book(folder(options.out, keep=not quick), source, again=options.again)
    measure(plan(names, options.locations, options.dtypes, backends, options.functions), settings, book)
    print(file=sys.stderr)
    book.report()
    rows = [row for row in book.rows if row["kind"] == "operator"]
    print(operator_table(rows))
    return 1 if any(row["ours"] and row["failure"] is not None for row in rows) else 0


def plan(
    names: Iterable[str],
    locations: Iterable[cases.Locations],
    dtypes: Sequence[str],
    backends: Iterable[str],
    functions: Sequence[str] = FUNCTIONS,
) -> list[jobs.Operator]:
    """A job for each combination, a backend's all together. The module is one of ours: it takes our backends only, and
    chooses its own locations."""
    cells = [(name, place, dtype) for name in names for place in locations for dtype in dtypes]
    return [
        jobs.Operator(name, place, dtype, function, backend)
        for backend in backends
        for name, place, dtype in cells
        for function in functions
        if function != "MSDeformAttn" or (backend in BACKENDS and place == "grid")
    ]
