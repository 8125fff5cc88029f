"""``python -m msdeform.kernels.triton.tune``: write the table of :mod:`.tuning`.

    python -m msdeform.kernels.triton.tune --arch 80 90     # compiled for them: the fewest executed instructions
    python -m msdeform.kernels.triton.tune --time           # on this GPU: the shortest time, after a check

By instructions, a candidate has to spill nothing, and to save 2% over the rule in :mod:`.launch` to replace it; for a
decoder none with a larger tile than the rule's is one.
By time, every candidate's result is first held against the reference, at the tolerance that the tests have, and one
that differs is never timed. Each run of a kernel has an output of its own, so none finds what another left.
"""

import datetime
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from .. import verify
from ..api import fused_ms_deform_attn
from ..arguments import Parser, architecture
from ..tolerances import compare
from . import launch, tuning
from .tuning import DECODER, DTYPES, ENCODER, Choice

CLASSES = ((32, 4, 4), (32, 1, 4), (32, 3, 4), (16, 4, 4), (64, 4, 4))
"""D, L, P: the published models, single-scale, three levels; half and twice the channels of a head"""
_GAIN = 0.02  # that a candidate has to save, or the rule stays
_QUERIES = {DECODER: 300, ENCODER: 17821}
_ROUNDS, _LAUNCHES, _WAIT = 30, 10, 4_000_000  # rounds, launches of a choice in each, cycles of a GPU
_SIZES = {1: ((100, 134),), 3: ((100, 134), (50, 67), (25, 34)), 4: ((100, 134), (50, 67), (25, 34), (13, 17))}

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print each row, and merge them into the table; rows of classes not measured stay."""
    parser = Parser(prog="python -m msdeform.kernels.triton.tune", description=__doc__.split("\n\n")[0])
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--arch", type=architecture, nargs="+", help="compute capabilities times ten, to compile for")
    way.add_argument("--time", action="store_true", help="time candidates on this GPU")
    parser.add_argument("--heads", type=int, nargs="+", metavar="D", help="only these channels of a head")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--table", type=Path, default=tuning.TABLE, help="to merge the rows into")
    parser.add_argument("--dry-run", action="store_true", help="print the rows, and leave the table as it is")
    options = parser.parse_args(argv)
    if options.time and not torch.cuda.is_available():
        parser.error("--time: torch finds no CUDA device; --arch chooses by instructions without one")
    classes = [one for one in CLASSES if options.heads is None or one[0] in options.heads]
    if not classes:
        parser.error(f"--heads: expected some of 16, 32, 64, got {' '.join(map(str, options.heads))}")
    for D, L, P in classes:
        for dtype in options.dtypes:
            rows = _timed(D, L, P, dtype) if options.time else _counted(options.arch, D, L, P, dtype)
            for row in rows:
                print(json.dumps(row), flush=True)
                if not options.dry_run:
                    merge(options.table, [row])
    return 0


def merge(path: Path, rows: Sequence[Row]) -> None:
    """Put rows into a table, each in the place of its class's earlier one; one chosen by time yields only to such."""
    table = {tuning.key(row): row for row in (json.loads(path.read_text()) if path.exists() else [])}
    for row in rows:
        old = table.get(tuning.key(row))
        if old is None or old["by"] != "time" or row["by"] == "time":
            table[tuning.key(row)] = row
    lines = ",\n".join(f"  {json.dumps(table[key])}" for key in sorted(table))
    temporary = path.with_suffix(".new")
    temporary.write_text(f"[\n{lines}\n]\n" if lines else "[]\n")
    tuning.read(temporary)  # raises before the table is touched
    temporary.replace(path)


def rule(D: int, L: int, P: int, dtype: torch.dtype, arch: int = 0) -> Choice:
    """What :mod:`.launch` takes for a forward that the table does not hold."""
    value, points, weights = _shapes(D, L, P, dtype)
    with _forced(None):
        parameters = launch.forward_parameters(value, None, points, weights, arch)
        options = launch.forward_options(value, points, arch)
    return Choice(parameters["BLOCK_Q"], maxnreg=options.get("maxnreg"))


