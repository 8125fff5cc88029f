"""Where the time of a detector's forward pass goes, by PyTorch's profiler."""

import torch
from torch.profiler import ProfilerActivity

from ..models.images import Size
from ..models.zoo import create_model
from .records import Row
from .tables import aligned, number

_MOST = 15  # lines
_PASSES = 3


def profile(model: str, backend: str, device: torch.device) -> Row:
    """Profiles a forward pass of one image, 800x1201 on a GPU and 64x96 elsewhere.

    Returns a row with the kernels, on a CPU the operators, that took longest: name, calls and microseconds of a pass.
    """
    size = Size() if device.type == "cuda" else Size(64, 96)
    height, width = size.fit(426, 640)
    torch.manual_seed(0)
    detector = create_model(model, backbone_frozen=True, attn_backend=backend).to(device).eval()
    image = torch.randn(1, 3, height, width, device=device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.no_grad():
        for _ in range(_PASSES):
            detector(image)
        with torch.profiler.profile(activities=activities) as recorded:
            for _ in range(_PASSES):
                detector(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    where = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [(event.key, event.count / _PASSES, getattr(event, where) / _PASSES) for event in recorded.key_averages()]
    total = sum(time for _, _, time in events)
    longest = sorted(events, key=lambda event: -event[2])[:_MOST]
    lines = [{"name": name, "calls": calls, "us": time} for name, calls, time in longest if time > 0]
    image_size = [height, width]
    return {
        "kind": "profile",
        "what": model,
        "backend": backend,
        "image": image_size,
        "total_us": total,
        "longest": lines,
    }


def text(row: Row) -> str:
    """The lines of a profile."""
    lines = [("us", "share", "calls", f"of one pass of {row['what']}, {row['backend']}")]
    for line in row["longest"]:
        share = f"{line['us'] / row['total_us']:.1%}"
        lines.append((number(line["us"]), share, number(line["calls"]), line["name"][:100]))
    return aligned(lines, 0)
