"""Where the time of a detector, of its training step, or of the operator goes, by PyTorch's profiler."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity

from ...models.inference.image_size import Size
from ...models.zoo import create_model
from ..harness.records import Row
from ..harness.tables import aligned, number
from ..models import speed
from ..operator import cases, implementations, jobs, workloads
from ..operator.inputs import make_inputs

STEP = ", training step"
_MOST = 15  # lines
_PASSES = 3


def profile(what: str, backend: str, device: torch.device) -> Row:
    """Profiles what a name says: a detector's forward pass, a detector's training step (``MODEL, training step``), or
    forward and backward of the fused function on one of :mod:`.cases`. In float32.

    Returns a row with the kernels, on a CPU the operators, that took longest: name, calls and microseconds of a pass.
    """
    if what in cases.CASES:
        return _row(what, backend, _operator(what, backend, device), device)
    if what.endswith(STEP):
        method = speed.TRAINING if device.type == "cuda" else speed.REDUCED + speed.TRAINING
        job = jobs.Training(what.removesuffix(STEP), method, backend, "float32", batch=2)
        step, image = speed.training_step(job, device)
        return _row(what, backend, lambda: step(0), device) | {"image": image}
    forward, image = _forward(what, backend, device)
    return _row(what, backend, forward, device) | {"image": image}


def _operator(case: str, backend: str, device: torch.device) -> Callable[[], object]:
    found = cases.find(case)
    inputs = make_inputs(found, torch.float32, device, 0)
    work = workloads.operator(found, implementations.find(backend, device), [inputs], fused=True)
    return lambda: work.both(0)


def _forward(model: str, backend: str, device: torch.device) -> tuple[Callable[[], object], list[int]]:
    """Of one image, 800x1201 on a GPU and 64x96 elsewhere."""
    size = Size() if device.type == "cuda" else Size(64, 96)
    height, width = size.fit(426, 640)
    torch.manual_seed(0)
    detector = create_model(model, backbone_frozen=True, attn_backend=backend).to(device).eval()
    image = torch.randn(1, 3, height, width, device=device)

    def forward() -> object:
        with torch.no_grad():
            return detector(image)

    return forward, [height, width]


def _row(what: str, backend: str, call: Callable[[], object], device: torch.device) -> Row:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    for _ in range(_PASSES):
        call()
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(_PASSES):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    where = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [(event.key, event.count / _PASSES, getattr(event, where) / _PASSES) for event in recorded.key_averages()]
    total = sum(time for _, _, time in events)
    longest = sorted(events, key=lambda event: -event[2])[:_MOST]
    lines = [{"name": name, "calls": calls, "us": time} for name, calls, time in longest if time > 0]
    return {"kind": "profile", "what": what, "backend": backend, "total_us": total, "longest": lines}


def text(row: Row) -> str:
    """The lines of a profile."""
    lines = [("us", "share", "calls", f"of one pass of {row['what']}, {row['backend']}")]
    for line in row["longest"]:
        share = f"{line['us'] / row['total_us']:.1%}"
        lines.append((number(line["us"]), share, number(line["calls"]), line["name"][:100]))
    return aligned(lines, 0)
