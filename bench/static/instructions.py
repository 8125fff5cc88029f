"""``msdeform bench instructions``: what the compiled kernels execute for one (query, head); no GPU needed.

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

import itertools
import re
import sys
from collections.abc import Iterator

import torch

from ...kernels.diagnostics.options import capability
from ..harness.provenance import command_line, provenance
from ..harness.records import Row, append
from ..harness.tables import Line, number, padded
from ..operator.cases import Case, levels
from ..operator.inputs import make_inputs
from ..options import InstructionsOptions
from . import kernel_calls
from .counts import COUNTS, DECODER, ENCODER, Run
from .kernel_calls import Call
from .listings import listing

_SIZES = levels(400, 533, 8, 16, 32, 64)
CASES = {case.name: case for case in (Case(ENCODER, _SIZES, B=1), Case(DECODER, _SIZES, B=1, Q=300))}

_LEAD = ("case", "implementation", "call", "kernel", "dtype")
_LEFT = len(_LEAD)
_HEAD: Line = (*_LEAD, *COUNTS.values(), "sass / ptx", "registers", "spilled bytes")
# a line is printed as soon as it is there: columns are as wide as our own names
_WIDTHS = [max(width, len(title)) for width, title in zip((14, 14, 22, 8, 8, *[0] * 8), _HEAD, strict=True)]

_OURS: dict[str, kernel_calls.Calls] = {"triton": kernel_calls.triton, "cuda": kernel_calls.cuda}


def run(options: InstructionsOptions) -> int:
    """``msdeform bench instructions``: compiles, executes, prints a line for each kernel as it comes, and on request
    records."""
    source = provenance(torch.device("cpu"), command_line("msdeform bench instructions", options))
    arch = capability(options.arch)
    print(f"counts for one (query, head), sm_{arch}\n")
    print(padded(_HEAD, _WIDTHS, _LEFT), flush=True)
    for run in _runs(options, arch):
        for row in run:
            print(padded(_line(row), _WIDTHS, _LEFT), flush=True)
        if options.out is not None:
            append(options.out / "executed.jsonl", [{**row, **source} for row in run])
    return 0


def _runs(options: InstructionsOptions, arch: int) -> Iterator[Run]:
    if options.deformops is not None:
        sources = [kernel_calls.deformops(options.deformops)]
    elif options.official is not None:
        sources = [kernel_calls.official(options.official)]
    else:
        sources = [_OURS[name] for name in options.implementations]
    for case in (CASES[name] for name in options.cases):
        for dtype in options.dtypes:
            inputs = make_inputs(case, getattr(torch, dtype), torch.device("cpu"), seed=0)
            for call in itertools.chain.from_iterable(calls(inputs, case, arch) for calls in sources):
                names = (call.implementation, call.name, dtype, case.name)
                print(f"compiling and executing {', '.join(names)}", file=sys.stderr, flush=True)
                yield counted(call, case, dtype, arch)


def counted(call: Call, case: Case, dtype: str, arch: int) -> Run:
    """A row for each kernel that a call launches."""
    from .ptx import nvrtc, triton_driver

    executing = nvrtc.executing if call.by_nvrtc else triton_driver.executing
    with executing(arch=arch, count=True) as device:
        call.run(device)
    pairs = case.B * case.queries * case.H
    # without what C++ writes of a template
    names = [re.sub(r"^_Z(\d+)(.*)", lambda m: m[2][: int(m[1])], launch.name) for launch in device.launches]
    return [
        {
            "kind": "executed",
            "implementation": call.implementation,
            "call": call.name,
            "kernel": name.removesuffix("_kernel"),
            "dtype": dtype,
            "case": case.name,
            "arch": arch,
            **{count: round(getattr(launch.counters, count) / pairs, 2) for count in COUNTS},
            **listing(launch.ptx, launch.name, call.cubin),
        }
        for name, launch in zip(names, device.launches, strict=True)
    ]


def _line(row: Row) -> Line:
    numbers = (number(row[name]) for name in COUNTS)
    ratio = f"{row['sass'] / row['ptx']:.2f}"
    return (*(row[name] for name in _LEAD), *numbers, ratio, str(row["registers"]), str(row["spilled_bytes"]))
