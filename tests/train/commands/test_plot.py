"""Runs compared: what is drawn, over what, and what is printed beside it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.cli import main
from msdeform.train.commands.plot import table
from msdeform.train.monitor.curves import _PANELS, Panel, draw, running_mean
from msdeform.train.monitor.history import History, differences, grouped, read_all

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the log of a run of 20 steps, 5 an epoch, evaluated after each; a step takes 36 seconds."""

    def run(name: str, *, steps: int = 20, seed: int = 1, lr: float = 1e-3, offset: float = 0.0, **more: Any) -> Path:
        options = {"batch": {"seed": seed}, "optim": {"lr": lr}, "run": {"out": name}, "compute": {"precision": "bf16"}}
        events: list[dict[str, Any]] = [
            {"event": "start", "step": 0, "time": 1000.0, "attn_backend": "triton", "options": options, **more}
        ]
        for step in range(1, steps + 1):
            now = 1000.0 + 36 * step
            values = {"loss": 10 - step / 4 + offset, "loss_ce": 1.0, "lr_main": lr, "images_per_s": 8.0}
            events.append({"event": "step", "step": step, "epoch": (step - 1) // 5, "time": now, **values})
            if step % 5 == 0:
                ap = {"AP": step / 100 if step < 20 else 0.1, "AP50": 0.3, "AP_L": -1.0, "per_class": {"cat": 0.5}}
                ap |= {"val_loss": 9 + offset}
                events.append({"event": "epoch", "step": step, "epoch": step // 5, "time": now + 1, **ap})
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return folder

    return run


def append(run: Path, *events: dict[str, Any]) -> None:
    with open(run / "log.jsonl", "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_curves_over_steps_epochs_and_hours(write: Write) -> None:
    history = History.read(write("a"))
    x, y = history.curve("loss")
    assert x.tolist() == list(range(1, 21))
    assert y[[0, -1]].tolist() == [9.75, 5.0]
    assert history.curve("AP", "epoch")[0].tolist() == [1, 2, 3, 4]
    assert history.curve("loss", "epoch")[0][-1] == 4.0
    assert history.curve("loss", "hours")[0] == pytest.approx(np.arange(1, 21) / 100)
    assert history.curve("AP/cat")[1].tolist() == [0.5] * 4
    assert len(history.curve("AP_L")[0]) == 0  # -1: nothing of that size is annotated
    assert {"loss", "lr_main", "AP", "AP/cat", "val_loss"} <= set(history.curves())
    assert not {"step", "epoch", "time", "hours", "event", "per_class"} & set(history.curves())


def test_of_repeated_steps_the_last_counts_and_none_that_was_lost_stays(write: Write) -> None:
    run = write("a")
    # killed after step 20, resumed a day later from step 8, killed again after step 9
    again = {"event": "step", "epoch": 1, "loss": 99.0}
    append(
        run,
        {"event": "resume", "step": 8, "time": 90_000.0, "options": {"lr": 0.5}},
        {**again, "step": 9, "time": 90_036.0},
    )
    history = History.read(run)
    x, y = history.curve("loss")
    assert x.tolist() == list(range(1, 10))
    assert y[-1] == 99.0
    assert history.curve("loss", "hours")[0][-1] == pytest.approx(0.09)  # without the day
    assert history.curve("AP")[0].tolist() == [5]
    assert history.settings["lr"] == 0.5


def test_what_was_not_finite_is_left_out(write: Write) -> None:
    run = write("a", steps=3)
    append(run, {"event": "step", "step": 4, "epoch": 0, "time": 2000.0, "loss": "nan", "scale": "inf"})
    history = History.read(run)
    assert history.curve("loss")[0].tolist() == [1, 2, 3]
    assert "scale" in history.curves()


def test_epochs_of_a_short_log(write: Write) -> None:
    with pytest.raises(ValueError, match="x: a has not come to the end of an epoch; expected step or hours"):
        History.read(write("a", steps=4)).curve("loss", "epoch")
    told = History.read(write("b", steps=4, steps_per_epoch=8))
    assert told.curve("loss", "epoch")[0].tolist() == [0.125, 0.25, 0.375, 0.5]
    # ended within its fourth epoch, by --max-steps
    assert History.read(write("c", steps=18)).steps_per_epoch() == 5


def test_a_log_without_times_has_no_hours(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 1, "epoch": 0, "loss": 1.0}\n')
    history = History.read(tmp_path)
    assert history.curve("loss")[1].tolist() == [1.0]
    with pytest.raises(ValueError, match="holds no times to take hours from; expected step or epoch"):
        history.curve("loss", "hours")
    assert "nan" not in table([history])[1]


def test_settings_that_differ_and_runs_that_do_not(write: Write) -> None:
    runs = read_all([write("a"), write("b", seed=2), write("c", lr=5e-4), write("d", seed=3)])
    assert differences(runs) == {"seed": [1, 2, 1, 3], "lr": [1e-3, 1e-3, 5e-4, 1e-3]}
    assert [[one.name for one in group] for group in grouped(runs, "seed")] == [["a", "b", "d"], ["c"]]
    assert len(grouped(runs, None)) == 4


def test_runs_of_one_name_are_told_apart(write: Write) -> None:
    first, second = read_all([write("x/run"), write("y/run")])
    assert first.name.endswith("x/run")
    assert second.name.endswith("y/run")


def test_seeds_become_a_mean_in_its_range(write: Write) -> None:
    runs = read_all([write("a"), write("b", seed=2, offset=2.0), write("c", seed=3, offset=1.0, steps=15)])
    figure = draw([runs], _PANELS[:1], "step", 1)
    [axes] = [axes for axes in figure.axes if axes.get_visible()]
    mean, validation = (line.get_xydata() for line in axes.lines)
    assert mean[:, 0].tolist() == list(range(1, 16))  # as far as all of them got
    assert mean[0, 1] == pytest.approx(10.75)
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((6.25, 11.75))
    assert axes.lines[1].get_linestyle() == "--"
    assert validation[:, 1] == pytest.approx(10.0)


def test_a_panel_for_what_there_is_and_a_colour_for_each_run(write: Write) -> None:
    figure = draw([[run] for run in read_all([write("a"), write("b", lr=1e-4)])], _PANELS, "epoch", None)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().partition("\n")[0] for axes in shown] == [
        *("loss", "classification loss, last layer", "AP", "AP50", "learning rate", "images a second"),
    ]
    assert shown[4].get_title().endswith("main")  # and of no group that the runs lack
    styles = [(line.get_color(), line.get_linestyle(), line.get_alpha()) for line in shown[0].lines]
    colours = list(dict.fromkeys(colour for colour, _, _ in styles))
    assert len(colours) == 2
    # as logged, smoothed, and validation
    assert [style[1:] for style in styles] == [("-", 0.2), ("-", None), ("--", None)] * 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a", "b", "as logged", "training, smoothed", "validation"]
    assert [axes.get_xlabel() for axes in shown] == ["", "", "", "epoch", "epoch", "epoch"]


def test_what_comes_of_evaluations_is_dashed_and_said_to_be(write: Write) -> None:
    [run] = read_all([write("a")])
    # several of a panel are told apart by their lines, and none of those is a training curve either
    figure = draw([[run]], [Panel("AP", ("AP",)), Panel("two", ("AP", "AP50"), ("AP", "AP50"))], "step", 1)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [[line.get_linestyle() for line in axes.lines] for axes in shown] == [["--"], ["-", "--"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "training", "validation"]
    alone = draw([[run]], [Panel("rate", ("lr_main",))], "step", 1)
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["a"]


def test_a_running_mean_is_of_those_around() -> None:
    values = np.array([0.0, 3.0, 6.0, 0.0, 30.0])
    assert running_mean(values, 3).tolist() == [1.5, 3.0, 3.0, 12.0, 15.0]
    assert running_mean(values, 1).tolist() == values.tolist()


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_picture_has_the_format_of_its_name(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, start: bytes
) -> None:
    out = tmp_path / f"plots/curves.{suffix}"
    runs = [str(write("a")), str(write("bigger", lr=2e-3))]
    assert main(["plot", *runs, "--out", str(out), "--terms", "loss,AP/cat"]) == 0
    assert out.read_bytes().startswith(start)
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "run"
    assert first.split() == ["a", "20", "0.150", "15", "0.100", "0.300", "5.000", "8.0", "0.20", "triton", "bf16"]
    assert second.startswith("bigger ")
    assert rest == ["lr: 0.001 | 0.002", f"curves: {out}"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "expected RUN: folders of runs"),
        (["nowhere"], "RUN: expected a file or folder; nowhere does not exist"),
        (["."], ". holds no log.jsonl; expected the folder of a run of msdeform train"),
        (["empty"], "log.jsonl holds no step to plot"),
        (["run", "--terms", "loss,los_ce"], "terms: no run has logged 'los_ce'; did you mean loss_ce or loss"),
        (["run", "--terms", "qqq"], "terms: no run has logged 'qqq'; expected some of loss, loss_ce, lr_main"),
        (["run", "--terms", ","], "terms: expected names of curves with commas between them, got ','"),
        (
            ["run/log.jsonl", "--x", "hours", "--out", "run"],
            "out: expected a name that ends in .png, .svg, .pdf, got run",
        ),
        (["run", "--smooth", "0"], "smooth: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_sentence(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write("run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_text('{"event": "start", "step": 0}\n{"event": "st')
    try:
        status = main(["plot", *words])
    except SystemExit as stopped:  # a value that is wrong whatever the runs hold
        status = stopped.code
    assert status in (1, 2)
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "plot.png").exists()


def test_the_picture_lies_with_the_runs_unless_told_otherwise(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    first, second = write("runs/a"), write("runs/b")
    for runs, folder in (([first], first), ([first / "log.jsonl"], first), ([first, second], tmp_path / "runs")):
        assert main(["plot", *map(str, runs), "--terms", "loss"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"curves: {folder / 'plot.png'}"
        assert (folder / "plot.png").is_file()
        (folder / "plot.png").unlink()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_seconds_are_those_of_one_step_in_old_logs_too(tmp_path: Path) -> None:
    start = {"event": "start", "step": 0, "time": 0.0}
    old = [
        {"event": "step", "step": step, "step_s": s, "data_s": s / 2} for step, s in ((1, 3.0), (10, 18.0), (20, 20))
    ]
    # resumed at step 25, whose checkpoint lay between two lines, by a version that logs the mean
    resumed = [{"event": "resume", "step": 25}, {"event": "step", "step": 30, "step_s": 10.0, "data_s": 5.0}]
    new = [{"event": "step", "step": 40, "step_s": 2.0, "data_s": 1.0, "steps": 10}]
    lines = [json.dumps({"time": float(i), **event}) for i, event in enumerate([start, *old, *resumed, *new])]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    history = History.read(tmp_path)
    assert history.curve("step_s")[1].tolist() == [3.0, 2.0, 2.0, 2.0, 2.0]
    assert history.curve("data_s")[1].tolist() == [1.5, 1.0, 1.0, 1.0, 1.0]
    assert "steps" not in history.curves()


def test_a_run_got_to_the_step_of_its_last_evaluation_where_steps_are_logged_seldom(write: Write) -> None:
    history = History.read(write("a"))
    seldom = dataclasses.replace(history, steps=history.steps[:-3])
    assert table([seldom])[1].split()[:2] == ["a", "20"]
