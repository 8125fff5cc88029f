"""Where the time of a pass goes: the sums of PyTorch's profiler, as a device gives them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from msdeform.bench.gpu import kernels, profile
from msdeform.bench.operator.cases import CASES, Case
from msdeform.bench.operator.implementations import Implementation
from msdeform.bench.operator.jobs import Kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def average(key: str, where: DeviceType, us: float, **more: Any) -> SimpleNamespace:
    times = {"self_device_time_total": us, "self_cpu_time_total": 7.0}
    return SimpleNamespace(key=key, count=4, device_type=where, **({"is_user_annotation": False} | times | more))


def test_time_of_the_device_is_counted_once() -> None:
    averages = [
        average("aten::conv2d", DeviceType.CPU, 300.0),  # what it launched, once more
        average("implicit_gemm", DeviceType.CUDA, 300.0),
        average("forward_kernel", DeviceType.CUDA, 100.0),
        average("Optimizer.step#AdamW.step", DeviceType.CUDA, 350.0, is_user_annotation=True),  # a span
    ]
    found = profile.longest(averages, CUDA, passes=2)
    assert found == {
        "total_us": 200.0,
        "longest": [
            {"name": "implicit_gemm", "calls": 2.0, "us": 150.0},
            {"name": "forward_kernel", "calls": 2.0, "us": 50.0},
        ],
        "failure": None,
    }
    row = {"what": "a model", "backend": "triton", **found}
    assert "75.0%" in profile.text(row)
    on_cpu = profile.longest(averages[:1], CPU, passes=2)
    assert (on_cpu["total_us"], on_cpu["longest"][0]["name"]) == (3.5, "aten::conv2d")


def test_a_profiler_that_sees_no_device_is_a_failure() -> None:
    found = profile.longest([average("aten::conv2d", DeviceType.CPU, 0.0)], CUDA, passes=2)
    assert found == {"total_us": 0, "longest": [], "failure": kernels.NOTHING_RECORDED}
    assert "recorded nothing" in profile.text({"what": "a model", "backend": "triton", **found})


def test_a_detector_and_its_step_are_profiled() -> None:
    for what in ("deformable_detr_tiny", f"deformable_detr_tiny{profile.STEP}"):
        row = profile.profile(what, "reference", CPU)
        assert row["failure"] is None
        assert sum(line["us"] for line in row["longest"]) <= row["total_us"]
        assert profile.text(row).count("\n") == len(row["longest"])


def test_kernels_are_the_devices_events_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the profiler's record of a device."""
    monkeypatch.setitem(CASES, "small", Case("small", ((6, 5), (3, 2)), B=1, Q=7, H=2, D=4))

    def event(name: str, where: DeviceType, us: float, named: bool = False) -> SimpleNamespace:
        span = SimpleNamespace(elapsed_us=lambda: us)
        return SimpleNamespace(name=name, device_type=where, time_range=span, is_user_annotation=named)

    from msdeform import fused_ms_deform_attn

    recorded = [event("cudaLaunchKernel", DeviceType.CPU, 9.0), event("a span", DeviceType.CUDA, 90.0, named=True)]
    events = [*recorded, *[event("Memset (Device)", DeviceType.CUDA, 2.0)] * 20]
    monkeypatch.setattr(kernels, "recorded", lambda *_, **__: SimpleNamespace(events=lambda: events))
    real = kernels._profiled
    monkeypatch.setattr(kernels, "_profiled", lambda work, device: real(work, CUDA))
    fused = Implementation("other", fused=lambda *rest: fused_ms_deform_attn(*rest, backend="reference"), ours=True)
    job = Kernels("small", "float32", "other")
    [row] = kernels.rows(job, fused, CPU)
    assert row["kernels"] == [{"name": "Memset (Device)", "launches": 1.0, "median_us": 2.0}]
    del events[2:]
    [row] = kernels.rows(job, fused, CPU)
    assert (row["failure"], row["kernels"]) == (kernels.NOTHING_RECORDED, None)
