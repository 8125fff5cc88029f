"""``msdeform bench``: time the operator's implementations, ours and others', after checking that they are right.

    msdeform bench                                        # what runs here, on cases that suit the machine
    msdeform bench --cases odd --backends core --out DIR  # some of them, and keep the rows

Every implementation runs in a process of its own, in which it alternates with the baseline; one that crashes or hangs
costs its own cells and no more. What fails its check against float64 gets no speed. Rows are appended to a file of the
day and device, and cells that are there already, of the same code on the same device, are not measured again.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ..common.options import nearest
from ..kernels.arguments import Parser
from . import cases, jobs, peers
from .provenance import provenance
from .runner import Book, Settings, folder, measure, public, usual_device
from .tables import operator_table


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if one of our own backends failed its check, 2 for a wrong command line."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _parse(arguments)
    device = usual_device()
    quick = options.quick or device.type == "cpu"
    names = options.cases or (cases.REDUCED if quick else cases.FULL)
    backends = options.backends or [name for name in peers.PEERS if options.compiled or name not in peers.COMPILED]
    threads = options.threads or torch.get_num_threads()
    settings = Settings(device, options.baseline, options.seconds, options.limit, threads=threads)
    source = provenance(device, ["msdeform", "bench", *public(arguments)]) | {"host_threads": threads}
    book = Book(folder(options.out, keep=not quick), source, again=options.again)
    measure(plan(names, options.locations, options.dtypes, backends, options.functions), settings, book)
    print(file=sys.stderr)
    book.report()
    rows = [row for row in book.rows if row["kind"] == "operator"]
    print(operator_table(rows))
    return 1 if any(row["ours"] and row["failure"] is not None for row in rows) else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="msdeform bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", metavar="NAME", help=f"some of {', '.join(cases.CASES)}")
    parser.add_argument(
        "--backends", nargs="+", metavar="NAME", help=f"some of {', '.join(peers.PEERS)}, or MODULE:FUNCTION of yours"
    )
    parser.add_argument("--baseline", metavar="NAME", default="reference", help="what the others alternate with")
    parser.add_argument("--locations", nargs="+", choices=cases.LOCATIONS, default=["grid"])
    parser.add_argument("--dtypes", nargs="+", choices=jobs.DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--functions", nargs="+", choices=jobs.FUNCTIONS, default=list(jobs.FUNCTIONS))
    parser.add_argument("--quick", action="store_true", help="small shapes; the default where there is no GPU")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of reference and core, too")
    parser.add_argument("--seconds", type=float, default=0.3, help="about how long each measurement lasts")
    parser.add_argument(
        "--limit",
        type=float,
        default=120.0,
        help="seconds after which a peer is stopped (compiling for a CPU takes minutes)",
    )
    parser.add_argument("--threads", type=int, help="of a CPU (default: torch's)")
    parser.add_argument("--out", type=Path, help="folder for the rows (default: bench/results; none in reduced form)")
    parser.add_argument("--again", action="store_true", help="measure cells that are recorded already, too")
    options = parser.parse_args(arguments)
    for name in options.cases or ():
        if name not in cases.CASES:
            parser.error(f"--cases: {nearest('case', name, list(cases.CASES))}")
    for option, names in (("backends", options.backends or ()), ("baseline", (options.baseline,))):
        for name in names:
            if name not in peers.PEERS and ":" not in name:
                parser.error(f"--{option}: {nearest('backend', name, list(peers.PEERS))}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    return options


def plan(
    names: Iterable[str],
    locations: Iterable[cases.Locations],
    dtypes: Sequence[str],
    backends: Iterable[str],
    functions: Sequence[str] = jobs.FUNCTIONS,
) -> list[jobs.Operator]:
    """A job for each combination, a backend's all together. The module is one of ours: it takes our backends only, and
    chooses its own locations."""
    cells = [(name, place, dtype) for name in names for place in locations for dtype in dtypes]
    return [
        jobs.Operator(name, place, dtype, function, backend)
        for backend in backends
        for name, place, dtype in cells
        for function in functions
        if function != "MSDeformAttn" or (backend in peers.OURS and place == "grid")
    ]


if __name__ == "__main__":
    sys.exit(main())
