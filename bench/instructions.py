"""``msdeform bench instructions``: what the compiled kernels execute for one (query, head); no GPU needed.

    msdeform bench instructions                       # ours, for sm_90
    msdeform bench instructions --deformops FOLDER    # deformops' Triton kernels, from its unpacked wheel
    msdeform bench instructions --official FILE       # the official kernels, from its ms_deform_im2col_cuda.cuh

    warp instructions   of PTX, counted for every warp that executes them
    wavefronts          of the load and store unit, which does one a cycle: loads, stores, reductions, shuffles
    sectors             of 32 bytes that loads and stores touch, counted by instruction: what L1 answers is in them
    reductions          sectors that atomics add to, all of which reach L2
    conflicts           wavefronts that accesses to shared memory take beyond what their bytes would

The kernels' PTX runs on the CPU (:mod:`.ptx`), on inputs as a network makes them: an encoder and a decoder, smaller
than usual, of 8 heads with 32 channels and 4 levels of 4 points, which lie one to four pixels from their query's place.

PTX is what a compiler hands to the assembler, which joins, splits and drops instructions: counts of PTX compare
kernels, and are not the machine's. `sass / ptx` says how many machine instructions it makes of one of PTX, over a whole
kernel's listing. Accesses to memory it neither adds nor drops, but for spills.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ..common.options import nearest
from ..kernels.arguments import Parser, architecture
from . import kernel_calls
from .cases import Case, levels
from .counts import CALL, COUNTS, DECODER, DTYPES, ENCODER, Run
from .inputs import make_inputs
from .kernel_calls import Call
from .listings import listing
from .provenance import provenance
from .records import RESULTS, Row, append
from .runner import public
from .tables import Line, aligned, number

_SIZES = levels(400, 533, 8, 16, 32, 64)
CASES = {case.name: case for case in (Case(ENCODER, _SIZES, B=1), Case(DECODER, _SIZES, B=1, Q=300))}

_OURS: dict[str, kernel_calls.Calls] = {"triton": kernel_calls.triton, "cuda": kernel_calls.cuda}


def main(argv: list[str] | None = None) -> int:
    """Compiles, executes, prints, and on request records."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _parse(arguments)
    # whose folder a file lies in is no part of a result
    told = [Path(word).name if "/" in word else word for word in public(arguments)]
    source = provenance(torch.device("cpu"), ["msdeform", "bench", "instructions", *told])
    rows = []
    for run in _runs(options):
        rows += run
        if options.out is not None:
            append(options.out / "executed.jsonl", [{**row, **source} for row in run])
        # a call takes seconds to a minute
        print(f"{', '.join(str(run[0][name]) for name in CALL)}", file=sys.stderr, flush=True)
    print(f"counts for one (query, head), sm_{options.arch}\n")
    print(aligned(_lines(rows), 5))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="msdeform bench instructions", description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=architecture, default=90, help="compute capability times ten (default: 90)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES, metavar="NAME")
    parser.add_argument("--implementations", nargs="+", default=list(_OURS), choices=_OURS, metavar="NAME")
    parser.add_argument("--deformops", type=Path, metavar="FOLDER", help="that holds the package, unpacked")
    parser.add_argument("--official", type=Path, metavar="FILE", help="Deformable DETR's ms_deform_im2col_cuda.cuh")
    parser.add_argument(
        "--out", type=Path, nargs="?", const=RESULTS, metavar="DIR", help="append the rows there (bench/results)"
    )
    options = parser.parse_args(arguments)
    for name in options.cases:
        if name not in CASES:
            parser.error(f"--cases: {nearest('case', name, list(CASES))}")
    if options.deformops is not None and not (options.deformops / "deformops").is_dir():
        parser.error(f"--deformops: expected a folder with the package in it, got {options.deformops}")
    if options.official is not None and not options.official.is_file():
        parser.error(f"--official: expected a file, got {options.official}")
    return options


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    if options.deformops is not None:
        sources = [kernel_calls.deformops(options.deformops)]
    elif options.official is not None:
        sources = [kernel_calls.official(options.official)]
    else:
        sources = [_OURS[name] for name in options.implementations]
    for case in (CASES[name] for name in options.cases):
        for dtype in options.dtypes:
            inputs = make_inputs(case, getattr(torch, dtype), torch.device("cpu"), seed=0)
            for call in (call for calls in sources for call in calls(inputs, case, options.arch)):
                yield counted(call, case, dtype, options.arch)


def counted(call: Call, case: Case, dtype: str, arch: int) -> Run:
    """A row for each kernel that a call launches."""
    from .ptx import nvrtc, triton_driver

    executing = nvrtc.executing if call.by_nvrtc else triton_driver.executing
    with executing(arch=arch, count=True) as device:
        call.run(device)
    pairs = case.B * case.queries * case.H
    return [
        {
            "kind": "executed",
            "implementation": call.implementation,
            "call": call.name,
            "kernel": _short(launch.name),
            "dtype": dtype,
            "case": case.name,
            "arch": arch,
            **{name: round(getattr(launch.counters, name) / pairs, 2) for name in COUNTS},
            **listing(launch.ptx, launch.name, call.cubin)._asdict(),
        }
        for launch in device.launches
    ]


def _short(name: str) -> str:
    """A kernel's name without what C++ writes of its template, and without saying that it is a kernel."""
    mangled = re.match(r"_Z(\d+)", name)
    plain = name[mangled.end() :][: int(mangled[1])] if mangled else name
    return plain.removesuffix("_kernel")


def _lines(rows: list[Row]) -> list[Line]:
    """A head, and a line for each kernel of each call."""
    lead = ("case", "implementation", "call", "kernel", "dtype")
    lines: list[Line] = [(*lead, *COUNTS.values(), "sass / ptx", "registers", "spilled bytes")]
    for row in rows:
        numbers = (number(row[name]) for name in COUNTS)
        ratio = f"{row['sass'] / row['ptx']:.2f}"
        lines.append((*(row[name] for name in lead), *numbers, ratio, str(row["registers"]), str(row["spilled_bytes"])))
    return lines
