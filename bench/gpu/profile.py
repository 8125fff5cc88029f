"""Where the time of a detector or of its training step goes, by PyTorch's profiler."""

import torch

from ..harness.records import Row
from ..harness.tables import aligned, number
from ..models import speed
from ..operator import jobs
from .kernels import recorded

STEP = ", training step"
_MOST = 15  # lines
_PASSES = 3


def profile(what: str, backend: str, device: torch.device) -> Row:
    """Profiles what a name says in float32: a detector's forward pass of one image, or its training step of two
    (``MODEL, training step``); the images are small on a CPU.

    Returns a row with the kernels, on a CPU the operators, that took longest: name, calls and microseconds of a pass.
    """
    form = "" if device.type == "cuda" else speed.REDUCED
    job: jobs.Model | jobs.Training = jobs.Model(what, f"{form}published", backend, "float32", "eager", batch=1)
    if what.endswith(STEP):
        job = jobs.Training(what.removesuffix(STEP), form + speed.TRAINING, backend, "float32", batch=2)
    call, image = speed.call_of(job, device)
    record = recorded(call, device, _PASSES, warm_up=_PASSES)
    where = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [(event.key, event.count / _PASSES, getattr(event, where) / _PASSES) for event in record.key_averages()]
    total = sum(time for _, _, time in events)
    longest = sorted(events, key=lambda event: -event[2])[:_MOST]
    lines = [{"name": name, "calls": calls, "us": time} for name, calls, time in longest if time > 0]
    row = {"kind": "profile", "what": what, "backend": backend, "total_us": total, "longest": lines}
    return row | {"image": image}


def text(row: Row) -> str:
    """The lines of a profile."""
    lines = [("us", "share", "calls", f"of one pass of {row['what']}, {row['backend']}")]
    for line in row["longest"]:
        share = f"{line['us'] / row['total_us']:.1%}"
        lines.append((number(line["us"]), share, number(line["calls"]), line["name"][:100]))
    return aligned(lines, 0)
