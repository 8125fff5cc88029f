"""Rows appended and read back: whole ones used, a broken line named, recorded cells known again."""

import json
from pathlib import Path
from typing import Any

import pytest

from msdeform.bench.harness import records

PLACE = {"code": "abc", "device": "cpu", "host_cpu": "x"}


def row(model: str = "detr_r50", **more: Any) -> dict[str, Any]:
    return {"kind": "flops", "model": model, **PLACE, **more}


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "rows.jsonl"
    records.append(file, [row("a", n=1), row("b")])
    records.append(file, [row("a", n=2)])
    found = records.read(tmp_path / "deep")
    assert [one["model"] for one in found.rows] == ["a", "b", "a"]
    assert [(one["model"], one.get("n")) for one in found.of("flops")] == [("a", 2), ("b", None)]
    assert found.of("model") == []
    assert found.broken == []


def test_a_row_of_earlier_code_has_the_name_of_today(tmp_path: Path) -> None:
    records.append(tmp_path / "rows.jsonl", [row(backend="triton-cells"), row(backend="triton")])
    assert [one["backend"] for one in records.read(tmp_path).rows] == ["triton-sorted", "triton"]


def test_a_broken_line_is_named_and_the_rest_used(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = json.dumps(row())
    file.write_text(f'{good}\n{{"kind": "flo\n\n[1]\n{{"kind": "flops"}}\n{{"kind": "no such"}}\n{good}\n')
    found = records.read(file)
    assert len(found.rows) == 2
    assert found.broken == [
        "rows.jsonl, line 2: not JSON; the line is left out",
        "rows.jsonl, line 4: not a row of results; the line is left out",
        "rows.jsonl, line 5: not a row of results: 'model' is missing; the line is left out",
        "rows.jsonl, line 6: not a row of results: no kind is called 'no such'; the line is left out",
    ]


def test_a_line_that_a_crash_cut_costs_no_more_than_itself(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    records.append(file, [row("a")])
    with file.open("a") as cut:
        cut.write('{"kind": "flops", "mod')
    records.append(file, [row("b")])
    found = records.read(file)
    assert [one["model"] for one in found.rows] == ["a", "b"]
    assert len(found.broken) == 1


def test_a_row_without_its_key_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        records.append(tmp_path / "rows.jsonl", [row(), {"kind": "flops"}])
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_is_of_this_code_and_device() -> None:
    key = ("flops", "detr_r50")
    assert records.done([row()], row()) == {key}
    for other in ({"code": "abd"}, {"device": "NVIDIA H200"}, {"host_cpu": "y"}):
        assert records.done([row()], row(**other)) == set()
    # the next machine that is lent has another host, and the same GPU
    lent = {"device": "NVIDIA H200"}
    assert records.done([row(**lent)], row(**lent, host_cpu="y")) == {key}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="results .*none do not exist"):
        records.read(tmp_path / "none")


def test_the_committed_results_have_no_broken_line() -> None:
    assert records.read(records.RESULTS).broken == []
