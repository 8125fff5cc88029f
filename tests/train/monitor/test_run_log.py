"""What a run writes of itself: whole lines after a kill or on a full disk."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from msdeform.train.monitor.run_log import RunLog, read_log

STEP = {"loss": 7.0, "loss_ce": 1.0, "lr_main": 1e-3, "images_per_s": 9.5}


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("step", step=1, **STEP)
    whole = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(whole + whole[:20])
    with RunLog(tmp_path) as log:
        log.write("resume", step=1)
        log.write("step", step=2, loss=float("nan"), grad_norm=float("inf"), names=("a", "b"))
    events = read_log(tmp_path / "log.jsonl")
    assert [event["event"] for event in events] == ["step", "resume", "step"]
    assert (events[2]["loss"], events[2]["grad_norm"], events[2]["names"]) == ("nan", "inf", ["a", "b"])
    assert all(event["time"] > 1.7e9 for event in events)
    with RunLog(tmp_path) as log:
        log.write("end", step=2)
    assert b"\n\n" not in (tmp_path / "log.jsonl").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = RunLog(tmp_path)
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
    log = RunLog(tmp_path)
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
        RunLog(tmp_path / "file")


def test_a_line_is_there_for_others_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("start", step=0, options={"lr": 0.1})
        assert json.loads((tmp_path / "log.jsonl").read_text())["options"] == {"lr": 0.1}
        assert os.listdir(tmp_path) == ["log.jsonl"]
