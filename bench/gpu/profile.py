"""Where the time of a detector or of its training step goes, by PyTorch's profiler."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType

from ..harness.records import Row
from ..harness.tables import aligned, number
from ..models import speed
from ..operator import jobs
from .kernels import NOTHING_RECORDED, recorded

STEP = ", training step"
_MOST = 15  # lines
_PASSES = 3


def profile(what: str, backend: str, device: torch.device) -> Row:
    """Profiles what a name says in float32: a detector's forward pass of one image, or its training step of two
    (``MODEL, training step``); the images are small on a CPU.

    Returns a row with the kernels, on a CPU the operators, that took longest: name, calls and microseconds of a pass;
    or with why there are none.
    """
    form = "" if device.type == "cuda" else speed.REDUCED
    job: jobs.Model | jobs.Training = jobs.Model(what, f"{form}published", backend, "float32", "eager", batch=1)
    if what.endswith(STEP):
        job = jobs.Training(what.removesuffix(STEP), form + speed.TRAINING, backend, "float32", batch=2)

    def numbers() -> Row:
        call, image = speed.call_of(job, device)
        record = recorded(call, device, _PASSES, warm_up=_PASSES)
        return {"image": image, **longest(record.key_averages(), device, _PASSES)}

    row: Row = {"kind": "profile", "what": what, "backend": backend, "total_us": None, "longest": [], "failure": None}
    return speed.guarded(row, numbers, device)


def longest(averages: Iterable[Any], device: torch.device, passes: int) -> Row:
    """Numbers of a row, from the profiler's sums by name over so many passes.

    On a GPU they are of the device's events alone: the profiler gives a kernel's time to the operator that launched it
    once more, and to the whole span of what someone named.
    """
    where = "self_cpu_time_total"
    if device.type == "cuda":
        where = "self_device_time_total"
        averages = [
            event for event in averages if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        ]
    events = [(event.key, event.count / passes, getattr(event, where) / passes) for event in averages]
    total = sum(time for _, _, time in events)
    most = sorted(events, key=lambda event: -event[2])[:_MOST]
    lines = [{"name": name, "calls": calls, "us": time} for name, calls, time in most if time > 0]
    return {"total_us": total, "longest": lines, "failure": None if lines else NOTHING_RECORDED}


def text(row: Row) -> str:
    """The lines of a profile."""
    lines = [("us", "share", "calls", f"of one pass of {row['what']}, {row['backend']}")]
    lines += [("-", "-", "-", row["failure"])] if row.get("failure") is not None else []
    for line in row["longest"]:
        share = f"{line['us'] / row['total_us']:.1%}"
        lines.append((number(line["us"]), share, number(line["calls"]), line["name"][:100]))
    return aligned(lines, 0)
