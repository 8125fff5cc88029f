"""The benchmark of training: loaders timed, growing workers told, steps taken apart, and all of it kept as rows."""

from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench.harness import records
from msdeform.bench.models.training import benchmark, loading, steps
from msdeform.cli import main
from msdeform.train.config.options import Input, Loading, Source
from msdeform.train.data.dataset import CocoDetection, Key, Sample
from msdeform.train.data.loader import training_data
from msdeform.train.data.synthetic.options import SynthOptions
from msdeform.train.data.synthetic.synth import make_dataset

CPU = torch.device("cpu")
TINY = "deformable_detr_tiny"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 64 pixels."""
    out = tmp_path_factory.mktemp("data") / "four"
    make_dataset(SynthOptions(out, train=4, val=1, size=64, progress=False))
    return out


def test_the_loader_is_timed_by_workers_and_cache(shapes: Path) -> None:
    where = loading.DataSet(Source(data=shapes), "four", 64)
    for workers, cache in ((0, "none"), (1, "pixels")):
        row = loading.speed(where, Loading(workers=workers, cache_images=cache), 0.05)  # type: ignore[arg-type]
        assert records.key(row) == loading.key(where, workers, cache)
        assert row["images"] == 4
        assert 1 < row["images_per_second"] < 1e5


class Leaky(CocoDetection):
    """Every item costs its process a megabyte for good."""

    kept: list[bytearray] = []  # noqa: RUF012  # each worker's own

    def item(self, key: Key | int) -> tuple[Sample, str | None]:
        self.kept.append(bytearray(b"x" * 10**6))
        return super().item(key)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="Linux alone tells what a process shares")
def test_workers_that_grow_are_told_from_those_that_do_not(shapes: Path) -> None:
    data = training_data(Source(data=shapes), Input(image_size=64), Loading(), 0, progress=False)
    grown = []
    for kind in (CocoDetection, Leaky):
        data.__class__ = kind
        early, late = loading.own_memory(data, Loading(workers=2), (10, 40))
        assert len(early) == len(late) == 2
        grown.append(sum(late) - sum(early))
    # 30 steps of 2 images, a megabyte each, whichever worker had them
    assert grown[0] < 15
    assert 45 < grown[1] < 90


def test_an_index_lists_few_images_often(shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes((shapes / "annotations" / "instances_train2017.json").read_bytes())
    loading._list_often(path, 10)
    source = Source(train_images=shapes / "train2017", train_annotations=path)
    data = training_data(source, Input(), Loading(), 0, progress=False)
    assert data.image_ids == list(range(1, 11))
    images, first = data.annotations.images, data.annotations.first
    assert images[8].name == images[4].name == images[0].name
    assert first[9] - first[8] == first[1] - first[0]


@pytest.mark.parametrize("option", ["baseline", "checkpointing all", "mixed shapes, bucket"])
def test_a_step_is_the_sum_of_its_stages(shapes: Path, option: str) -> None:
    step = steps.Step(TINY, "reference", "float32", 1, "64x96", option)
    shares = []
    for _ in range(3):  # where other work shares the machine, one of them may be far off
        row = steps.measured(step, shapes, CPU, times=2, warm_up=1)
        assert row["failure"] is None
        assert records.key(row) == step.key()
        stages = row["stages_us"]
        assert all(stages[name] > 0 for name in ("backbone", "encoder", "decoder", "matching", "loss", "backward"))
        shares.append(sum(stages.values()) / row["step_us"])
    assert any(1 / 5 < share < 5 for share in shares), shares


def test_options_are_what_the_run_is_given(shapes: Path) -> None:
    sizes = {}
    for name, option in steps.OPTIONS.items():
        step = steps.Step(TINY, "reference", "bfloat16", 2, "64x96", name)
        options = steps._options(step, option, shapes, CPU)
        assert options.compute.precision == "bf16"
        assert options.batch.total_batch_size == 2 * option.passes
        assert options.loading.bucket == option.bucket
        assert {field: getattr(options.compute, field) for field in option.compute} == option.compute
        sizes[name] = [tuple(image.shape[1:]) for image, _ in steps._samples(step, option)]
    assert sizes["baseline"] == [(64, 96)] * 2
    assert sizes["mixed shapes"] == [(64, 96), (96, 64)] * 2


def test_a_step_that_cannot_run_says_why(shapes: Path) -> None:
    step = steps.Step(TINY, "cuda", "float32", 1, "64x96", "baseline")
    row = steps.measured(step, shapes, CPU, times=1)
    assert "backend 'cuda' cannot run" in row["failure"]
    assert row["images_per_second"] is None


QUICK = ("--quick", "--workers", "0", "--caches", "none", "--dtypes", "float32", "--image", "64x96", "--batch", "1")


def test_rows_are_kept_and_not_measured_again(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "training", "--parts", "loading", "step", "--options", "baseline", *QUICK]
    words += ["--data", str(shapes), "--out", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "2 rows appended to" in out
    assert "images/s" in out
    found = records.read(tmp_path)
    assert [row["kind"] for row in found.rows] == ["loading", "training-step"]
    assert found.rows[0]["data"] == "four"
    assert str(shapes.parent) not in str(found.rows)  # a place on someone's disk is no part of a result
    assert main(words) == 0
    assert "2 cells were recorded already" in capsys.readouterr().out
    assert len(records.read(tmp_path).rows) == 2
    assert main([*words, "--again", "--minutes", "0"]) == 0
    assert "2 rows are left for want of time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--options", "compiel"], "--options: no option is called 'compiel'; did you mean compile?"),
        (["--image", "800"], "--image: expected HEIGHTxWIDTH of at least 32 pixels, such as 800x1066, got 800"),
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--workers", "-1"], "--workers: expected at least 0, got -1"),
        (["--seconds", "0"], "--seconds: expected a number above 0, got 0"),
        (["--model", "detr_r5"], "--model: no model is called 'detr_r5'"),
    ],
)
def test_a_wrong_option_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "training", *words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"msdeform bench training: {sentence}")
    assert error.count("\n") == 1


def test_tables_have_a_line_for_each_way() -> None:
    base: dict[str, Any] = {"data": "four", "cache": "none"}
    rows = [{**base, "workers": n, "images_per_second": 10.0 * n} for n in (1, 4)]
    assert benchmark.loading_table([*rows, {**rows[0], "cache": "files"}]) == [
        ("data", "cache", "1 workers", "4 workers"),
        ("four", "none", "10.0", "40.0"),
        ("four", "files", "10.0", "-"),
    ]
    row = {"workers": 2, "entries": 9, "steps": [2, 8], "early_mb": [1.0, 2.0], "late_mb": [1.5, 2.0]}
    [_, line] = benchmark.memory_table([{**row, "grown_mb": [0.5, 0.0]}])
    assert line == ("9", "2", "2", "1.00 2.00", "8", "1.50 2.00", "+0.50 MB")
