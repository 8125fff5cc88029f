"""``msdeform bench``: time the operator's implementations, ours and others', after checking that they are right.

    msdeform bench                                        # what runs here, on cases that suit the machine
    msdeform bench --cases odd --backends core --out DIR  # some of them, and keep the rows

Every implementation runs in a process of its own, where it alternates with the baseline; one that crashes or hangs
costs its own cells and no more. Cells that are recorded, of the same code on the same device, are not measured again.
"""

import sys

import torch

from ..harness.provenance import usual_device
from ..harness.results_file import open_results
from ..harness.tables import operator_table
from ..options import COMPILED_IMPLEMENTATIONS, IMPLEMENTATIONS, OperatorsOptions
from . import cases
from .jobs import plan
from .runner import Settings, measure


def run(options: OperatorsOptions) -> int:
    """``msdeform bench``; returns 1 if one of our own backends failed its check."""
    device = usual_device()
    quick = options.quick or device.type == "cpu"
    names = options.cases or (cases.REDUCED if quick else cases.FULL)
    eager = [name for name in IMPLEMENTATIONS if options.compiled or name not in COMPILED_IMPLEMENTATIONS]
    threads = options.threads or torch.get_num_threads()
    settings = Settings(device, options.baseline, options.seconds, options.limit, threads=threads)
    results = open_results("msdeform bench", options, device, keep=not quick)
    results.source["host_threads"] = threads
    planned = plan(names, options.locations, options.dtypes, options.backends or eager, options.functions)
    measure(planned, settings, results)
    print(file=sys.stderr)
    results.report()
    rows = results.of("operator")
    print(operator_table(rows))
    return 1 if any(row["ours"] and row["failure"] is not None for row in rows) else 0
