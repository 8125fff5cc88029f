"""``make gpu``: on a machine with a GPU, correctness first, then a quick benchmark; under ten minutes.

    python -m msdeform.bench.gpu            # everything; rows appended to bench/results/
    python -m msdeform.bench.gpu --quick    # small shapes, on a CPU too; the default where there is no GPU

It runs the verify table of every backend, the tests marked ``gpu`` (in a checkout), and then measures both functions of
the operator and the attention module, forward and backward, at the encoder's and the decoder's shapes. Every
implementation is first held against float64 on the very inputs it is timed on; one that fails gets no speed. Rows are
JSON lines with their provenance; the table is printed last, after what was skipped and why.

Forward is timed under ``no_grad``; backward is the gradient of every input, after a forward that is not timed.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from ..kernels.arguments import Parser
from . import workloads
from .cases import FULL, QUICK, Case, make_inputs
from .measure import Timing, peak_memory_mb, sets_past_cache, time_call
from .peers import Peer, peers
from .provenance import device_name, provenance
from .workloads import Check, Workload

_ROOT = Path(__file__).resolve().parent.parent
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_TEST_SECONDS = 240

# what a speed is of, whichever backend has it
_KEY = ("case", "dtype", "function", "direction")

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run it; returns 1 if verification, a test, or the check of one of our own backends failed."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _parse(arguments)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    quick = options.quick or device.type == "cpu"
    print(f"device: {device_name(device)}{' (reduced form)' if quick else ''}")
    skipped = [] if device.type == "cuda" else ["speeds on a GPU: torch finds no CUDA device here"]

    failures = []
    if not options.no_verify:
        failures += _verify(skipped)
    if not options.no_tests:
        failures += _gpu_tests(device, skipped)

    source = provenance(device, ["python", "-m", "msdeform.bench.gpu", *_public(arguments)])
    found = peers(device, compiled=options.compiled)
    skipped += [f"{peer.name}: {peer.reason}" for peer in found if peer.reason is not None]
    cases = QUICK if quick else FULL
    rows = []
    for row in _measure_all(cases, options.dtypes, [p for p in found if p.reason is None], device, options.seconds):
        rows.append({**row, **source})
        print(".", end="", flush=True)
        if row["failure"] is not None:
            where = ", ".join(row[key] for key in ("backend", *_KEY))
            (failures if row["ours"] else skipped).append(f"{where}: {row['failure']}")
    print()
    _keep(rows, options.out, device, quick)
    _report(rows, list(dict.fromkeys(skipped)), failures)
    return 1 if failures else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m msdeform.bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes; the default where there is no GPU")
    parser.add_argument("--out", type=Path, help="folder for the rows (default: bench/results; none in reduced form)")
    parser.add_argument("--dtypes", nargs="+", choices=_DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=0.3, help="about how long each measurement lasts")
    parser.add_argument("--compiled", action="store_true", help="measure the reference under torch.compile, too")
    parser.add_argument("--no-verify", action="store_true", help="leave out the verify table")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests marked gpu")
    return parser.parse_args(arguments)


def _public(arguments: list[str]) -> list[str]:
    """The command line without --out: a place on someone's disk is no part of a result."""
    kept = list(arguments)
    while "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    return [argument for argument in kept if not argument.startswith("--out=")]


def _verify(skipped: list[str]) -> list[str]:
    """Print the verify table; returns what failed."""
    if importlib.util.find_spec(".verify", f"{__package__.rpartition('.')[0]}.kernels") is None:
        skipped.append("the verify table: msdeform.kernels.verify is missing")
        return []
    from ..kernels import verify

    print("\nverify", flush=True)
    return [] if verify.main([]) == 0 else ["msdeform verify"]


