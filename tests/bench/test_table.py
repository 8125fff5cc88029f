"""`msdeform table`: what it prints, what it writes, and what it answers to a wrong command line."""

import json
from collections import Counter
from pathlib import Path

import pytest

from msdeform.bench import flops, table
from msdeform.cli import main


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "published_sizes", lambda: Counter({(64, 96): 2, (96, 64): 1}))


@pytest.mark.usefixtures("few_sizes")
def test_both_columns_and_the_convention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(table.PUBLISHED, "fasterrcnn_tiny", table.Published("Small R-CNN", 12, 345))
    file = tmp_path / "out" / "table.json"
    names = ["fasterrcnn_tiny", "deformable_detr_tiny"]
    assert main(["table", "--flops", "--models", *names, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    rcnn, detr = printed.splitlines()[2:4]
    written = json.loads(file.read_text())
    rows = {row["model"]: row for row in written["rows"]}
    assert list(rows) == names
    for line, row in ((rcnn, rows["fasterrcnn_tiny"]), (detr, rows["deformable_detr_tiny"])):
        assert f"{row['parameters'] / 1e6:.2f}" in line.split()
        assert f"{row['multiply_adds'] / 1e9:.1f}" in line.split()
    assert "Small R-CNN" in rcnn
    assert {"12", "345"} <= set(rcnn.split())
    assert detr.split()[1:3] == ["-", "-"]
    assert rows["deformable_detr_tiny"]["published_flops_g"] is None
    for said in ("a multiply-add is one", "first 3 images", "each of the 2 sizes", "5 Q (L P) C", "1000 proposals"):
        assert said in printed
    assert written["notes"] == printed.splitlines()[5:]
    assert written["provenance"]["command"] == f"msdeform table --flops --models {' '.join(names)}"


@pytest.mark.usefixtures("few_sizes")
def test_proposals_are_told_of_where_there_are_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--flops", "--models", "detr_tiny"]) == 0
    assert "proposals" not in capsys.readouterr().out


def test_the_default_is_the_published_table() -> None:
    assert len(table.PUBLISHED) == 9


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "msdeform table: expected the table to print, --flops, got none\n"),
        (["--flop", "--model", "x"], "msdeform table: --models: no model is called 'x'; expected some of "),
        (
            ["--flops", "--models", "detr_r5"],
            "msdeform table: --models: no model is called 'detr_r5'; did you mean detr_r50 or ",
        ),
        (["--flops", "--json", "."], "msdeform table: --json: expected a file, got the folder .\n"),
    ],
)
def test_a_slip_gets_a_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["table", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert error.count("\n") == 1
