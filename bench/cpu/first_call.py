"""``msdeform bench first-call``: what the first call of the operator on a CPU costs in a new process.

    msdeform bench first-call
    msdeform bench first-call --backends cpu --dtypes float32 bfloat16 --times 5

A first call loads a backend, and compiles what it needs or finds it on the disk, which is left as it is. A process
makes its inputs, and then times two forwards, or two forwards with backward, of the fused function; importing PyTorch
and msdeform comes before and is timed on its own. ``python -m msdeform.bench.cpu.first_call`` is that process.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module

from ..harness.records import Row
from ..harness.tables import aligned
from ..options import FirstCallOptions
from .tables import DIRECTIONS, first_call_table

_LIMIT = 300.0  # seconds


def run(options: FirstCallOptions) -> int:
    """``msdeform bench first-call``: measures, prints, and on request records; returns 1 where a call failed."""
    import torch

    from ...kernels import registry
    from ..harness.results_file import open_results

    code = ("bench/cpu/first_call.py",)
    results = open_results("msdeform bench first-call", options, torch.device("cpu"), measured=code, again=True)
    cpu = registry.example_inputs("cpu")
    for backend in options.backends or list(registry.BACKENDS):
        reason = registry.unavailable(backend) or registry.BACKENDS[backend].refuses(cpu)
        if reason is not None and not options.backends:
            continue
        for dtype in options.dtypes:
            for direction in DIRECTIONS:
                print(f"{backend}, {dtype}, {direction}", file=sys.stderr, flush=True)
                results.add(measured(options.case, dtype, direction, backend, options.times, reason))
    results.report()
    print("milliseconds\n")
    print(aligned(first_call_table(results.rows), 4))
    return 1 if any(row["failure"] is not None for row in results.rows) else 0


def measured(case: str, dtype: str, direction: str, backend: str, times: int, failure: str | None = None) -> Row:
    """The row of one backend, of `times` processes; of none where a `failure` is known."""
    found: list[dict[str, float]] = []
    for _ in range(times if failure is None else 0):
        words = [case, dtype, direction, backend]
        command = [sys.executable, "-m", "msdeform.bench.cpu.first_call", *words]
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_LIMIT
            )
        except subprocess.TimeoutExpired:
            failure = f"not done after {_LIMIT:g} s"
            break
        last = (answer.stdout if answer.returncode == 0 else answer.stderr).strip().rpartition("\n")[2]
        if answer.returncode != 0:
            failure = f"ended with status {answer.returncode}: {last}"
            break
        found.append(json.loads(last))
    whole = failure is None
    names = ("import_torch_ms", "import_ms", "first_ms", "second_ms")
    return {
        "kind": "first-call",
        "case": case,
        "dtype": dtype,
        "direction": direction,
        "backend": backend,
        **{name: statistics.median(one[name] for one in found) if whole else None for name in names},
        "first_ms_each": [round(one["first_ms"], 1) for one in found],
        "threads": found[0]["threads"] if whole else None,
        "failure": failure,
    }


def main(argv: list[str] | None = None) -> int:
    """Prints the times of this process as a line of JSON."""
    case_name, dtype, direction, backend = sys.argv[1:] if argv is None else argv
    times: dict[str, float] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        times[name] = (time.perf_counter() - start) * 1e3

    timed("import_torch_ms", lambda: import_module("torch"))
    timed("import_ms", lambda: import_module("msdeform.kernels.api"))
    import torch

    from ...kernels.diagnostics.checks import DTYPES
    from ..operator import cases, implementations, workloads
    from ..operator.inputs import make_inputs

    case, cpu = cases.find(case_name), torch.device("cpu")
    subject = implementations.find(backend, cpu)
    if subject.reason is not None:
        raise SystemExit(subject.reason)
    work = workloads.operator(case, subject, [make_inputs(case, DTYPES[dtype], cpu, seed=0)], fused=True)
    call = work.forward if direction == "forward" else work.both
    with torch.set_grad_enabled(direction != "forward"):
        for name in ("first_ms", "second_ms"):
            timed(name, lambda: call(0))
    print(json.dumps({**times, "threads": torch.get_num_threads()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