def _gpu_tests(device: torch.device, skipped: list[str]) -> list[str]:
    """Run the tests that need the device; returns what failed."""
    reason = None
    if device.type != "cuda":
        reason = "torch finds no CUDA device"
    elif not (_ROOT / "tests").is_dir():
        reason = "this is no checkout: an installed package has no tests"
    elif importlib.util.find_spec("pytest") is None:
        reason = "pytest is not installed"
    if reason is not None:
        skipped.append(f"tests marked gpu: {reason}")
        return []
    print("\npytest -m gpu", flush=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q"]
    try:
        status = subprocess.run(command, cwd=_ROOT, timeout=_TEST_SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        return [f"pytest -m gpu: not done after {_TEST_SECONDS} s"]
    return [] if status == 0 else [f"pytest -m gpu: exit status {status}"]


def _measure_all(
    cases: tuple[Case, ...], dtypes: list[str], found: list[Peer], device: torch.device, seconds: float
) -> Iterator[Row]:
    for case in cases:
        for name in dtypes:
            dtype = _DTYPES[name]
            first = make_inputs(case, dtype, device, seed=0)
            others = [make_inputs(case, dtype, device, seed) for seed in range(1, sets_past_cache(first, device))]
            sets = [first, *others]
            about = {"case": case.name, "dtype": name, "shape": asdict(case)}
            for fused in (False, True):
                correct = workloads.truth(case, first, fused)
                for peer in found:
                    row = {**about, "backend": peer.name, "ours": peer.ours}
                    work = workloads.operator(case, peer, sets, fused)
                    checks = workloads.check(work, correct)
                    function = "fused_ms_deform_attn" if fused else "ms_deform_attn"
                    yield from _measure({**row, "function": function}, work, checks, device, seconds)
                    if fused and peer.ours and not case.uniform:
                        module = workloads.module(case, peer, sets, dtype, device)
                        # the check is its operator's, at this shape and dtype
                        yield from _measure({**row, "function": "MSDeformAttn"}, module, checks, device, seconds)


def _measure(row: Row, work: Workload, checks: dict[str, Check], device: torch.device, seconds: float) -> Iterator[Row]:
    """Measure both directions; one that failed its check gets no speed."""
    for direction, measure in (("forward", _time_forward), ("backward", _time_backward)):
        timing, peak, check = None, None, checks[direction]
        if check.failure is None:
            try:
                timing, peak = measure(work, device, seconds)
            except torch.OutOfMemoryError:
                check = check._replace(failure="out of memory")
        numbers = dict.fromkeys(field.name for field in fields(Timing)) if timing is None else asdict(timing)
        yield {**row, "direction": direction, **check._asdict(), **numbers, "peak_mb": peak}


def _time_forward(work: Workload, device: torch.device, seconds: float) -> tuple[Timing, float | None]:
    with torch.no_grad():
        return time_call(work.forward, device, seconds), peak_memory_mb(work.forward, device)


def _time_backward(work: Workload, device: torch.device, seconds: float) -> tuple[Timing, float | None]:
    """Memory is that of a forward and its backward, which is what a training step needs."""
    outputs = [work.forward(i) for i in range(len(work.leaves))]
    timing = time_call(lambda i: work.gradients(i, outputs[i % len(outputs)], keep=True), device, seconds)
    outputs.clear()
    return timing, peak_memory_mb(lambda i: work.gradients(i, work.forward(i)), device)


def _keep(rows: list[Row], out: Path | None, device: torch.device, quick: bool) -> None:
    """Append the rows to a file of the day and device. The reduced form is no result, and kept only where named."""
    if out is None:
        if quick:
            print("\nreduced form: no rows were kept (--out DIR keeps them)")
            return
        out = _ROOT / "bench" / "results" if (_ROOT / ".git").exists() else Path("msdeform-results")
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = out / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{name}.jsonl"
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    shown = path
    with contextlib.suppress(ValueError):
        shown = path.resolve().relative_to(Path.cwd())
    print(f"\n{len(rows)} rows appended to {shown}")


def _report(rows: list[Row], skipped: list[str], failures: list[str]) -> None:
    for title, lines in (("skipped", skipped), ("FAILED", failures)):
        if lines:
            print(f"\n{title}")
            print("\n".join(f"  {line}" for line in lines))
    print()
    print(table(rows))


def table(rows: list[Row]) -> str:
    """Rows as aligned text: time in microseconds, and how many times faster than the reference."""
    header = ("case", "dtype", "function", "direction", "backend", "us", "p20-p80", "dispatch us", "peak MB", "speed")
    lines = [header]
    reference = {_key(row): row["median_us"] for row in rows if row["backend"] == "reference"}
    for row in rows:
        lead = (*_key(row), row["backend"])
        if row["median_us"] is None:
            lines.append((*lead, "none", "-", "-", "-", row["failure"].split(":")[0]))
            continue
        base = reference.get(_key(row))
        lines.append(
            (
                *lead,
                f"{row['median_us']:.1f}",
                f"{row['p20_us']:.1f}-{row['p80_us']:.1f}",
                "-" if row["dispatch_us"] is None else f"{row['dispatch_us']:.1f}",
                "-" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}",
                "-" if base is None else f"{base / row['median_us']:.2f}x",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 5 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in _KEY)


if __name__ == "__main__":
    sys.exit(main())
