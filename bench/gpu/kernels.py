"""What each kernel of a call takes, by PyTorch's profiler: of a forward and backward of the fused function.

The device's own clock times each launch, so that nothing of the host is in it. Inputs rotate through sets that exceed
the L2 cache, as in :mod:`.measure`. What fails its check against float64 gets no times.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from ...kernels.diagnostics.checks import DTYPES
from ..harness import records
from ..harness.records import Records, Row
from ..harness.tables import HAS_NONE, Line, aligned, number
from ..operator import cases, workloads
from ..operator.implementations import Implementation
from ..operator.inputs import input_sets
from ..operator.jobs import Kernels

PASSES = 20
_WARM_UP = 3
_LEAST_SHARE = 0.01  # of the whole, of a kernel that is listed
_NAME = 160  # characters kept of a name, which templates make longer than a page
NOTHING_RECORDED = "the profiler recorded nothing of the device: its counters may not be allowed here"
PREDICTIONS = records.RESULTS / "predictions.jsonl"
_NAMES = ("case", "dtype", "backend")
_OPERATOR = {"function": "fused_ms_deform_attn", "locations": "grid"}


def rows(job: Kernels, peer: Implementation, device: torch.device) -> Iterator[Row]:
    """One row: ``kernels`` has name, launches a pass, and the median microseconds a launch of each; ``total_us`` is the
    sum over a pass."""
    [row] = job.unmeasured(HAS_NONE if peer.fused is None else None)
    if peer.fused is not None:
        case = cases.find(job.case)
        sets = input_sets(case, DTYPES[job.dtype], device)
        work = workloads.operator(case, peer, sets, fused=True)
        checks = workloads.check(work, workloads.truth(case, sets[0], fused=True)).values()
        failure = next((check.failure for check in checks if check.failure is not None), None)
        row |= {"ours": peer.ours, "failure": failure}
        if row["failure"] is None:
            launches = _profiled(work, device)
            row |= summary(launches, PASSES) if launches else {"failure": NOTHING_RECORDED}
    yield row


def _profiled(work: workloads.Workload, device: torch.device) -> list[tuple[str, float]]:
    """Name and microseconds of every launch, on a CPU of every operator, of PASSES passes."""
    events = recorded(work.both, device, PASSES, warm_up=_WARM_UP).events() or ()
    if device.type == "cuda":
        return [
            (event.name, event.time_range.elapsed_us())
            for event in events
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation  # which spans kernels
        ]
    return [(event.name, event.self_cpu_time_total) for event in events]


def recorded(call: Callable[[int], object], device: torch.device, passes: int, warm_up: int) -> torch.profiler.profile:
    """The profiler's record of so many calls, after others that are not recorded."""
    on_gpu = device.type == "cuda"
    for i in range(warm_up):
        call(i)
    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    ) as record:
        for i in range(passes):
            call(i)
        if on_gpu:
            torch.cuda.synchronize(device)
    return record


def summary(launches: Iterable[tuple[str, float]], passes: int) -> Row:
    """Numbers of a row, from the name and microseconds of every launch in so many passes; the longest first."""
    times: dict[str, list[float]] = {}
    for name, us in launches:
        times.setdefault(name[:_NAME], []).append(us)
    total = sum(map(sum, times.values())) / passes
    lines = [
        {"name": name, "launches": len(taken) / passes, "median_us": statistics.median(taken)}
        for name, taken in sorted(times.items(), key=lambda item: -sum(item[1]))
        if sum(taken) / passes >= _LEAST_SHARE * total
    ]
    return {"total_us": total, "kernels": lines}


def table(found: Iterable[Row]) -> str:
    """Rows of kernels as aligned text."""
    lines = [("case", "dtype", "backend", "kernel", "launches", "us a launch")]
    for row in found:
        lead = (row["case"], row["dtype"], row["backend"])
        if row["failure"] is not None:
            lines.append((*lead, row["failure"][:60], "-", "failed"))
            continue
        for line in row["kernels"]:
            lines.append((*lead, line["name"][:60], number(line["launches"]), number(line["median_us"])))
        lines.append((*lead, "in all, of a pass", "", number(row["total_us"])))
    return aligned(lines, 4)


def beside_predictions(measured: Records, file: Path = PREDICTIONS) -> str | None:
    """A line for each prediction of something that was measured; None where there is none.

    A row of kind ``prediction`` names a part of a pass: ``forward`` or ``backward`` of the fused function, held against
    the operator's row, or a piece of a kernel's name, held against the profiled kernels. It is of one device.
    """
    lines: list[Line] = [(*_NAMES, "part", "predicted us", "measured us", "measured / predicted")]
    for row in records.read(file).of("prediction") if file.is_file() else ():
        here = [one for one in measured.rows if one.get("device") == row.get("device")]
        found = _measured(row, Records(here))
        if found is not None:
            expected = f"{number(row['low_us'])} to {number(row['high_us'])}"
            ratio = found / ((row["low_us"] + row["high_us"]) / 2)
            lines.append((*(row[name] for name in (*_NAMES, "part")), expected, number(found), f"{ratio:.2f}"))
    return aligned(lines, 4) if len(lines) > 1 else None


def _measured(row: Row, measured: Records) -> float | None:
    """Microseconds that were measured of what a prediction names."""
    cell, part = {name: row[name] for name in _NAMES}, row["part"]
    if part in ("forward", "backward"):
        cell |= {**_OPERATOR, "direction": part}
        return next((one["median_us"] for one in measured.of("operator") if cell.items() <= one.items()), None)
    for one in measured.of("kernels"):
        lines = [line for line in one["kernels"] or () if part.lower() in line["name"].lower()]
        if lines and cell.items() <= one.items():
            return sum(line["launches"] * line["median_us"] for line in lines)
    return None
