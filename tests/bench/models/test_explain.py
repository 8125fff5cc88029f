"""The benchmark of explanations: rows with what they are of, kept and known again."""

from pathlib import Path

import pytest

from msdeform.bench.harness import records
from msdeform.bench.models.explanations import cost
from msdeform.cli import main
from msdeform.kernels import registry


def test_a_cell_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--models", "deformable_detr_tiny", "--images", "64x96", "--times", "1"]
    assert main(["bench", "explain", *words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "1 row" in printed
    assert "deformable_detr_tiny" in printed
    (row,) = records.read(*tmp_path.glob("*.jsonl")).rows
    assert records.key(row) == ("explanation", "deformable_detr_tiny", "64x96", registry.resolve_for("cpu"))
    assert all(row[part] > 0 for part in cost.PARTS)
    assert 0 <= row["added_peak_mb"] < row["model_peak_mb"]
    assert row["tape_mb"] > 0
    assert row["added_held_mb"] >= 0
    before = [file.read_text() for file in tmp_path.glob("*.jsonl")]
    assert main(["bench", "explain", *words, "--out", str(tmp_path)]) == 0
    assert [file.read_text() for file in tmp_path.glob("*.jsonl")] == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--images", "64"], "--images: expected HEIGHTxWIDTH of at least 32 pixels, such as 800x1066, got 64"),
        (["--models", "fasterrcnn_tiny"], "expected a DETR, which has attention to explain, got fasterrcnn_tiny"),
        (["--models", "detr_r51"], "--models: "),
        (["--times", "0"], "--times: expected at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "explain", *words])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
