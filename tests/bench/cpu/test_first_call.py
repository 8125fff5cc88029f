"""`msdeform bench first-call`: a new process for each row, and one that fails."""

from pathlib import Path

import pytest

from msdeform.bench.cpu import first_call, tables
from msdeform.bench.harness import records
from msdeform.cli import main


def test_rows_of_a_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--case", "decoder-reduced", "--backends", "reference", "--times", "1", "--out", str(tmp_path)]
    assert main(["bench", "first-call", *words]) == 0
    rows = records.read(tmp_path).rows
    assert [(row["backend"], row["direction"], row["failure"]) for row in rows] == [
        ("reference", "forward", None),
        ("reference", "both", None),
    ]
    for row in rows:
        assert 0 < row["import_ms"] < row["import_torch_ms"]
        assert row["first_ms_each"] == [pytest.approx(row["first_ms"], abs=0.1)]
        assert row["second_ms"] > 0
        assert row["threads"] >= 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("reference  float32  forward + backward")


def test_one_that_cannot_run_is_a_failed_row(tmp_path: Path) -> None:
    words = ["--case", "decoder-reduced", "--backends", "cuda", "--out", str(tmp_path)]
    assert main(["bench", "first-call", *words]) == 1
    rows = records.read(tmp_path).rows
    assert all("CUDA" in row["failure"] and row["first_ms"] is None for row in rows)


def test_one_that_ends_with_an_error_is_a_failed_row() -> None:
    row = first_call.measured("decoder-reduced", "float32", "forward", "cuda", 2)
    assert row["failure"].startswith("ended with status 1: ")
    assert row["first_ms"] is row["threads"] is None
    assert tables.first_call_table([row])[1][-1] == "-"
