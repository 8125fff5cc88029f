"""How long one call takes, beside a baseline, and how much memory it needs.

Call and baseline alternate, so that whatever else the machine does slows both: their ratio holds where their times do
not. On a GPU, events bracket each call on the device, after the device has been kept busy long enough for the host to
run ahead: that is the time of the kernels alone. A second, dispatch-inclusive figure is the wall time of a row of calls
without waiting in between, which is what a loop that is bound by its launches sees. On a CPU there is only wall time.
Inputs rotate through sets that together exceed the L2 cache twice, so that no call finds the last one's lines.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

Call = Callable[[int], object]

_WARM_UP = 3
_LEAST = 10  # calls
_MOST = 200
_BATCH = 5  # calls enqueued behind one busy wait
_CYCLES_A_SECOND = 2e9  # no lower than any GPU's clock, so that the wait is long enough
_LONGEST_WAIT = 0.02  # seconds
_MOST_SETS = 8
_RESAMPLES = 1000
_NOISY_SPREAD = 0.3  # of the median, between its 20th and 80th percentile
_NOISY_DRIFT = 0.1  # of the median, between the first and the second half


@dataclass(frozen=True)
class Timing:
    """Microseconds a call; `dispatch_us` is None on a CPU, where it would be the same."""

    median_us: float
    p20_us: float
    p80_us: float
    median_low_us: float
    """95% interval of the median, by resampling"""
    median_high_us: float
    dispatch_us: float | None
    calls: int
    noisy: str | None
    """what makes the times doubtful, or None"""


@dataclass(frozen=True)
class Ratio:
    """How many times as long as the baseline a call takes: the median over neighbouring pairs, its 95% interval."""

    ratio: float
    ratio_low: float
    ratio_high: float
    baseline_us: float


def sets_past_cache(tensors: Iterable[Tensor], device: torch.device) -> int:
    """How many sets of inputs like these exceed the device's L2 cache twice; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_SETS, max(2, -(-2 * cache // max(size, 1))))


def time_call(call: Call, device: torch.device, seconds: float) -> Timing:
    """Median and spread of ``call(i)``, i counting up, over about `seconds` or 10 to 200 calls."""
    times, dispatch = _alternate([call], device, seconds)
    return summary(times[0], dispatch)


def time_pair(call: Call, baseline: Call, device: torch.device, seconds: float) -> tuple[Timing, Ratio]:
    """The same with a baseline in alternation, each for half of the time."""
    (times, others), dispatch = _alternate([call, baseline], device, seconds)
    return summary(times, dispatch), paired(times, others)


def time_in_turn(calls: Sequence[Call], device: torch.device, seconds: float) -> list[list[float]]:
    """Microseconds of each of several calls, which take turns; each for its share of `seconds`."""
    return _alternate(calls, device, seconds)[0]


def paired(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """The ratio of times that were taken in turn."""
    ratios = np.asarray(times) / np.asarray(baseline)
    low, high = interval(ratios)
    return Ratio(float(np.median(ratios)), low, high, statistics.median(baseline))


def interval(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95% interval of the median, by resampling; the same for the same samples."""
    values = np.asarray(samples)
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), (0.025, 0.975))
    return float(low), float(high)


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


def saved_memory_mb(forward: Callable[[], Tensor]) -> float:
    """What a forward keeps for its backward: distinct storages, inputs included, in MB (10^6 bytes)."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()  # held, so that no storage is freed and its address taken by another
    del output
    return sum(storages.values()) / 1e6


def copy_bandwidth(device: torch.device) -> float | None:
    """Bytes a second, read and written, of a plain copy that no cache holds; None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / time_call(lambda i: target.copy_(source), device, seconds=0.05).median_us * 1e6


def _alternate(calls: Sequence[Call], device: torch.device, seconds: float) -> tuple[list[list[float]], float | None]:
    """Microseconds of each call, taken in turn, and the dispatch-inclusive time of the first."""
    for call, i in product(calls, range(_WARM_UP)):
        call(i)
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _alternate_on_gpu(calls, seconds)
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < _LEAST or (len(times[0]) < _MOST and time.perf_counter() < end):
        i = len(times[0])
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call(i)
            taken.append((time.perf_counter() - start) * 1e6)
    return times, None


def _alternate_on_gpu(calls: Sequence[Call], seconds: float) -> tuple[list[list[float]], float]:
    costs = [_dispatch(call) for call in calls]
    dispatch = sum(inclusive for _, inclusive in costs)
    rounds = int(min(_MOST, max(_LEAST, seconds / dispatch)))
    times: list[list[float]] = [[] for _ in calls]
    while len(times[0]) < rounds:
        for call, taken, (enqueued, _) in zip(calls, times, costs, strict=True):
            events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_BATCH)]
            # half as long again as the host needs to enqueue a batch
            torch.cuda._sleep(int(min(_LONGEST_WAIT, 1.5 * _BATCH * enqueued) * _CYCLES_A_SECOND))
            for i, (before, after) in enumerate(events, len(taken)):
                before.record()
                call(i)
                after.record()
            torch.cuda.synchronize()
            taken += [before.elapsed_time(after) * 1e3 for before, after in events]
    return times, costs[0][1] * 1e6


def _dispatch(call: Call) -> tuple[float, float]:
    """Seconds to enqueue a call, and those until it is done, in a row of calls."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(_LEAST):
        call(i)
    enqueued = (time.perf_counter() - start) / _LEAST
    torch.cuda.synchronize()
    return enqueued, (time.perf_counter() - start) / _LEAST


def summary(times: Sequence[float], dispatch_us: float | None = None) -> Timing:
    """Median, spread, and whether either is to be trusted, of times in microseconds in the order they were taken."""
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    median, half = statistics.median(times), len(times) // 2
    spread = (fifths[3] - fifths[0]) / median
    drift = abs(statistics.median(times[:half]) - statistics.median(times[half:])) / median
    noisy = None
    if spread > _NOISY_SPREAD:
        noisy = f"the middle 60% of the times spread over {spread:.0%} of their median"
    elif drift > _NOISY_DRIFT:
        noisy = f"the two halves of the run differ by {drift:.0%}"
    return Timing(median, fifths[0], fifths[3], *interval(times), dispatch_us, len(times), noisy)
