"""The operator's micro-benchmarks through pytest-benchmark: ``pytest bench/ --benchmark-only``.

The same cases, implementations and check as ``msdeform bench``, and pytest-benchmark's own timer, statistics and
comparisons (``--benchmark-compare``). A call on a GPU is waited for, so its time includes the dispatch.
"""

from typing import Any

import pytest
import torch

from msdeform.bench.harness.provenance import usual_device
from msdeform.bench.operator import implementations, workloads
from msdeform.bench.operator.cases import REDUCED, find
from msdeform.bench.operator.inputs import make_inputs
from msdeform.bench.options import COMPILED_IMPLEMENTATIONS, IMPLEMENTATIONS

DEVICE = usual_device()
CASES = REDUCED if DEVICE.type == "cpu" else ("encoder-800x1066-b2", "decoder-800x1066")
BACKENDS = [name for name in IMPLEMENTATIONS if name not in COMPILED_IMPLEMENTATIONS]


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case_name", CASES)
def test_operator(benchmark: Any, case_name: str, backend: str, fused: bool, direction: str) -> None:
    reason = implementations.absent(backend, DEVICE)
    subject = None if reason is not None else implementations.find(backend, DEVICE)
    if subject is None or subject.reason is not None:
        pytest.skip(f"{backend}: {reason if subject is None else subject.reason}")
    if subject.function(fused) is None:
        pytest.skip(f"{backend} has no such function")
    case = find(case_name)
    inputs = make_inputs(case, torch.float32, DEVICE, seed=0)
    work = workloads.operator(case, subject, [inputs], fused)
    for check in workloads.checked(case, subject, inputs, fused).values():
        assert check.failure is None, f"{backend} gets no speed: {check.failure}"

    def call() -> None:
        work.forward(0) if direction == "forward" else work.both(0)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    benchmark.group = f"{case_name} {'fused' if fused else 'plain'} {direction}"
    with torch.set_grad_enabled(direction != "forward"):
        benchmark(call)
