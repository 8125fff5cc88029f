"""Medians, spread and the number of calls; what a GPU measures is proved on a GPU."""

import contextlib
import time

import numpy as np
import pytest
import torch

from msdeform.bench.harness import measure

CPU = torch.device("cpu")


def test_median_and_spread() -> None:
    timing = measure.summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (timing.median_us, timing.p20_us, timing.p80_us, timing.calls) == (3.5, 2.0, 5.0, 6)
    assert timing.median_low_us <= 3.5 <= timing.median_high_us


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([10.0, 10.1, 9.9, 10.0] * 5, None),
        ([10.0, 20.0, 10.0, 15.0] * 5, "the middle 60% of the times spread over"),
        ([10.0] * 10 + [12.0] * 10, "the two halves of the run differ by 18%"),
    ],
)
def test_a_noisy_run_says_so(times: list[float], said: str | None) -> None:
    noisy = measure.summary(times).noisy
    assert (noisy is None) == (said is None)
    assert said is None or (noisy or "").startswith(said)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = measure.interval(generator.exponential(size=40))
        inside += low <= np.log(2) <= high  # the true median
    assert 0.90 <= inside / 200 <= 0.99
    assert measure.interval([1.0, 2.0, 3.0]) == measure.interval([1.0, 2.0, 3.0])


def test_a_ratio_of_neighbours_holds_while_the_machine_changes_its_speed() -> None:
    generator = np.random.default_rng(0)
    speed = np.repeat(generator.uniform(1, 5, size=10), 10)  # the machine, in turns of ten calls
    noise = generator.normal(1, 0.02, size=(2, 100))
    ratio = measure.paired(3 * speed * noise[0], 2 * speed * noise[1])
    assert ratio.ratio_low < 1.5 < ratio.ratio_high
    assert ratio.ratio_high - ratio.ratio_low < 0.03
    assert measure.summary(list(3 * speed)).noisy is not None


def test_a_pair_alternates() -> None:
    seen: list[str] = []
    one, other = (lambda i: seen.append(f"a{i}")), (lambda i: seen.append(f"b{i}"))
    timing, ratio = measure.time_pair(one, other, CPU, seconds=0.0)
    assert seen[6:10] == ["a0", "b0", "a1", "b1"]
    assert timing.calls == 10
    assert ratio.ratio_low <= ratio.ratio <= ratio.ratio_high


def test_saved_memory_counts_each_storage_once() -> None:
    matrix = torch.ones(1000, 250, requires_grad=True)  # a megabyte
    assert measure.saved_memory_mb(lambda: matrix * matrix) == pytest.approx(1.0)
    assert measure.saved_memory_mb(lambda: matrix.exp() * matrix) == pytest.approx(2.0)
    assert measure.saved_memory_mb(lambda: matrix + 1) == 0.0


def test_a_slow_call_is_timed_ten_times_and_measured_right() -> None:
    seen: list[int] = []

    def call(i: int) -> None:
        seen.append(i)
        time.sleep(0.004)

    timing = measure.time_call(call, CPU, seconds=0.0)
    assert timing.calls == 10
    assert seen == [0, 1, 2, *range(10)]  # the warm-up, then the calls
    assert 4000 <= timing.p20_us <= timing.median_us <= timing.p80_us < 100_000
    assert timing.dispatch_us is None


def test_a_fast_call_stops_at_two_hundred() -> None:
    assert measure.time_call(lambda i: None, CPU, seconds=60.0).calls == 200


def test_a_cpu_needs_one_set_and_tells_no_memory() -> None:
    assert measure.sets_past_cache([torch.empty(10)], CPU) == 1
    assert measure.peak_memory_mb(lambda i: None, CPU) is None


def test_sets_exceed_the_cache_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        L2_cache_size = 4000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    cuda = torch.device("cuda")
    assert measure.sets_past_cache([torch.empty(500), torch.empty(250)], cuda) == 3  # 3,000 bytes a set
    assert measure.sets_past_cache([torch.empty(5000)], cuda) == 2
    assert measure.sets_past_cache([torch.empty(1)], cuda) == 8


def test_the_order_of_work_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the device: each call between its own two events, batches behind a wait, then the median."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, other: "Event") -> float:
            return 0.25  # milliseconds

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("wait" if isinstance(cycles, int) else "?"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timing = measure.time_call(lambda i: log.append("call"), torch.device("cuda"), seconds=0.0)
    assert (timing.median_us, timing.calls) == (250.0, 10)
    assert timing.dispatch_us is not None
    batch = ["wait", *["event", "call", "event"] * 5, "synchronize"]
    assert log == [*["call"] * 3, "synchronize", *["call"] * 10, "synchronize", *batch, *batch]


def test_a_cpu_has_no_bandwidth_to_compare_with() -> None:
    assert measure.copy_bandwidth(CPU) is None


@pytest.mark.gpu
def test_time_on_the_device() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    matrix = torch.randn(4096, 4096, device=device)
    one = measure.time_call(lambda i: matrix @ matrix, device, seconds=0.1)
    two = measure.time_call(lambda i: matrix @ (matrix @ matrix), device, seconds=0.1)
    assert 1.5 < two.median_us / one.median_us < 2.5
    assert measure.peak_memory_mb(lambda i: matrix + 1, device) == pytest.approx(67.1, abs=3)
