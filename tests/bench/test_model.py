"""Predicted times: each part by hand, and a table in the order of the sums."""

import pytest

from msdeform.bench import model
from msdeform.bench.records import Records, Row
from msdeform.cli import main


def row(kernel: str, implementation: str = "triton", dtype: str = "float32", count: float = 100.0) -> Row:
    return {
        "kind": "instructions",
        "implementation": implementation,
        "kernel": kernel,
        "dtype": dtype,
        "arch": 90,
        "instructions_per_query_and_head": count,
    }


def test_the_parts_of_the_published_encoder() -> None:
    """17,821 queries, 8 heads, batch 2, 16 points of four neighbours with 32 channels each."""
    rows = 2 * 17821 * 8
    forward = model.predicted(row("forward fused"))["forward fused"]
    assert forward["issue"] == pytest.approx(1e6 * 100 * rows / (132 * 4 * 1.755e9))
    assert forward["L1"] == pytest.approx(1e6 * rows * 16 * 4 * 128 / (132 * 128 * 1.755e9))
    assert "reductions" not in forward
    backward = model.predicted(row("backward fused"))["backward fused"]
    assert backward["reductions"] == pytest.approx(1e6 * rows * 16 * 4 * 128 / 2e12)
    assert backward["memory"] > forward["memory"]


def test_who_adds_in_16_bits_moves_half() -> None:
    def reductions(kernel: str, *rest: str) -> float:
        return model.predicted(row(kernel, *rest))[kernel]["reductions"]

    wide = reductions("backward plain", "triton", "bfloat16")
    for kernel, share in (("backward plain", 0.5), ("backward plain, fp32acc", 1.0)):
        assert reductions(kernel, "deformops", "bfloat16") == share * wide


def test_the_kernels_of_a_backward_by_cell_follow_one_another() -> None:
    parts = {"keys": 10.0, "cells": 4000.0, "pixels": 30.0, "points": 5.0}
    stages = model.predicted(row("backward fused, in order", count=sum(parts.values())) | {"parts": parts})
    points = 2 * 17821 * 8 * 16
    assert list(stages) == ["keys", "sort", "cells", "pixels", "points"]
    assert stages["sort"] == {"sort": pytest.approx(1e6 * 4 * 2 * points * (4 + 8) / 4.3e12)}
    assert max(stages["cells"], key=lambda name: stages["cells"][name]) == "issue"
    assert stages["cells"]["L2"] == pytest.approx(1e6 * points * (128 + 2 * 32) / 5.5e12)
    assert stages["pixels"]["memory"] > stages["pixels"]["issue"]
    expected = sum(stages[name]["memory"] for name in ("keys", "pixels", "points"))
    assert model.least(stages) == pytest.approx(expected + stages["sort"]["sort"] + stages["cells"]["issue"])


def test_the_fastest_of_a_kind_comes_first() -> None:
    rows = [row("forward fused", count=900.0), row("forward fused", "cuda", count=400.0), row("backward fused")]
    lines = model.table(Records(rows))
    assert [(line[0], line[2]) for line in lines[1:]] == [
        ("backward fused", "triton"),
        ("forward fused", "cuda"),
        ("forward fused", "triton"),
    ]
    assert lines[1][-1] == "reductions"


def test_without_recorded_instructions(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty.jsonl").touch()
    assert main(["bench", "model", "--results", str(tmp_path)]) == 1
    assert "msdeform bench instructions --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "model", "--results", str(tmp_path / "nowhere")])
    assert "nowhere does not exist" in capsys.readouterr().err


def test_walks_are_as_long_as_the_launch_has_them() -> None:
    launch = pytest.importorskip("msdeform.kernels.triton.launch")
    assert model.RUN == launch.RUN
