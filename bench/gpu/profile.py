"""Where the time of a detector or of its training step goes, by PyTorch's profiler."""

from collections.abc import Callable

import torch

from ...models.inference.image_size import Size
from ...models.zoo import create_model
from ..harness.records import Row
from ..harness.tables import aligned, number
from ..models import speed
from ..operator import jobs
from .kernels import recorded

STEP = ", training step"
_MOST = 15  # lines
_PASSES = 3


def profile(what: str, backend: str, device: torch.device) -> Row:
    """Profiles what a name says in float32: a detector's forward pass, or its training step (``MODEL, training step``).

    Returns a row with the kernels, on a CPU the operators, that took longest: name, calls and microseconds of a pass.
    """
    if what.endswith(STEP):
        method = speed.TRAINING if device.type == "cuda" else speed.REDUCED + speed.TRAINING
        job = jobs.Training(what.removesuffix(STEP), method, backend, "float32", batch=2)
        step, image = speed.training_step(job, device)
    else:
        step, image = _forward(what, backend, device)
    record = recorded(step, device, _PASSES, warm_up=_PASSES)
    where = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [(event.key, event.count / _PASSES, getattr(event, where) / _PASSES) for event in record.key_averages()]
    total = sum(time for _, _, time in events)
    longest = sorted(events, key=lambda event: -event[2])[:_MOST]
    lines = [{"name": name, "calls": calls, "us": time} for name, calls, time in longest if time > 0]
    row = {"kind": "profile", "what": what, "backend": backend, "total_us": total, "longest": lines}
    return row | {"image": image}


def _forward(model: str, backend: str, device: torch.device) -> tuple[Callable[[int], object], list[int]]:
    """Of one image, 800x1201 on a GPU and 64x96 elsewhere."""
    size = Size() if device.type == "cuda" else Size(64, 96)
    height, width = size.fit(426, 640)
    torch.manual_seed(0)
    detector = create_model(model, backbone_frozen=True, attn_backend=backend).to(device).eval()
    image = torch.randn(1, 3, height, width, device=device)

    def forward(_: int) -> object:
        with torch.no_grad():
            return detector(image)

    return forward, [height, width]


def text(row: Row) -> str:
    """The lines of a profile."""
    lines = [("us", "share", "calls", f"of one pass of {row['what']}, {row['backend']}")]
    for line in row["longest"]:
        share = f"{line['us'] / row['total_us']:.1%}"
        lines.append((number(line["us"]), share, number(line["calls"]), line["name"][:100]))
    return aligned(lines, 0)
