"""`msdeform bench deploy`: one detector in several engines, timed in turn on what was compared."""

import importlib.util
from pathlib import Path

import pytest

from msdeform.bench.harness import records
from msdeform.bench.models import deploy
from msdeform.cli import main

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
WORDS = ["bench", "deploy", "--checkpoint", "detr_tiny", "--image", "64x96", "--seconds", "0"]


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install")
def test_engines_are_timed_in_turn_and_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = ["--engines", "pytorch", "program", "onnxruntime gather", "--batches", "1", "2"]
    assert main([*WORDS, *engines, "--out", str(tmp_path)]) == 0
    rows = records.read(tmp_path).rows
    assert [(row["engine"], row["batch"]) for row in rows] == [
        (engine, batch) for batch in (1, 2) for engine in ("pytorch", "program", "onnxruntime gather")
    ]
    assert all(row["median_us"] > 0 and row["difference"] < 1e-4 and row["failure"] is None for row in rows)
    assert [row["size_mb"] is None for row in rows[:3]] == [True, False, False]
    head, *lines = deploy.deploy_table(rows)
    assert head[:5] == ["engine", "file, MB", "batch 1, ms", "images/s", "times pytorch"]
    assert [line[4] for line in lines[:1]] == ["1.00"]
    assert "onnxruntime gather (detr_tiny, 64x96, 1 threads)" in capsys.readouterr().out


def test_an_engine_that_is_missing_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert main([*WORDS, "--engines", "pytorch", "openvino gather", "--batches", "1"]) == 1
    assert "openvino gather: openvino is not installed" in capsys.readouterr().out
