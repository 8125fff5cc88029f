"""The simulated first cache: against caches walked by hand, every order complete, and what it says of a launch."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from msdeform.bench import cache, lru, orders
from msdeform.bench.cases import DEFORMABLE_DETR, Case, find
from msdeform.bench.looks import Look, drawn, mosaic, trained
from msdeform.bench.multiprocessor import IDLE, Launch, Machine, block_queries, corners, count, stream, wave_bytes
from msdeform.bench.orders import NOBODY, ORDERS
from msdeform.cli import main
from msdeform.train.config import Batch, Compute, Input, Loading, Model, Run, Seeing, Source, TrainOptions
from msdeform.train.loop import train
from msdeform.train.synth import SynthOptions, make_dataset
from tests.conftest import INTERPRETING

Array = np.ndarray


def walked(rows: Array, rows_per_line: int, capacity: int) -> list[bool]:
    """Hits of a least-recently-used cache with sectors, an access at a time."""
    held: OrderedDict[int, set[int]] = OrderedDict()
    found = []
    for row in rows.tolist():
        line = row // rows_per_line
        found.append(row in held.get(line, ()))
        held.setdefault(line, set()).add(row)
        held.move_to_end(line)
        if len(held) > capacity:
            held.popitem(last=False)
    return found


def test_distances_by_hand() -> None:
    #            a  b  c  b  a  a  d  b
    lines = np.array([7, 3, 5, 3, 7, 7, 1, 3])
    never = lru.NEVER
    assert lru.stack_distances(lines).tolist() == [never, never, never, 1, 2, 0, never, 2]


def test_the_line_used_longest_ago_is_evicted() -> None:
    reads = np.array([0, 1, 0, 2, 0, 1])  # at capacity 2 the 2 evicts the 1, not the 0
    assert lru.hits(reads, 1, 2).tolist() == [False, False, True, False, True, False]
    assert lru.hits(reads, 1, 3).tolist() == [False, False, True, False, True, True]


def test_a_line_that_is_held_lacks_the_sectors_that_nobody_asked_for() -> None:
    # rows 0 and 1 share a line, 2 and 3, 4 and 5; two lines fit
    assert lru.hits(np.array([0, 1, 0, 1]), 2, 2).tolist() == [False, False, True, True]
    # the line comes back with row 1 alone: row 0 was lost with the line
    assert lru.hits(np.array([0, 2, 4, 1, 0, 1]), 2, 2).tolist() == [False, False, False, False, False, True]


@pytest.mark.parametrize("rows_per_line", [1, 2, 4])
@pytest.mark.parametrize(("n", "span", "capacity"), [(1, 3, 1), (2, 1, 1), (700, 40, 7), (1500, 300, 64)])
def test_hits_are_those_of_a_cache_walked_step_by_step(n: int, span: int, capacity: int, rows_per_line: int) -> None:
    reads = np.random.default_rng(n).integers(0, span, n)
    assert lru.hits(reads, rows_per_line, capacity).tolist() == walked(reads, rows_per_line, capacity)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("sizes", [DEFORMABLE_DETR, ((37, 41), (1, 19), (5, 1), (1, 1))])
def test_an_order_has_every_query_once(name: str, sizes: tuple[tuple[int, int], ...]) -> None:
    programs = ORDERS[name].programs(sizes, 32)
    assert programs.shape[1] == 32
    queries = np.sort(programs[programs != NOBODY])
    assert queries.tolist() == list(range(sum(h * w for h, w in sizes)))


def test_orders_by_hand() -> None:
    """Pixels of a level of 4 rows of 5: 0 to 4 above, 15 to 19 below."""
    assert orders.tiles(2, 2)(4, 5)[:12].tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, NOBODY, 9, NOBODY]
    assert orders.bands(3)(4, 5).tolist() == [0, 5, 10, 1, 6, 11, 2, 7, 12, 3, 8, 13, 4, 9, 14, 15, 16, 17, 18, 19]
    assert orders.morton(4, 5)[:8].tolist() == [0, 1, 5, 6, 2, 3, 7, 8]
    assert orders.hilbert(2, 2).tolist() == [0, 2, 3, 1]
    y, x = np.divmod(orders.hilbert(16, 16), 16)
    assert (np.abs(np.diff(y)) + np.abs(np.diff(x)) == 1).all(), "the curve goes from neighbour to neighbour"


def test_neighbours_lie_inside_their_level() -> None:
    sizes = ((2, 3), (1, 4))
    # two queries, a point a level: between the pixels 1, 2 and 4, 5, and left of a level one pixel high;
    # beyond the right edge, whose last two columns are 1 and 2 of the first level, and 8 and 9 of the second
    points = np.array([[[[2 / 3, 0.5]], [[-9.0, 0.5]]], [[[9.0, 0.5]], [[9.0, 0.5]]]])
    assert corners(points, sizes).tolist() == [[[1, 2, 4, 5], [6, 7, 6, 7]], [[1, 2, 4, 5], [8, 9, 8, 9]]]


def test_programs_that_run_together_take_turns() -> None:
    """Three programs of two queries and two points."""
    rows = np.arange(3 * 2 * 2 * 4).reshape(3, 2, 2, 4)
    rows[2, 1] = IDLE
    first, second, third = (rows[k].transpose(1, 2, 0) for k in range(3))  # by point, neighbour and query
    third = third[:, :, :1]
    # two at once: each begins when the one before it is half done, and the third when the first has ended
    two = [first[0], first[1], second[0], second[1], third[0], third[1]]
    assert stream(rows, 128, 2).tolist() == np.concatenate([part.ravel() for part in two]).tolist()
    # so many at once that all begin together
    many = [first[0], second[0], third[0], first[1], second[1], third[1]]
    assert stream(rows, 128, 6).tolist() == np.concatenate([part.ravel() for part in many]).tolist()


def small(locations: str = "grid") -> Look:
    return drawn(find("encoder-200x266", locations))  # type: ignore[arg-type]


def test_rows_are_those_of_a_head_of_a_sample() -> None:
    launch = Launch(small(), ORDERS["rows, heads fastest"], 4)
    rows = launch.rows(np.arange(16))
    assert rows.shape == (16, 32, 16, 4)
    assert [set(np.unique(rows[program] % 8)) for program in (0, 7, 8)] == [{0}, {7}, {0}]
    last = Launch(small(), ORDERS["rows"], 4)
    assert (last.rows(np.array([last.count - 1]))[0, -1] == IDLE).all()
    assert last.count == 8 * -(-last.look.points.shape[1] // 32)


@pytest.mark.parametrize("dtype", cache.DTYPES)
def test_a_tile_touches_fewer_lines_than_a_strip(dtype: str) -> None:
    wide = drawn(Case("wide", ((24, 134), (12, 67)), B=1, H=1))
    touched = {}
    for name in ("rows", "tiles 8x4", "bands of 4", "random"):
        launch = Launch(wide, ORDERS[name], cache.DTYPES[dtype].itemsize)
        programs = launch.rows(np.arange(launch.count))
        touched[name] = sum(len(np.unique(program[program != IDLE])) for program in programs)
    assert max(touched["tiles 8x4"], touched["bands of 4"]) < 0.8 * touched["rows"]
    assert touched["rows"] < 0.8 * touched["random"]


def test_a_cache_for_everything_misses_each_line_once() -> None:
    launch = Launch(small(), ORDERS["rows"], 4)
    machine = Machine(kb=1_000_000, sample=1)
    rows = launch.rows(np.arange(0, launch.count, 132))
    counted = count(launch, machine)
    assert counted.reads == (rows != IDLE).sum()
    assert counted.reads - counted.hits == len(np.unique(rows[rows != IDLE]))
    assert counted.hits_half == counted.hits
    less = count(launch, Machine(kb=20, sample=1))
    dealt = count(launch, Machine(kb=20, sample=1, dealt="random"))
    assert dealt.reads != less.reads or dealt.hits != less.hits
    assert less.hits_half < less.hits < counted.hits
    everything = launch.rows(np.arange(launch.count))
    assert wave_bytes(launch, Machine(resident=32)) == 128 * len(np.unique(everything[everything != IDLE]))


@pytest.mark.skipif(INTERPRETING, reason="programs are larger in the interpreter")
@pytest.mark.parametrize("dtype", cache.DTYPES)
@pytest.mark.parametrize("D", [16, 32, 64])
def test_programs_are_as_large_as_the_kernel_has_them(dtype: str, D: int) -> None:
    pytest.importorskip("triton")
    from msdeform.kernels.triton.launch import forward_parameters

    value = torch.empty(1, 20, 2, D, dtype=cache.DTYPES[dtype])
    points, weights = torch.empty(1, 9, 2, 1, 4, 2), torch.empty(1, 9, 2, 1, 4)
    assert block_queries(D, value.itemsize) == forward_parameters(value, None, points, weights)["BLOCK_Q"]


def test_times_are_those_of_the_missed_bytes() -> None:
    row = cache.simulated([small()], "bfloat16", "rows", Machine(sample=1))
    read = small().points[..., 0].size * 4 * 64
    assert row["l1_us"] == pytest.approx(1e6 * read / (132 * 128 * 1.755e9))
    assert row["l2_us"] == pytest.approx(1e6 * read * (1 - row["hit_rate"]) / 5.5e12)
    assert row["l2_bytes"] == pytest.approx(read * (1 - row["hit_rate"]))


def test_a_launch_too_small_for_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--case", "encoder-reduced", "--no-progress", "--sample", "1", "--dealt", "random"]
    assert main(["bench", "cache", *words]) == 1
    assert capsys.readouterr().err == (
        "msdeform bench cache: sample: expected more than 1, as these multiprocessors got no program at all\n"
    )
    # dealt in turn the first has one, and those without count for nothing
    assert main(["bench", "cache", *words[:3], "--sample", "132"]) == 0


def test_rows_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--case", "encoder-200x266", "--dtypes", "float32", "--orders", "rows", "tiles 8x4", "--no-progress"]
    assert main(["bench", "cache", *words, "--sample", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "1 of 132 multiprocessors of an H200, 4 programs at once on each, dealt in turn, 200 KB of L1" in printed.out
    assert printed.err == ""
    rows = [json.loads(line) for line in (tmp_path / "cache.jsonl").read_text().splitlines()]
    assert [(row["locations"], row["order"]) for row in rows] == [
        (place, order) for place in ("grid", "uniform") for order in ("rows", "tiles 8x4")
    ]
    strip, tile = rows[:2]
    assert strip["hit_rate"] < tile["hit_rate"]
    assert tile["idle"] > 0
    assert strip["command"].startswith("msdeform bench cache --case encoder-200x266")


def test_a_trained_encoder_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    make_dataset(SynthOptions(data, 2, 1, size=64, progress=False, workers=1))
    train(
        TrainOptions(
            source=Source(data=data),
            input=Input(image_size=64, augment="flip"),
            loading=Loading(workers=0),
            model=Model(model="deformable_detr_tiny", attn_backend="reference", backbone_weights="none"),
            batch=Batch(total_batch_size=2, max_steps=1),
            compute=Compute(device="cpu"),
            run=Run(out=run, dry_steps=0),
            seeing=Seeing(tensorboard=False, progress=False),
        )
    )
    picture = next((data / "val2017").glob("*.jpg"))
    (look,) = trained(run, picture)
    assert look.case == "deformable_detr_tiny, step 1"
    assert look.points.shape[1] == sum(h * w for h, w in look.sizes)
    # as the module is initialised, point p lies p + 1 pixels away
    extent = np.array([(w, h) for h, w in look.sizes])[:, None]
    where = (np.moveaxis(look.points, 3, -3) * extent)[0, 0]
    assert np.abs(where[:, 0, 1] - where[:, 0, 0]).max() == pytest.approx(1, abs=0.1)
    assert main(["bench", "cache", "--checkpoint", str(run), "--image", str(tmp_path / "no.jpg")]) == 1
    assert "no.jpg does not exist" in capsys.readouterr().err
    assert main(["bench", "cache", "--checkpoint", str(tmp_path / "no"), "--no-progress"]) == 1
    assert "no does not exist" in capsys.readouterr().err


def test_the_usual_image_is_as_wide_as_the_published_one() -> None:
    image = mosaic(256)
    assert tuple(image.shape) == (3, 800, 1066)
    assert image.dtype == torch.uint8
    assert not torch.equal(image[:, :256, :256], image[:, 256:512, :256])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--orders", "tiles 8x3"], "--orders: no order is called 'tiles 8x3'; did you mean tiles 8x"),
        (["--locations", "gird"], "--locations: no place is called 'gird'; did you mean grid?"),
        (["--dtypes", "bfloat"], "--dtypes: no dtype is called 'bfloat'; did you mean bfloat16"),
        (["--case", "encodr-800x1066-b2"], "--case: no case is called 'encodr-800x1066-b2'; did you mean encoder-800"),
        (["--case", "decoder-200x266"], "--case: expected an encoder's, whose queries are the pixels, got decoder-200"),
        (["--l1-kb", "2000"], "--l1-kb: expected 1 to 256, got 2000"),
        (["--resident", "0"], "--resident: expected 1 to 32, got 0"),
        (["--sample", "133"], "--sample: expected 1 to 132, got 133"),
        (["--dealt", "randm"], "--dealt: no way to deal is called 'randm'; did you mean random?"),
        (["--image", "a.jpg"], "--image: expected --checkpoint beside it, to say which detector sees it"),
        (["--chekpoint", "a"], "unknown option --chekpoint a; did you mean --checkpoint?"),
    ],
)
def test_a_slip_is_told_in_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "cache", *words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"msdeform bench cache: {sentence}")
    assert error.count("\n") == 1
