"""The CPU backend gives the same bits for any number of threads and in any batch, and uses the threads it may."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="the CPU backend needs llvmlite")

from msdeform.kernels import call_cache
from msdeform.kernels.cpu import launch
from msdeform.kernels.cpu.points import Kind, level_table
from msdeform.kernels.cpu.pool import Pool
from msdeform.kernels.diagnostics.checks import Case, evaluate, make_inputs

# an odd number of points, levels narrower than a tile and of a single pixel
BASE = Case(B=1, Q=90, H=1, D=32, P=3, sizes=((9, 7), (5, 5), (2, 1), (1, 1)))
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
QUICK = [
    (torch.float32, None, 32),
    (torch.float32, 4, 8),
    (torch.float64, 2, 71),
    (torch.bfloat16, None, 71),
    (torch.float16, 4, 32),
]
QUICK_SUMS = [(torch.float32, 4), (torch.float64, None), (torch.bfloat16, 4)]
KINDS = [
    pytest.param(*kind, marks=[] if kind in QUICK else [pytest.mark.slow], id="-".join(str(part) for part in kind))
    for kind in itertools.product(DTYPES, [None, 2, 4], [8, 32, 71])
]


@pytest.fixture(autouse=True)
def thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads each call took. Any call is worth a thread, and all threads of one begin together."""
    widths: list[int] = []
    run = launch.POOL.run

    def together(function: Callable[[int], None], address: int, threads: int, memory: Any) -> None:
        barrier = threading.Barrier(threads)

        def begin(address: int) -> None:
            barrier.wait(60)
            function(address)

        run(begin, address, threads, memory)
        widths.append(threads)

    monkeypatch.setattr(launch, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(launch.POOL, "run", together)
    return widths


def results(case: Case, tensors: tuple[Tensor, ...], threads: int) -> dict[str, Tensor]:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(9)
    grad_output = torch.randn(case.Q, case.H * case.D, generator=generator).expand(tensors[0].shape[0], -1, -1)
    return evaluate(case, tensors, grad_output, "cpu")


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor], which: str) -> None:
    for name, tensor in expected.items():
        assert tensor.isfinite().all()
        assert torch.equal(found[name], tensor), f"{name}, {which}"


