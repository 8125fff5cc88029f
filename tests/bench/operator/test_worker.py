"""One implementation measured beside a baseline: what is wrong gets no speed, what is slower is seen to be."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform import fused_ms_deform_attn, ms_deform_attn
from msdeform.bench.harness import measure
from msdeform.bench.operator import workloads
from msdeform.bench.operator.cases import CASES, Case
from msdeform.bench.operator.implementations import Implementation
from msdeform.bench.operator.jobs import Operator
from msdeform.bench.operator.runner import operator_rows
from msdeform.bench.report.compare import compare, report
from msdeform.kernels.diagnostics.tolerances import Comparison
from msdeform.kernels.diagnostics.tolerances import compare as compare_tensors

CPU = torch.device("cpu")
FUNCTIONS = ("ms_deform_attn", "fused_ms_deform_attn")


class Skewed(torch.autograd.Function):
    """The identity, whose gradient is `factor` times too large."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.factor, None


def variant(
    name: str, *, ours: bool = False, output: float = 1.0, gradient: float = 1.0, repeats: int = 1
) -> Implementation:
    """The reference, with its output or the gradient of value scaled, or slowed."""

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(value: Tensor, *rest: Any) -> Tensor:
            for _ in range(repeats - 1):  # work, not sleep: a busy machine slows it as it slows the baseline
                function(value, *rest, backend="reference")
            return output * function(Skewed.apply(value, gradient), *rest, backend="reference")

        return run

    return Implementation(name, plain=wrap(ms_deform_attn), fused=wrap(fused_ms_deform_attn), ours=ours)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "small", Case("small", ((6, 5), (3, 2)), B=1, Q=7, H=2, D=4))


def rows_of(
    subject: Implementation,
    baseline: Implementation | None = None,
    functions: tuple[str, ...] = FUNCTIONS,
    seconds: float = 0.0,
) -> list[dict[str, Any]]:
    jobs = [Operator("small", "grid", "float32", function, subject.name) for function in functions]
    return [row for job in jobs for row in operator_rows(job, subject, baseline, CPU, seconds)]


def test_a_right_one_gets_its_numbers() -> None:
    rows = rows_of(variant("other"), variant("reference"))
    assert [row["direction"] for row in rows] == ["forward", "backward", "both"] * 2
    for row in rows:
        assert row["failure"] is None
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert row["error"] <= row["bound"]
        assert (row["baseline"], row["ours"]) == ("reference", False)
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["bytes_per_second"] is None  # no GPU
        assert (row["saved_mb"] is None) == (row["direction"] == "forward")
        assert row["shape"] == {"B": 1, "Q": 7, "S": 36, "H": 2, "D": 4, "L": 2, "P": 4}


def test_rows_say_what_is_set_during_the_backward() -> None:
    rows = rows_of(replace(variant("other"), setting="fill=False"), functions=FUNCTIONS[:1])
    assert [row["setting"] for row in rows] == [None, "fill=False", "fill=False"]


def test_the_baseline_is_no_ratio_of_itself() -> None:
    assert {row["ratio"] for row in rows_of(variant("reference"), variant("reference"))} == {None}


def test_a_wrong_output_gets_no_speed() -> None:
    rows = rows_of(variant("wrong", output=1.001))
    assert all(row["median_us"] is None and row["ratio"] is None for row in rows)
    assert rows[0]["failure"].startswith("differs from float64 in output: error")
    assert rows[1]["failure"].startswith("differs from float64 in sampling_locations")


def test_a_wrong_gradient_costs_the_backward_its_speed() -> None:
    speeds = {(row["function"], row["direction"]): row["median_us"] for row in rows_of(variant("wrong", gradient=1.01))}
    for function in FUNCTIONS:
        assert speeds[function, "forward"] is not None
        assert speeds[function, "backward"] is None
        assert speeds[function, "both"] is None


def test_a_module_stands_or_falls_with_its_operator() -> None:
    rows = rows_of(variant("reference", ours=True), functions=("MSDeformAttn",))
    assert all(row["median_us"] > 0 for row in rows)
    rows = rows_of(variant("reference", ours=True, output=1.001), functions=("MSDeformAttn",))
    assert all(row["median_us"] is None and row["ours"] for row in rows)


def test_one_that_raises_is_a_row() -> None:
    def fail(*_: Any) -> Tensor:
        raise KeyError("no such kernel\nand more")

    rows = rows_of(Implementation("broken", plain=fail))
    assert rows[0]["failure"] == "KeyError: 'no such kernel\\nand more'"
    assert rows[-1]["failure"] == "it has no such function"
    assert len(rows) == 6


def test_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measure, "time_call", exhaust)
    assert {row["failure"] for row in rows_of(variant("reference"))} == {"out of memory"}


def test_a_baseline_that_fails_costs_only_the_ratio() -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("not here")

    rows = rows_of(variant("other"), Implementation("reference", plain=fail, fused=fail))
    assert all(row["median_us"] > 0 and row["ratio"] is None and row["baseline"] is None for row in rows)


def test_gradients_alone_have_the_wider_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def record(result: Tensor, truth: Tensor, compute: torch.dtype, *, gradient: bool) -> Comparison:
        seen.append(gradient)
        return compare_tensors(result, truth, compute, gradient=gradient)

    monkeypatch.setattr(workloads, "compare", record)
    rows_of(variant("reference"))
    assert seen == [False, True, True, True, False, True, True, True, True]  # plain, then fused


def test_a_slowed_backend_is_flagged_and_its_twin_is_not() -> None:
    source = {"code": "c", "device": "cpu", "host_cpu": "x", "commit": "abcdef"}
    rows = [
        row
        for repeats, name in ((3, "slow"), (1, "twin"))
        for row in rows_of(variant(name, repeats=repeats), variant("reference"), seconds=0.3)
    ]
    rows += rows_of(variant("reference"))
    rows = [{**row, **source} for row in rows if row["direction"] == "forward"]
    flagged = compare(rows, "backend", "reference", "slow")
    assert [change.verdict(0.05) for change in flagged] == ["slower REGRESSION"] * 2
    assert "2 cells, 2 REGRESSIONS" in report(flagged, 0.05, "backend", ("reference", "slow"))
    assert not any("REGRESSION" in change.verdict(0.25) for change in compare(rows, "backend", "reference", "twin"))
