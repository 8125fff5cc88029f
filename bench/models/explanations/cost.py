"""``msdeform bench explain``: what an explanation costs beside the model's own forward and backward pass.

Each cell runs in a process of its own: first the model forward and backward down to the backbone's maps, as its own
losses would go, then the recorded pass and the relevance of one detection, of ten in one pass, and of one by layer.
Memory is the process's peak (on a GPU, PyTorch's): what the explanation added to the model's. On a CPU much of that is
freed memory that the C library keeps; what is held at once is the peak of a second process, which gives it back.
Weights are random, with offsets that differ from query to query, and so is the image; neither changes what is computed.
"""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch

from ....explain.core.capture import capture
from ....explain.core.relevance import factors, relevance
from ....explain.core.trace import leaves
from ....models.attention import MSDeformAttn
from ....models.families.detector import Detector
from ....models.zoo import create_model
from ...harness.provenance import usual_device
from ...harness.records import Row
from ...harness.results_file import open_results
from ...harness.tables import Column, Line, aligned, fields, lines_of, number, numbers
from ...operator.implementations import usual_backends
from ...options import ExplainOptions
from ..resumable import measure_missing

_TARGETS = 10
_MB = 1e6
_TIMES = {
    "model_s": "forward + backward, ms",
    "recorded_s": "the same, recorded",
    "relevance_s": "relevance, ms",
    "by_layer_s": "by layer, ms",
    "together_s": f"{_TARGETS} at once, ms",
}
_SIZES = {
    "model_peak_mb": "model's peak, MB",
    "added_peak_mb": "added, MB",
    "added_held_mb": "of that held, MB",
    "tape_mb": "tape, MB",
}
_GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""Blocks of a MB and more go back to the system when they are freed; glibc alone reads this."""
PARTS = tuple(_TIMES)


def measure_rows(options: ExplainOptions) -> int:
    """Measures and prints; returns how many rows are left when the time is over."""
    device = usual_device()
    sources = ("explain/core/*.py", "bench/models/explanations/cost.py")
    keep = not options.quick and device.type == "cuda"
    results = open_results("msdeform bench explain", options, device, measured=sources, keep=keep)
    times = 1 if options.quick else options.times
    cells = product(options.models, options.images, options.backends or usual_backends(device))
    planned = ((("explanation", *cell), partial(_measured_apart, *cell, device.type, times)) for cell in cells)
    left = measure_missing(planned, results, options.minutes)
    if rows := results.of("explanation"):
        print(aligned(explanation_table(rows), 3) + "\n")
    return left


def _measured_apart(*words: Any) -> Row:
    """A row that was measured in fresh processes: a peak of memory never falls."""
    row = _apart(measured, *words)
    name, image, backend, device, _ = words
    if device != "cuda":
        with mock.patch.dict(os.environ, _GIVING_BACK):
            held = _apart(measured, name, image, backend, device, 1)
        row["added_held_mb"] = held["added_peak_mb"]
    return row


def _apart(call: Callable[..., Row], *words: Any) -> Row:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *words).result()


def measured(name: str, image: str, backend: str, device: str, times: int) -> Row:
    """The row of one cell, but for `added_held_mb`."""
    height, width = map(int, image.split("x"))
    torch.manual_seed(0)
    model = uneven(create_model(name, attn_backend=backend)).to(device).eval()
    pixels = torch.randn(3, height, width, device=device)
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(times + 1):
        found["model_s"].append(own_pass(model, pixels))
    own = peak_mb(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    tape_mb = 0.0
    for _ in range(times + 1):
        tape_mb = explained(model, pixels, found)
    return {
        "kind": "explanation",
        "model": name,
        "image": image,
        "backend": backend,
        "times": times,
        "targets": _TARGETS,
        **{part: statistics.median(seconds[1:]) for part, seconds in found.items()},
        "tape_mb": tape_mb,
        "model_peak_mb": own,
        "added_peak_mb": max(0.0, peak_mb(device) - own),
    }


def uneven(model: Detector) -> Detector:
    """With offsets and weights that differ between queries, as no detector's do before it is trained."""
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            torch.nn.init.normal_(module.sampling_offsets.weight, std=0.02)
            torch.nn.init.normal_(module.attention_weights.weight, std=0.05)
    return model.requires_grad_(False)


def own_pass(model: Detector, pixels: torch.Tensor) -> float:
    """Seconds of the model's forward and backward pass for one logit."""

    def run() -> None:
        begins: list[torch.Tensor] = []
        with leaves(model, begins):
            y = model([pixels])["pred_logits"][0, 0, 0]
        torch.autograd.grad(y, begins)

    return timed(run, pixels.device.type)[1]


def explained(model: Detector, pixels: torch.Tensor, found: dict[str, list[float]]) -> float:
    """Times the recorded pass and what follows; returns the tape's MB."""
    device = pixels.device.type

    def recorded() -> Any:
        with leaves(model), capture(model, "*", gradients=True) as tape:
            logits = model([pixels])["pred_logits"][0]
        return tape, logits, tape.gradients(logits[0, 0], locations=False, heads=False)

    def note(part: str, call: Callable[[], Any], before: float = 0.0) -> Any:
        answer, seconds = timed(call, device)
        found[part].append(before + seconds)
        return answer

    tape, logits, gradients = note("recorded_s", recorded)
    c, making = timed(lambda: factors(tape, gradients), device)
    note("relevance_s", partial(relevance, c, [0]), making)
    note("by_layer_s", partial(relevance, c, [0], by_layer=True), making)
    del c
    gradients.clear()  # nor would a trace keep them with the next
    several = list(range(min(_TARGETS, len(logits))))
    shared = tape.gradients(logits[several, 0].sum(), locations=False, heads=False)
    note("together_s", lambda: relevance(factors(tape, shared), several))
    return tape.nbytes / _MB


def timed(call: Callable[[], Any], device: str) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    answer = call()
    wait()
    return answer, time.perf_counter() - start


def peak_mb(device: str) -> float:
    """Peak of memory of this process, or on a GPU of PyTorch's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / _MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MB


def explanation_table(rows: Sequence[Row]) -> list[Line]:
    """Seconds and MB of each cell."""
    columns: dict[str, Column] = {
        **fields("model", "image", "backend"),
        **{title: numbers(name, 1e-3) for name, title in _TIMES.items()},
        **{title: _size(name) for name, title in _SIZES.items()},
    }
    return lines_of(rows, columns)


def _size(name: str) -> Column:
    """A column of MB; a dash where a GPU's allocator, or an older row, has no such number."""
    return lambda row: number(row.get(name))
