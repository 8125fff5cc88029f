"""``msdeform bench first-call``: what the first call of the operator on a CPU costs in a new process.

A first call loads a backend, and compiles what it needs or finds it on the disk, which is left as it is. A process
makes its inputs, and then times two forwards, or two forwards with backward, of the fused function; importing PyTorch
and msdeform comes before and is timed on its own.
"""

import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module

from ..harness.isolate import Answer, ChildFailed, Message, answers
from ..harness.records import Row
from ..harness.tables import aligned
from ..options import FirstCallOptions
from .tables import DIRECTIONS, first_call_table

_LIMIT = 300.0  # seconds
_TIMES = ("import_torch_ms", "import_ms", "first_ms", "second_ms")


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
    what = {"case": case, "dtype": dtype, "direction": direction, "backend": backend}
    found: list[Message] = []
    try:
        for _ in range(times if failure is None else 0):
            found += answers(respond, what, start_limit=_LIMIT, limit=_LIMIT)
    except ChildFailed as error:
        failure = str(error)
    whole = failure is None
    return {
        "kind": "first-call",
        **what,
        **{name: statistics.median(one[name] for one in found) if whole else None for name in _TIMES},
        "first_ms_each": [round(one["first_ms"], 1) for one in found],
        "threads": found[0]["threads"] if whole else None,
        "failure": failure,
    }


def respond(answer: Answer, request: Message) -> None:
    """Answers with the times of this process."""
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

    case, cpu = cases.find(request["case"]), torch.device("cpu")
    subject = implementations.find(request["backend"], cpu)
    if subject.reason is not None:
        raise SystemExit(subject.reason)
    inputs = make_inputs(case, DTYPES[request["dtype"]], cpu, seed=0)
    work = workloads.operator(case, subject, [inputs], fused=True)
    with torch.set_grad_enabled(request["direction"] != "forward"):
        for name in _TIMES[2:]:
            timed(name, lambda: getattr(work, request["direction"])(0))
    answer(**times, threads=torch.get_num_threads())
