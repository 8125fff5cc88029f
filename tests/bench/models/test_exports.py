"""`msdeform bench exports`: what a row holds, what is not compared twice, and what could not be exported."""

import importlib.util
from pathlib import Path

import pytest

from msdeform.bench.harness import records
from msdeform.bench.models import exports
from msdeform.cli import main

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime", "openvino") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install")
def test_a_detector_is_compared_once_in_each_form_and_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "exports", "--models", "detr_tiny", "--image", "64x96", "--sampling", "gather"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert "4 cells were recorded already" in capsys.readouterr().out
    rows = records.read(tmp_path).rows
    assert [(row["sizes"], row["engine"]) for row in rows] == [
        ("any size", "onnxruntime"),
        ("any size", "openvino"),
        ("one size", "onnxruntime"),
        ("one size", "openvino"),
    ]
    for row in rows:
        assert row["difference"] < 1e-4
        shapes, compared = (15, 1 + 7 + 4 + 4 * 6 + 5) if row["sizes"] == "any size" else (1, 1 + 7 + 4)
        assert (row["pictures"], row["shapes"], row["compared"], row["failure"]) == ("made", shapes, compared, None)
    failed = {**rows[0], "model": "other", "failure": "no"}
    lines = exports.export_table([*rows, failed])
    assert lines[0][:3] == ("detector", "gather, any size, onnxruntime", "gather, any size, openvino")
    assert lines[2] == ("other", "failed", "-", "-", "-")


def test_what_cannot_be_exported_is_a_failed_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(exports, "write", refuse)
    assert main(["bench", "exports", "--models", "detr_tiny", "--image", "64x96"]) == 1
    assert "detr_tiny, 64x96, made, gather, any size, onnxruntime: no such operator" in capsys.readouterr().out


def test_without_time_nothing_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "exports", "--models", "detr_tiny", "--minutes", "0"]) == 0
    assert "8 rows are left for want of time" in capsys.readouterr().out
