"""`msdeform table`: what it prints and keeps, and what it answers to a wrong command line."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench.models import commands, flops, published, speed, table
from msdeform.bench.operator import jobs
from msdeform.cli import main

CPU = torch.device("cpu")


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "published_sizes", lambda: Counter({(64, 96): 2, (96, 64): 1}))


@pytest.mark.usefixtures("few_sizes")
def test_both_columns_and_the_convention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = dataclasses.replace(
        published.PUBLISHED[0], model="fasterrcnn_tiny", title="Small R-CNN", parameters_m=12, flops_g=345
    )
    monkeypatch.setattr(published, "PUBLISHED", (small,))
    names = ["fasterrcnn_tiny", "deformable_detr_tiny"]
    assert main(["table", "--flops", "--models", *names, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rcnn, detr = printed.splitlines()[2:4]
    (file,) = tmp_path.glob("*.jsonl")
    rows = {row["model"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert list(rows) == names
    for line, row in ((rcnn, rows["fasterrcnn_tiny"]), (detr, rows["deformable_detr_tiny"])):
        assert f"{row['parameters'] / 1e6:.2f}" in line.split()
        assert f"{row['multiply_adds'] / 1e9:.1f}" in line.split()
        assert row["kind"] == "flops"
        assert row["command"] == f"msdeform table --flops --models {' '.join(names)}"
    assert "Small R-CNN" in rcnn
    assert {"12", "345"} <= set(rcnn.split())
    assert detr.split()[1:3] == ["-", "-"]
    for said in ("a multiply-add is one", "first 3 images", "each of the 2 sizes", "5 Q (L P) C", "1000 proposals"):
        assert said in printed


@pytest.mark.usefixtures("few_sizes")
def test_proposals_are_told_of_where_there_are_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--flops", "--models", "detr_tiny"]) == 0
    assert "proposals" not in capsys.readouterr().out


def test_the_published_table_has_ten_rows_of_nine_models() -> None:
    assert len(published.PUBLISHED) == 10
    assert len(published.MODELS) == 9
    best = published.PUBLISHED[-1]
    assert (best.ap, best.ap_s, best.ap_m, best.ap_l, best.hours, best.fps_4) == (46.9, 29.6, 50.1, 61.6, 340, 18.8)


def test_every_combination_is_planned_once() -> None:
    models = ("deformable_detr_r50", "detr_r50")
    planned = table.model_jobs(
        models, ["triton", "reference"], ["float32"], (1, 4), ("eager", "compiled"), reduced=False
    )
    assert len(planned) == len(set(planned)) == 3 * 2 * 2 * 2
    assert [job.mode for job in planned] == ["eager"] * 12 + ["compiled"] * 12
    assert {job.backend for job in planned if job.model == "detr_r50"} == {"none"}
    training = table.training_jobs(models, ["triton"], ["float32"], (2,), reduced=True)
    assert [(job.method, job.backend) for job in training] == [
        ("reduced training", "triton"),
        ("reduced training", "none"),
    ]


@pytest.mark.parametrize("method", ["reduced published", "reduced end to end"])
@pytest.mark.parametrize(("model", "backend"), [("deformable_detr_tiny", "reference"), ("detr_tiny", "none")])
def test_speed_of_a_tiny_detector(method: str, model: str, backend: str) -> None:
    (row,) = speed.rows(jobs.Model(model, method, backend, "float32", "eager", 2), CPU)
    assert row["failure"] is None
    assert row["image"] == [64, 96]
    assert 0 < row["fps"] < 1e5
    assert row["calls"] == 4  # two of six dropped
    assert row["median_us"] / 1e6 * row["fps"] == pytest.approx(2, rel=0.5)


def test_training_of_a_tiny_detector() -> None:
    (row,) = speed.rows(jobs.Training("deformable_detr_tiny", "reduced training", "reference", "bfloat16", 2), CPU)
    assert row["failure"] is None
    assert row["images_per_second"] > 0
    assert row["hours_per_epoch"] is None  # of images this small


def test_a_detector_that_fails_is_a_row() -> None:
    (row,) = speed.rows(jobs.Model("deformable_detr_tiny", "reduced published", "triton", "float32", "eager", 1), CPU)
    assert row["failure"].startswith("BackendUnavailable: backend 'triton' cannot run")
    assert row["fps"] is None


def test_the_image_and_the_iterations_are_the_published_ones() -> None:
    assert speed.Size().fit(*speed._IMAGE) == (800, 1201)
    assert (speed._ITERATIONS, speed._DROPPED) == (300, 5)


def invented(method: str, batch: int, failure: str | None = None) -> dict[str, Any]:
    row = jobs.Model("detr_r50", method, "none", "float32", "eager", batch).unmeasured(failure)[0]
    return row | ({} if failure else {"fps": 12.3, "image": [800, 1201]})


def test_the_published_figure_stands_beside_its_own_method_alone() -> None:
    rows = [invented("published", 1), invented("published", 4), invented("end to end", 1), invented("published", 2)]
    lines = table.speed_table([*rows, invented("published", 1, "out of memory: 3 GB")]).splitlines()[1:]
    columns = [line.split() for line in lines]
    assert [line[6:8] for line in columns[:2]] == [["12.3", "27.0"], ["12.3", "38.3"]]
    assert "12.3     -" in lines[2]
    assert columns[3][7] == "-"
    assert "failed" in columns[4]
    assert lines[4].endswith("out of memory")


@pytest.mark.parametrize(("more", "before"), [([], "reduced "), (["--no-reduced"], "")])
def test_measured_on_a_cpu_it_is_the_reduced_form_unless_refused(
    more: list[str], before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not before:  # which would take minutes
        monkeypatch.setattr(
            commands, "measure", lambda jobs, _, results: [results.add(job.unmeasured("not tried")[0]) for job in jobs]
        )
    words = ["--speed", "--models", "detr_tiny", "--dtypes", "float32", "--batch", "1", "--out", str(tmp_path)]
    assert main(["table", *words, *more]) == 0
    (file,) = tmp_path.glob("*.jsonl")
    rows = list(map(json.loads, file.read_text().splitlines()))
    assert [row["method"] for row in rows] == [f"{before}published", f"{before}end to end"]
    assert "2 rows appended" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "msdeform table: expected one table to print, --flops, --speed or --training\n"),
        (["--flops", "--speed"], "msdeform table: expected one table to print, --flops, --speed or --training\n"),
        (["--flops", "--models", "x"], "msdeform table: --models: no model is called 'x'; "),
        (
            ["--flops", "--models", "detr_r5"],
            "msdeform table: --models: no model is called 'detr_r5'; did you mean detr_r50 or ",
        ),
        (["--flops", "--out", "README.md"], "msdeform table: --out: expected a folder, got the file README.md\n"),
        (["--speed", "--batch", "0"], "msdeform table: --batch: expected at least 1, got 0\n"),
        (
            ["--speed", "--backends", "tritn"],
            "msdeform table: --backends: expected reference, gather, cpu, triton or cuda, got 'tritn'; "
            "did you mean triton?",
        ),
    ],
)
def test_a_slip_gets_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(SystemExit) as stop:
        main(["table", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert error.count("\n") == 1
