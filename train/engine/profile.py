"""A few training steps under PyTorch's profiler."""

import itertools
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from .state import Training

_WARM_UP = 3
_LONGEST = 15  # operators told


def profile(training: Training, steps: int, out: Path | None) -> str:
    """Trains a few steps under PyTorch's profiler, after three to warm up; a table of stages and the longest operators.

    The trace, for chrome://tracing and Perfetto, goes to `out`, if given, as ``trace.json.gz``.
    """
    batches = iter(training.batches())
    for warm_up in itertools.islice(batches, _WARM_UP):
        training.step(warm_up)
    on_device = training.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    timer, done, images = training.step_timer, 0, 0
    with torch.profiler.profile(activities=activities, acc_events=True) as recorded:
        timer.start()
        for _ in range(steps):
            with timer.stage("data"):
                samples = next(batches, None)
            if samples is None:
                break
            result = training.step(samples)
            assert result is not None
            done, images = done + 1, images + int(result["images"])
        timer.stop()
    if done == 0:
        raise ValueError(
            f"profile: expected a run of more than {_WARM_UP} steps, which warm up, got {training.steps_done}"
        )
    order = "self_device_time_total" if on_device else "self_cpu_time_total"
    longest = recorded.key_averages().table(sort_by=order, row_limit=_LONGEST, max_name_column_width=60)
    lines = [timer.table(done, images), "", longest]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(out / "trace.json.gz"))
        lines.append(f"trace, for ui.perfetto.dev: {out / 'trace.json.gz'}")
    return "\n".join(lines)
