"""`msdeform bench exports`: what a row holds, what is not compared twice, and what could not be exported."""

import importlib.util
from pathlib import Path

import pytest

from msdeform.bench.harness import records
from msdeform.bench.models import exports
from msdeform.cli import main

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install")
def test_a_detector_is_compared_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "exports", "--models", "detr_tiny", "--images", "64x96", "--out", str(tmp_path)]
    assert main(command) == 0
    assert main(command) == 0
    assert "1 cells were recorded already" in capsys.readouterr().out
    (row,) = records.read(tmp_path).rows
    assert row["kind"], (row["model"], row["image"], row["format"]) == ("export", ("detr_tiny", "64x96", "onnx"))
    assert row["difference"] < 1e-4
    assert (row["compared"], row["boundaries"], row["failure"]) == (12, 4, None)
    lines = exports.export_table([row, {**row, "model": "other", "image": "96x96", "failure": "no"}])
    assert lines[0] == ("detector", "64x96", "inputs", "96x96", "inputs")
    assert lines[2] == ("other", "-", "-", "failed", "12")


def test_what_cannot_be_exported_is_a_failed_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(exports, "exported_program", refuse)
    assert main(["bench", "exports", "--models", "detr_tiny", "--images", "64x96"]) == 1
    assert "detr_tiny, 64x96, onnx: no such operator" in capsys.readouterr().out


def test_without_time_nothing_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "exports", "--models", "detr_tiny", "--minutes", "0"]) == 0
    assert "3 rows are left for want of time" in capsys.readouterr().out