@pytest.mark.parametrize(("dtype", "coordinates", "D"), KINDS)
def test_the_same_bits_for_any_number_of_threads(
    dtype: torch.dtype, coordinates: int | None, D: int, widths: list[int]
) -> None:
    for B, H in ((1, 1), (3, 2)):
        case = replace(BASE, B=B, H=H, D=D, dtype=dtype, coordinates=coordinates)
        tensors = make_inputs(case)
        one = results(case, tensors, 1)
        for threads in (2, 3, 4, 16):
            widths.clear()
            assert_same_bits(results(case, tensors, threads), one, f"B={B}, H={H}, {threads} threads")
            # with fewer heads than threads a head is shared out, and each head to as many
            assert widths == [threads, min(threads, B * H * -(-threads // (B * H)))]
        for image in range(B if B > 1 else 0):
            alone = replace(case, B=1)
            own = tuple(tensor[image : image + 1] for tensor in tensors)
            expected = {name: tensor[image : image + 1] for name, tensor in one.items()}
            assert_same_bits(results(alone, own, 1), expected, f"image {image} alone")
            assert_same_bits(results(alone, own, 16), expected, f"image {image} alone, 16 threads")


@pytest.mark.parametrize(
    ("dtype", "coordinates"),
    [
        pytest.param(*kind, marks=[] if kind in QUICK_SUMS else [pytest.mark.slow])
        for kind in itertools.product(DTYPES, [None, 4])
    ],
    ids=str,
)
def test_the_same_bits_whether_threads_add_up_in_their_own_memory(
    dtype: torch.dtype, coordinates: int | None, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that share an image do where many points fall on a pixel; those of 16-bit values always."""
    summed = []
    emit = launch.backward.emit
    monkeypatch.setattr(
        launch.backward,
        "emit",
        lambda *arguments, **which: summed.append(which["summed"]) or emit(*arguments, **which),  # type: ignore[func-returns-value]
    )
    rounded = dtype.itemsize == 2
    for H in (2, 5):
        case = replace(BASE, B=2, H=H, dtype=dtype, coordinates=coordinates)
        tensors = make_inputs(case)
        one = results(case, tensors, 1)
        for density in (0, 10**9):
            monkeypatch.setattr(launch, "_DENSE", density)
            launch._backward.cache_clear()
            call_cache.forget()
            summed.clear()
            assert_same_bits(results(case, tensors, 4), one, f"H={H}, {density} additions to a pixel")
            assert summed == [rounded or density == 0]


@pytest.mark.parametrize("coordinates", [None, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_whether_pixels_are_fetched_ahead(
    dtype: torch.dtype, coordinates: int | None, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(BASE, B=2, H=3, dtype=dtype, coordinates=coordinates)
    tensors = make_inputs(case)
    one = results(case, tensors, 1)
    row_bytes = case.H * case.D * dtype.itemsize
    for size, levels in ((0, 4), (25 * row_bytes, 2), (2**40, 0)):
        monkeypatch.setattr(launch, "_LARGE", size)
        launch._ahead.cache_clear()
        for threads in (1, 4):
            assert_same_bits(results(case, tensors, threads), one, f"from {size} bytes, {threads} threads")
        assert launch._ahead((9, 7, 5, 5, 2, 1, 1, 1), case.P, row_bytes) == (0, levels * case.P)
    launch._ahead.cache_clear()


def test_large_levels_wherever_they_come_are_fetched_ahead() -> None:
    assert launch._ahead((100, 134, 50, 67, 25, 34, 13, 17), 4, 1024) == (0, 8)
    assert launch._ahead((13, 17, 25, 34, 50, 67, 100, 134), 3, 1024) == (6, 12)
    assert launch._ahead((32, 32), 4, 1024) == (0, 4)
    assert launch._ahead((32, 31), 4, 1024) == (0, 0)


@pytest.mark.parametrize("points", [1, 5])
def test_points_that_fill_a_vector_up_touch_no_pixel(points: int, widths: list[int]) -> None:
    """They are in no level, so no thread's pixels are theirs: another thread may be adding to the same ones."""
    case = replace(BASE, Q=800, D=8, P=points, sizes=((9, 9), (3, 4), (2, 2)), coordinates=None)
    tensors = make_inputs(case)
    one = results(case, tensors, 1)
    for attempt in range(10):
        assert_same_bits(results(case, tensors, 4), one, f"attempt {attempt}")


def test_a_call_without_the_threads_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may have a limit on them, and Python starts none at exit."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tensors = make_inputs(BASE)
    expected = results(BASE, tensors, 1)
    monkeypatch.setattr(launch, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(launch, "POOL", Pool())
    monkeypatch.setattr(threading.Thread, "start", start)
    assert_same_bits(results(BASE, tensors, 3), expected, "without threads")
    assert launch.POOL._tasks.empty(), "nobody would ever let go of their memory"


def test_levels_beyond_the_last_have_no_pixels() -> None:
    kind = Kind("float32", "float32", "float32", "float32", "float32", D=8, L=1, P=1, coordinates=0)
    assert kind.padded_levels == 4
    sizes = memoryview(level_table((5, 7), kind, 32)).cast("q")[-3 * 4 :]
    assert list(sizes) == [0, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0]


@pytest.mark.parametrize("width", [2, 2**24 + 1, 2**24 + 5, 2**30 + 97, 2**31 - 1])
def test_very_wide_levels_are_not_left(width: int) -> None:
    """float32 does not have every pixel's number from 2**24 on."""
    kind = Kind("float32", "float32", "float32", "float32", "float32", D=8, L=1, P=1, coordinates=0)
    last_x = memoryview(level_table((1, width), kind, 32)).cast("f")[2 * kind.padded]
    assert width - 2 - 128 <= last_x <= width - 2


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_have_the_same_bits_too(number: float, widths: list[int]) -> None:
    """Threads that share a head pass over the pixels of others in the exact way, too."""
    case = replace(BASE, D=8, coordinates=None)
    for argument in range(3):
        tensors = make_inputs(case)
        tensors[argument].flatten()[:: max(7, tensors[argument].numel() // 5)] = number
        one = results(case, tensors, 1)
        if argument != 1 or math.isnan(number):  # an infinite location lies outside
            assert any(not tensor.isfinite().all() for tensor in one.values())
        for threads in (2, 5):
            found = results(case, tensors, threads)
            for name, tensor in one.items():
                assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name


def test_small_calls_stay_in_their_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    run = launch.POOL.run
    monkeypatch.setattr(
        launch.POOL,
        "run",
        lambda *arguments: widths.append(arguments[2]) or run(*arguments),  # type: ignore[func-returns-value]
    )
    case = replace(BASE, Q=20, D=8, coordinates=None)
    results(case, make_inputs(case), 4)
    assert widths == [1, 1]
    widths.clear()
    case = replace(case, Q=2000)  # of 12 points each
    results(case, make_inputs(case), 4)
    assert min(widths) > 1


def test_threads_follow_torch_between_calls(widths: list[int]) -> None:
    case = replace(BASE, D=8, coordinates=None)
    tensors = make_inputs(case)
    one = results(case, tensors, 1)
    for threads in (4, 1, 3, 2):
        widths.clear()
        assert_same_bits(results(case, tensors, threads), one, f"{threads} threads")
        assert widths == [threads, threads]


def test_the_pool_waits_for_its_threads() -> None:
    pool, done = Pool(), []
    begun = threading.Barrier(3)

    def slow(address: int) -> None:
        begun.wait(60)
        if threading.current_thread().name.startswith("msdeform"):
            time.sleep(0.1)
        done.append(address)

    pool.run(slow, 7, 3, None)
    assert done == [7, 7, 7]


@pytest.mark.parametrize("sizes", [(9, 7, 17, 20), (8, 8), (1, 30, 30, 1)], ids=str)
def test_every_query_comes_once(sizes: tuple[int, ...]) -> None:
    """Queries that are pixels come in tiles, others as they are."""
    pixels = sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True))
    assert sorted(launch._order(sizes, pixels)) == list(range(pixels))
    assert list(launch._order(sizes, pixels + 1)) == list(range(pixels + 1))
    if sizes[0] == 9:
        assert list(launch._order(sizes, pixels)) != list(range(pixels))
