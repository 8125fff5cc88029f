"""Predicted times: each part by hand, and a table in the order of the sums."""

from typing import Any

import pytest

from msdeform.bench.harness.records import Records, Row
from msdeform.bench.static import model
from msdeform.bench.static.counts import ENCODER
from msdeform.cli import main

PAIRS = 2 * 17821 * 8  # of a query and a head in the published encoder
CALL = "backward fused, sorted"


def row(call: str, implementation: str = "triton", dtype: str = "float32", **counts: Any) -> Row:
    return {
        "kind": "executed",
        "implementation": implementation,
        "call": call,
        "kernel": "kernel",
        "dtype": dtype,
        "case": ENCODER,
        "arch": 90,
        **{"ptx": 1000, "sass": 800, "registers": 64, "spilled_bytes": 0, "date": "today"},
        **{"warp_instructions": 125.0, "wavefronts": 64.0, "sectors": 256.0, "reductions": 0.0},
        **{"shared_conflicts": 0.0, **counts},
    }


def of(call: str, *rest: str, **counts: Any) -> model.Stages:
    return model.predicted([row(call, *rest, **counts)])


def test_the_parts_of_the_published_encoder() -> None:
    """17,821 queries, 8 heads, batch 2; 100 machine instructions and 64 wavefronts for each (query, head)."""
    forward = of("forward fused")["kernel"]
    assert forward["issue"] == pytest.approx(1e6 * 100 * PAIRS / (132 * 4 * 1.98e9))
    assert forward["L1"] == pytest.approx(1e6 * 64 * PAIRS / (132 * 1.98e9))
    assert "reductions" not in forward
    stages = of("backward fused", reductions=256.0)
    assert list(stages) == ["kernel", "zeros"]
    assert stages["kernel"]["reductions"] == pytest.approx(1e6 * PAIRS * 256 * 32 / 2e12)
    assert stages["kernel"]["memory"] > forward["memory"]
    assert stages["zeros"]["memory"] == pytest.approx(1e6 * PAIRS * 32 * 4 / 4.3e12)


def test_gaps_come_on_top_of_the_longest_part() -> None:
    stages = of("backward fused", reductions=256.0)
    expected = stages["kernel"]["reductions"] + stages["zeros"]["memory"] + 2 * 2.0
    assert model.least(stages) == pytest.approx(expected)


def test_a_sum_in_float32_is_rounded_by_a_kernel_of_its_own() -> None:
    assert list(of("backward plain", "triton", "bfloat16")) == ["kernel", "zeros", "rounding"]
    assert list(of("backward plain, fp32acc", "deformops", "bfloat16")) == ["kernel", "zeros", "rounding"]
    narrow = of("backward plain", "deformops", "bfloat16")
    assert list(narrow) == ["kernel", "zeros"]
    assert narrow["zeros"]["memory"] == pytest.approx(1e6 * PAIRS * 32 * 2 / 4.3e12)


def test_the_kernels_of_a_sorted_backward_follow_one_another() -> None:
    counts = {"keys": 10.0, "cells": 4000.0, "pixels": 30.0, "points": 5.0}
    run = [row(CALL, kernel=name, warp_instructions=count, wavefronts=1.0) for name, count in counts.items()]
    stages = model.predicted(run)
    points = PAIRS * 16
    assert list(stages) == ["keys", "points by cell", "pixels", "gradients", "sort", "zeros"]
    assert stages["sort"]["sort"] == pytest.approx(1e6 * 4 * 2 * points * (4 + 8) / 4.3e12)
    cells = stages["points by cell"]
    assert max(cells, key=lambda name: cells[name]) == "issue"
    assert cells["L2"] == pytest.approx(1e6 * points * (128 + 2 * 32) / 5.5e12)
    memory = sum(stages[name]["memory"] for name in ("keys", "pixels", "gradients", "zeros"))
    gaps = (5 + 7) * 2.0
    assert model.least(stages) == pytest.approx(memory + stages["sort"]["sort"] + cells["issue"] + gaps)
    with pytest.raises(ValueError, match="the sorted backward: expected keys, .*, got keys, cells, pixels recorded"):
        model.predicted(run[:3])
    shares = row(CALL, kernel="shares", warp_instructions=1.0, wavefronts=1.0)
    assert list(model.predicted([*run[:2], shares, *run[2:]]))[2] == "shares"


def test_the_fastest_of_a_kind_comes_first() -> None:
    rows = [
        row("forward fused", warp_instructions=900.0),
        row("forward fused", "cuda", warp_instructions=400.0),
        row("backward fused", reductions=256.0),
        row("forward fused", "official") | {"case": "decoder-400x533"},
    ]
    lines = model.table(Records(rows))
    assert [(line[0], line[2]) for line in lines[1:]] == [
        ("backward fused", "triton"),
        ("forward fused", "cuda"),
        ("forward fused", "triton"),
    ]
    assert lines[1][-1] == "reductions"


def test_without_recorded_counts(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty.jsonl").touch()
    assert main(["bench", "model", "--results", str(tmp_path)]) == 1
    assert "msdeform bench instructions --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "model", "--results", str(tmp_path / "nowhere")])
    assert "nowhere does not exist" in capsys.readouterr().err


def test_walks_are_as_long_as_the_launch_has_them() -> None:
    launch = pytest.importorskip("msdeform.kernels.triton.launch")
    assert model.WALK == launch.RUN
