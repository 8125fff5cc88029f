"""Recorded counts: which run of a call stands, what is shown of it, what a floor takes from it; on invented rows."""

from typing import Any

import pytest

from msdeform.bench.harness.records import Records, Row
from msdeform.bench.operator.cases import find
from msdeform.bench.static import counts
from msdeform.bench.static.counts import DECODER, ENCODER


def row(kernel: str = "forward", date: str = "first", **changes: Any) -> Row:
    numbers = {
        "warp_instructions": 400.0,
        "wavefronts": 90.0,
        "sectors": 256.0,
        "reductions": 0.0,
        "shared_conflicts": 0.0,
    }
    where = {"implementation": "triton", "call": "forward fused", "dtype": "float32", "case": ENCODER, "arch": 90}
    return {
        "kind": "executed",
        "kernel": kernel,
        **where,
        **numbers,
        **{"ptx": 1000, "sass": 800, "registers": 116, "spilled_bytes": 0, "date": date},
        **changes,
    }


SORTED = {"call": "backward fused, sorted"}


def test_of_a_call_only_the_kernels_of_its_last_run_stand() -> None:
    rows = [row("keys", **SORTED), row("cells", **SORTED), row(), row("sums", "second", **SORTED)]
    found = counts.latest(Records(rows))
    assert [[one["kernel"] for one in run] for run in found.values()] == [["sums"], ["forward"]]


def test_machine_instructions_are_as_many_as_the_assembler_makes_of_ptx() -> None:
    assert counts.issued(row()) == 320.0


def test_a_line_has_the_counts_of_every_dtype_and_none_of_other_cases() -> None:
    others = [row(case=DECODER, sectors=1.0), row(arch=80, sectors=1.0)]
    rows = [row(), row(dtype="float16", wavefronts=60.0), *others]
    head, line = counts.table(Records(rows), ENCODER)
    assert dict(zip(head, line, strict=True)) == {
        "implementation": "triton",
        "call": "forward fused",
        "kernel": "forward",
        "warp instructions": "400 / - / 400",
        "wavefronts": "90.0 / - / 60.0",
        "sectors": "256 / - / 256",
        "reductions": "0",
        "conflicts": "0",
    }


def test_before_and_after_are_the_first_run_and_the_last() -> None:
    unchanged = [row(), row(date="second")]
    keys = [
        row("keys", date, wavefronts=count, **SORTED) for date, count in zip("abc", (75.0, 50.0, 25.0), strict=True)
    ]
    _, line = counts.before_and_after(Records([*unchanged, *keys]), ENCODER)
    assert line[:4] == (SORTED["call"], "keys", "400 to 400", "75.0 to 25.0")
    # where kernels were split or joined, all of them together
    joined = [*keys, row("points", "a", **SORTED)]
    _, line = counts.before_and_after(Records(joined), ENCODER)
    assert line[:4] == (SORTED["call"], "all", "800 to 400", "165 to 25.0")


def test_calls_that_two_implementations_have() -> None:
    plain = {"call": "forward plain"}
    rows = [row(implementation="cuda", **plain), row(implementation="official", warp_instructions=500.0, **plain)]
    [(call, ours, theirs)] = counts.pairs(Records([*rows, row(**plain)]), "cuda", "official")
    assert (call, ours["warp_instructions"], theirs["warp_instructions"]) == ("forward plain, float32", 400.0, 500.0)


@pytest.mark.parametrize(
    ("backend", "direction", "case", "expected"),
    [
        ("triton", "forward", "encoder-800x1066-b2", 320.0),
        ("triton", "backward", "encoder-800x1066-b2", 800.0),
        ("triton", "both", "encoder-800x1066-b2", 1120.0),
        ("triton-deterministic", "backward", "encoder-800x1066-b2", 640.0),
        ("triton-deterministic", "forward", "encoder-800x1066-b2", 320.0),
        ("triton", "forward", "decoder-800x1066", 80.0),
        ("triton", "forward", "odd", None),
        ("core", "forward", "encoder-800x1066-b2", None),
        ("core", "both", "encoder-800x1066-b2", None),
    ],
)
def test_what_a_floor_takes(backend: str, direction: str, case: str, expected: float | None) -> None:
    rows = [
        row(),
        row("backward", call="backward fused", warp_instructions=1000.0),
        row("keys", **SORTED),
        row("cells", **SORTED),
        row(case=DECODER, warp_instructions=100.0),
        row(implementation="core"),
    ]
    assert counts.issued_by(Records(rows), backend, direction, "float32", True, find(case), 90) == expected
    assert counts.issued_by(Records(rows), backend, direction, "float32", True, find(case), 120) is None