def candidates(usual: Choice) -> list[Choice]:
    """The rule's choice first; tiles of half and twice its size, over as many warps and over half and twice as many."""
    half, twice = max(1, usual.block_q // 2), min(128, usual.block_q * 2)
    shapes = [(usual.block_q, 4), (half, 4), (twice, 4), (half, 2), (twice, 8)]
    return [Choice(block_q, warps, usual.maxnreg) for block_q, warps in dict.fromkeys(shapes)]


def _counted(arches: Sequence[int], D: int, L: int, P: int, dtype: str) -> Iterator[Row]:
    """The rows of a class by instructions; none where every candidate spills."""
    from . import aot

    for arch in arches:
        shape: dict[str, Any] = {"D": D, "L": L, "P": P, "dtype": getattr(torch, dtype)}
        usual = rule(D, L, P, shape["dtype"], arch)
        for queries, Q in _QUERIES.items():
            counts = {
                choice: aot.compile_kernel("forward", arch, fallback=False, choice=choice, queries=Q, **shape).per_query
                for choice in candidates(usual)
                if choice.num_warps == usual.num_warps  # so many times the tile on so many times the warps is the same
            }
            # few queries in larger tiles are fewer programs than a GPU has multiprocessors, which no count shows
            fit = [choice for choice in counts if queries == ENCODER or choice.block_q <= usual.block_q]
            fit.sort(key=lambda choice: counts[choice] * (1 - _GAIN if choice == usual else 1))
            for choice in fit:
                whole = aot.compile_kernel("forward", arch, choice=choice, queries=Q, **shape)
                if whole.spills == 0:
                    found = {
                        "instructions_per_query_and_head": round(counts[choice], 1),
                        "of_the_rule": round(counts[usual], 1),
                        "registers": whole.registers,
                        "warps_per_scheduler": 65536 // (32 * -(-whole.registers // 8) * 8) // 4,
                    }
                    yield _row("forward", arch, D, L, P, dtype, queries, choice, "instructions", found)
                    break


def _timed(D: int, L: int, P: int, dtype: str) -> Iterator[Row]:
    """The rows of a class by time, on this GPU. Not run yet where this was written: there was no GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    for queries, Q in _QUERIES.items():
        case = verify.Case(B=2, Q=Q, H=8, D=D, P=P, sizes=_SIZES[L], dtype=getattr(torch, dtype))
        tensors = verify.make_inputs(case, device)
        usual = rule(D, L, P, case.dtype)
        tried = candidates(usual)
        tried += [replace(choice, maxnreg=None) for choice in tried if choice.maxnreg is not None]
        right = correct(tried, case, tensors)
        if usual not in right:
            raise RuntimeError(f"the rule's own launch differs from the reference: D={D} L={L} P={P} {dtype} {queries}")
        times = _times(right, case, tensors)
        choice = min(right, key=lambda choice: times[choice] * (1 - _GAIN if choice == usual else 1))
        found = {
            "median_us": round(times[choice], 2),
            "of_the_rule": round(times[usual], 2),
            "device": torch.cuda.get_device_name(device),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        yield _row("forward", 10 * major + minor, D, L, P, dtype, queries, choice, "time", found)


def correct(tried: Sequence[Choice], case: verify.Case, tensors: tuple[Tensor, ...]) -> list[Choice]:
    """Those of the choices whose output is within the tests' tolerance of the reference's in float64; the others are
    named on stderr."""
    with torch.no_grad():
        value, *rest = (tensor.double() for tensor in tensors)
        truth = fused_ms_deform_attn(value, case.sizes, *rest, backend="reference")
    right = []
    for choice in tried:
        comparison = compare(_launch(choice, case, tensors), truth, torch.float32, gradient=False)
        if comparison.ok:
            right.append(choice)
        else:
            print(f"left out, off by {comparison.error:.2e} of {comparison.bound:.2e}: {choice}", file=sys.stderr)
    return right


def _launch(choice: Choice, case: verify.Case, tensors: tuple[Tensor, ...]) -> Tensor:
    value, *rest = tensors
    with _forced(choice):
        return launch.fused_forward(value, torch.tensor(case.sizes, device=value.device), *rest)


def _times(choices: Sequence[Choice], case: verify.Case, tensors: tuple[Tensor, ...]) -> dict[Choice, float]:
    """Median microseconds of each choice; they take turns, so that a clock that drops drops for all of them."""
    value, *rest = tensors
    levels = torch.tensor(case.sizes, device=value.device)
    taken: dict[Choice, list[float]] = {choice: [] for choice in choices}
    for _ in range(_ROUNDS):
        for choice in choices:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with _forced(choice):
                launch.fused_forward(value, levels, *rest)
                torch.cuda._sleep(_WAIT)  # the host runs ahead, and the device finds the next ones waiting
                begin.record()
                for _ in range(_LAUNCHES):
                    launch.fused_forward(value, levels, *rest)
                end.record()
            end.synchronize()
            taken[choice].append(begin.elapsed_time(end) / _LAUNCHES * 1e3)
    return {choice: statistics.median(times) for choice, times in taken.items()}


def _row(
    kind: str, arch: int, D: int, L: int, P: int, dtype: str, queries: str, choice: Choice, by: str, found: Row
) -> Row:
    where = {"kind": kind, "arch": arch, "L": L, "P": P, "D": D, "dtype": dtype, "queries": queries}
    chosen = {name: getattr(choice, name) for name in ("block_q", "num_warps", "maxnreg")}
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    return {**where, **chosen, "by": by, **found, **versions}


def _shapes(D: int, L: int, P: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Value, points and weights of a class, without memory."""
    H = 8
    return (
        torch.empty(1, 17821, H, D, dtype=dtype, device="meta"),
        torch.empty(1, 300, H, L, P, 2, device="meta"),
        torch.empty(1, 300, H, L, P, device="meta"),
    )


@contextmanager
def _forced(choice: Choice | None) -> Iterator[None]:
    """Within, every call is launched with a choice, or by the rule."""
    real = tuning.find
    tuning.find = lambda *_, **__: choice
    try:
        yield
    finally:
        tuning.find = real


if __name__ == "__main__":
    sys.exit(main())
