"""How long one call takes, and how much memory it needs at most.

On a GPU, events bracket each call on the device, after the device has been kept busy long enough for the host to run
ahead: that is the time of the kernels alone. A second, dispatch-inclusive figure is the wall time of a row of calls
without waiting in between, which is what a loop that is bound by its launches sees. On a CPU there is only wall time.
Inputs rotate through sets that together exceed the L2 cache twice, so that no call finds the last one's lines.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_WARM_UP = 3
_LEAST = 10  # calls
_MOST = 200
_BATCH = 5  # calls enqueued behind one busy wait
_CYCLES_A_SECOND = 2e9  # no lower than any GPU's clock, so that the wait is long enough
_LONGEST_WAIT = 0.02  # seconds
_MOST_SETS = 8


@dataclass(frozen=True)
class Timing:
    """Microseconds a call; `dispatch_us` is None on a CPU, where it would be the same."""

    median_us: float
    p20_us: float
    p80_us: float
    dispatch_us: float | None
    calls: int


def sets_past_cache(tensors: Iterable[Tensor], device: torch.device) -> int:
    """How many sets of inputs like these exceed the device's L2 cache twice; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_SETS, max(2, -(-2 * cache // max(size, 1))))


def time_call(call: Callable[[int], object], device: torch.device, seconds: float) -> Timing:
    """Median and spread of ``call(i)``, i counting up, over about `seconds` or 10 to 200 calls."""
    for i in range(_WARM_UP):
        call(i)
    return _time_on_gpu(call, device, seconds) if device.type == "cuda" else _time_on_cpu(call, seconds)


def peak_memory_mb(call: Callable[[int], object], device: torch.device) -> float | None:
    """Memory that one call allocates at its height, beyond what was there, in MB (10^6 bytes); None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(0)
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def _time_on_cpu(call: Callable[[int], object], seconds: float) -> Timing:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() < end):
        start = time.perf_counter()
        call(len(times))
        times.append((time.perf_counter() - start) * 1e6)
    return _summary(times, None)


def _time_on_gpu(call: Callable[[int], object], device: torch.device, seconds: float) -> Timing:
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(_LEAST):
            call(i)
        enqueued = (time.perf_counter() - start) / _LEAST
        torch.cuda.synchronize()
        dispatch = (time.perf_counter() - start) / _LEAST
        calls = int(min(_MOST, max(_LEAST, seconds / dispatch)))
        # half as long again as the host needs to enqueue a batch
        wait = int(min(_LONGEST_WAIT, 1.5 * _BATCH * enqueued) * _CYCLES_A_SECOND)

        times: list[float] = []
        while len(times) < calls:
            events = [
                (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(_BATCH)
            ]
            torch.cuda._sleep(wait)
            for i, (before, after) in enumerate(events):
                before.record()
                call(len(times) + i)
                after.record()
            torch.cuda.synchronize()
            times += [before.elapsed_time(after) * 1e3 for before, after in events]
    return _summary(times, dispatch * 1e6)


def _summary(times: list[float], dispatch_us: float | None) -> Timing:
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), fifths[0], fifths[3], dispatch_us, len(times))
