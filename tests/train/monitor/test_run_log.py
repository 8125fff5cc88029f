"""What a run writes of itself: whole lines after a kill or on a full disk, TensorBoard, and Weights & Biases."""

import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from msdeform.train.monitor.loggers import tagged
from msdeform.train.monitor.run_log import RunLog, read_log

STEP = {"loss": 7.0, "loss_ce": 1.0, "lr_main": 1e-3, "images_per_s": 9.5}


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write("step", step=1, **STEP)
    whole = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(whole + whole[:20])
    with RunLog(tmp_path, tensorboard=False, step=1) as log:
        log.write("resume", step=1)
        log.write("step", step=2, loss=float("nan"), grad_norm=float("inf"), names=("a", "b"))
    events = read_log(tmp_path / "log.jsonl")
    assert [event["event"] for event in events] == ["step", "resume", "step"]
    assert (events[2]["loss"], events[2]["grad_norm"], events[2]["names"]) == ("nan", "inf", ["a", "b"])
    assert all(event["time"] > 1.7e9 for event in events)
    with RunLog(tmp_path, tensorboard=False, step=2) as log:
        log.write("end", step=2)
    assert b"\n\n" not in (tmp_path / "log.jsonl").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = RunLog(tmp_path, tensorboard=False)
    with (
        pytest.raises(
            OSError, match=r"^no space left to log to .*: No space left on device; once there is, "
        ) as caught,
        log,
    ):
        log.write("start", step=0)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_filling_disk_took_of_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    log.write("start", step=0)
    before = (tmp_path / "log.jsonl").read_bytes()
    file = log._file

    class Filling:
        def write(self, data: memoryview) -> int:
            if len(data) <= 10:
                raise OSError(28, "No space left on device")
            return file.write(data[:10])

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    monkeypatch.setattr(log, "_file", Filling())
    with pytest.raises(OSError, match="no space left to log to"):
        log.write("step", step=1, **STEP)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    monkeypatch.undo()
    with log:
        log.write("end", step=0)
    assert [event["event"] for event in read_log(tmp_path / "log.jsonl")] == ["start", "end"]


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        RunLog(tmp_path / "file", tensorboard=False)


def test_loggers_group_numbers_and_keep_the_last_layer_apart() -> None:
    values = {"step": 3, "epoch": 0, "loss": 7, "loss_ce": 1.0, "loss_ce_0": 2.0, "loss_giou_enc": 3.0, "finite": 1.0}
    values |= {"class_error": 4.0, "cardinality_error_0": 5.0, "lr_main": 0.1, "grad_norm": 6.0}
    values |= {"data_s": 0.2}
    values |= {"loss_box_reg": 8.0, "scale": 2.0, "anything": 9.0, "ema": True, "name": "text"}
    assert tagged("step", values) == {
        "loss/total": 7.0,
        "loss/ce": 1.0,
        "loss/box_reg": 8.0,
        "loss_auxiliary/ce_0": 2.0,
        "loss_auxiliary/giou_enc": 3.0,
        "error/class": 4.0,
        "error_auxiliary/cardinality_0": 5.0,
        "lr/main": 0.1,
        "gradient/norm": 6.0,
        "gradient/finite": 1.0,
        "gradient/scale": 2.0,
        "speed/data_s": 0.2,
        "step/anything": 9.0,
    }
    epoch = {"step": 8, "epoch": 1, "AP": 0.5, "AP_L": -1.0, "val_loss_ce": 0.3, "seconds": 2.0, "ema": True}
    assert tagged("epoch", {**epoch, "per_class": {"traffic light": 0.25, "cat": -1.0}}) == {
        "val/AP": 0.5,
        "val/loss_ce": 0.3,
        "speed/evaluation_s": 2.0,
        "val/class/traffic_light_AP": 0.25,
    }
    assert tagged("start", {"step": 0}) == {}


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, tensorboard=True) as log:
        for step in range(1, 7):
            log.write("step", step=step, loss=float(step))
    with RunLog(tmp_path, tensorboard=True, step=3) as log:
        log.write("step", step=4, loss=40.0)
        log.write("epoch", step=4, AP=0.5, per_class={"cat": 0.25})
        log.picture("predictions", Image.new("RGB", (8, 6)), 4)
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in seen.Scalars("loss/total")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert [event.value for event in seen.Scalars("val/class/cat_AP")] == [0.25]
    assert (seen.Images("predictions")[0].width, seen.Images("predictions")[0].height) == (8, 6)
    assert Image.open(tmp_path / "pictures" / "predictions-00000004.jpg").size == (8, 6)


class FakeRun:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """A package wandb that keeps what it is given; its runs."""
    runs: list[FakeRun] = []
    module = types.ModuleType("wandb")

    def init(**arguments: Any) -> FakeRun:
        runs.append(FakeRun(**arguments))
        return runs[-1]

    module.init = init  # type: ignore[attr-defined]
    module.Image = lambda image: ("image", image.size)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_weights_and_biases_goes_on_with_the_same_run(wandb: list[FakeRun], tmp_path: Path) -> None:
    def log_some(step: int) -> None:
        with RunLog(tmp_path / "mine", tensorboard=False, wandb="shapes", settings={"lr": 0.1}, step=step) as log:
            log.write("start", step=step)
            log.write("step", step=step + 1, loss=2.0)
            log.picture("predictions", Image.new("RGB", (8, 6)), step + 1)

    for step in (0, 5, 0):
        log_some(step)
    first, resumed, anew = wandb
    assert first.arguments["project"] == "shapes"
    assert first.arguments["name"] == "mine"
    assert first.arguments["config"] == {"lr": 0.1}
    assert first.logged == [
        (1, {"loss/total": 2.0}),
        (1, {"predictions": ("image", (8, 6))}),
    ]
    assert first.finished
    assert resumed.arguments["id"] == first.arguments["id"]
    assert resumed.arguments["resume"] == "allow"
    assert anew.arguments["id"] != first.arguments["id"]


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)


def a_folder_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))


@pytest.mark.parametrize("missing", [absent, a_folder_of_that_name])
def test_a_missing_package_is_said_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: Callable[[pytest.MonkeyPatch], None]
) -> None:
    missing(monkeypatch)
    sentence = "^wandb: --wandb shapes needs the package wandb, which is not installed: pip install wandb$"
    with pytest.raises(ValueError, match=sentence):
        RunLog(tmp_path / "run", tensorboard=True, wandb="shapes")
    assert not (tmp_path / "run").exists()


def test_a_run_that_will_not_start_is_told_in_one_sentence(wandb: list[FakeRun], tmp_path: Path) -> None:
    def refuse(**arguments: Any) -> FakeRun:
        raise Exception("no API key configured\nuse wandb login")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"^wandb: no run of project 'shapes' could be started: no API key.*\)$"):
        RunLog(tmp_path / "run", tensorboard=False, wandb="shapes")


def test_what_ended_a_run_is_not_hidden_by_a_logger_that_fails(wandb: list[FakeRun], tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False, wandb="shapes")

    def fail() -> None:
        raise OSError("offline")

    wandb[0].finish = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt), log:
        raise KeyboardInterrupt


def test_a_line_is_there_for_others_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write("start", step=0, options={"lr": 0.1})
        assert json.loads((tmp_path / "log.jsonl").read_text())["options"] == {"lr": 0.1}
        assert os.listdir(tmp_path) == ["log.jsonl"]
