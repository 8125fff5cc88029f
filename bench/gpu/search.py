"""``python -m msdeform.bench.gpu.search``: the launch parameters of the Triton kernels, side by side, on a GPU.

    python -m msdeform.bench.gpu.search                       # tiles, warps and registers of the forward
    python -m msdeform.bench.gpu.search --bands --walks       # queries in bands or as they lie; points of a walk
    python -m msdeform.bench.gpu.search --tiles               # tiles of the backward that sorts inside a block

Correctness first: each choice is compiled and held against float64 in a process of its own, several at a time, and one
that differs is never timed. The others take turns, so that a clock that drops drops for all of them; a ratio is that to
the launcher's own choice.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context

import torch
from torch import Tensor

from ...common.command_line import parse
from ...kernels.diagnostics.checks import DTYPES
from ...kernels.diagnostics.tolerances import compare
from ..harness import measure
from ..harness.provenance import usual_device
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import Column, aligned, fields, lines_of, number
from ..operator import cases, workloads
from ..operator.inputs import OperatorInputs, input_sets, make_inputs
from ..options import SearchOptions

Choice = Mapping[str, int | None]
"""launch parameters by name; None leaves one to the compiler"""
FORWARD, SORTED, TILED = "forward", "sorted backward", "backward by tiles"
BANDS: tuple[Choice, ...] = ({"BAND": 0}, {"BAND": 8})
WALKS: tuple[Choice, ...] = ({"RUN": 16}, {"RUN": 32}, {"RUN": 64})
TILES: tuple[Choice, ...] = tuple(
    dict(zip(("queries", "threads", "blocks", "channels"), tile, strict=True))
    for tile in (
        (256, 256, 2, 8),
        (128, 128, 4, 8),
        (256, 512, 2, 4),
        (256, 256, 2, 4),
        (128, 256, 3, 4),
        (64, 128, 6, 4),
    )
)
_PROCESSES = 8
PROGRAM = "python -m msdeform.bench.gpu.search"


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; returns 1 if a choice was wrong or there is no GPU."""
    options = parse(SearchOptions, sys.argv[1:] if argv is None else argv, PROGRAM)
    device = usual_device()
    if device.type != "cuda":
        print(f"{PROGRAM}: torch finds no CUDA device, and only on one do times say anything", file=sys.stderr)
        return 1
    results = open_results(PROGRAM, options, device, keep=True, again=True)
    asked: list[tuple[str, Sequence[Choice]]] = []
    asked += [(FORWARD, BANDS)] * options.bands + [(SORTED, WALKS)] * options.walks + [(TILED, TILES)] * options.tiles
    for name, dtype in product(options.cases, options.dtypes):
        for kernel, choices in asked or [(FORWARD, forward_tiles(name, dtype, device))]:
            for row in rows(name, dtype, kernel, choices, device, options.seconds):
                results.add(row)
    print(table(results.rows))
    return 1 if any(row["failure"] is not None for row in results.rows) else 0


def forward_tiles(case: str, dtype: str, device: torch.device) -> list[Choice]:
    """Half and twice the launcher's tile, over as many warps and over half and twice as many, each with its limit of
    registers and with none."""
    from . import variants

    usual = variants.usual_forward(make_inputs(cases.find(case), DTYPES[dtype], device, seed=0))
    block, warps, limit = usual["BLOCK_Q"], usual["num_warps"], usual["maxnreg"]
    half, twice = max(1, block // 2), min(128, 2 * block)
    shapes = [(block, warps), (half, warps), (twice, warps), (half, max(1, warps // 2)), (twice, 2 * warps)]
    return [
        {"BLOCK_Q": queries, "num_warps": count, "maxnreg": registers}
        for queries, count in dict.fromkeys(shapes)
        for registers in dict.fromkeys((limit, None))
    ]


def rows(
    case: str,
    dtype: str,
    kernel: str,
    choices: Sequence[Choice],
    device: torch.device,
    seconds: float,
    processes: int = _PROCESSES,
) -> Iterator[Row]:
    """A row for each choice, against the first: ``choice`` in words, the timing, and the ratio of its times."""
    context = get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(choices)), mp_context=context) as pool:
        waiting = [pool.submit(difference, case, dtype, kernel, choice, device) for choice in choices]
        failures = [_answer(future.result) for future in waiting]
    right = [choice for choice, failure in zip(choices, failures, strict=True) if failure is None]
    times: list[list[float]] = []
    if right:
        sets = input_sets(cases.find(case), DTYPES[dtype], device)
        calls = [_rotating_call([_prepared(case, kernel, choice, inputs) for inputs in sets]) for choice in right]
        with torch.no_grad():
            times = measure.time_in_turn(calls, device, seconds)
    lead = {"kind": "variant", "case": case, "dtype": dtype, "kernel": kernel}
    for choice, failure in zip(choices, failures, strict=True):
        row: Row = {**lead, "choice": described(choice), "failure": failure, "median_us": None, "ratio": None}
        if failure is None:
            taken = times[right.index(choice)]
            row |= asdict(measure.summary(taken)) | asdict(measure.paired(taken, times[0]))
            row["beside"] = described(right[0])
        yield row


def difference(case: str, dtype: str, kernel: str, choice: Choice, device: torch.device) -> str | None:
    """What a choice gets wrong of the output or of a gradient, at the tests' tolerance; None where it is right."""
    inputs = make_inputs(cases.find(case), DTYPES[dtype], device, seed=0)
    truth = workloads.truth(cases.find(case), inputs, fused=True)
    compute = torch.float64 if dtype == "float64" else torch.float32
    for name, result in _prepared(case, kernel, choice, inputs)().items():
        keep = ~truth.ignored[name] if name in truth.ignored else ...
        true = truth.results[name]
        comparison = compare(result[keep], true[keep], compute, gradient=name != "output")
        if not comparison.ok:
            return workloads.difference(name, comparison)
    return None


def _answer(result: Callable[[], str | None]) -> str | None:
    try:
        return result()
    except Exception as error:  # a choice may not compile, or end its process
        return workloads.sentence(error)


def _prepared(case: str, kernel: str, choice: Choice, inputs: OperatorInputs) -> Callable[[], dict[str, Tensor]]:
    from . import variants

    make = {FORWARD: variants.forward, SORTED: variants.sorted_backward, TILED: variants.tiled_backward}[kernel]
    return make(inputs, cases.find(case).sizes, choice)


def _rotating_call(prepared: Sequence[Callable[[], object]]) -> measure.Call:
    return lambda i: prepared[i % len(prepared)]()


def described(choice: Choice) -> str:
    return " ".join(f"{name}={'free' if value is None else value}" for name, value in choice.items())


def table(found: Sequence[Row]) -> str:
    """Rows of choices as aligned text."""
    columns: dict[str, Column] = {
        **fields("case", "dtype", "kernel", "choice"),
        "us": lambda row: "failed" if row["failure"] else number(row["median_us"]),
        "times the first's": lambda row: (
            row["failure"] or f"{row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})"
        )[:60],
    }
    return aligned(lines_of(found, columns), 4)


if __name__ == "__main__":
    sys.exit(main())
