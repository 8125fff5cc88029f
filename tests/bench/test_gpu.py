"""The GPU script end to end in its reduced form, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform import fused_ms_deform_attn, ms_deform_attn
from msdeform.bench import gpu, workloads
from msdeform.bench.cases import Case
from msdeform.bench.peers import Peer
from msdeform.kernels.tolerances import Comparison, compare

SMALL = (Case("small", ((6, 5), (3, 2)), B=1, Q=7, H=2, D=4),)
ARGUMENTS = ["--quick", "--seconds", "0", "--dtypes", "float32", "--no-verify", "--no-tests"]


class Skewed(torch.autograd.Function):
    """The identity, whose gradient is `factor` times too large."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.factor, None


def variant(name: str, *, ours: bool = False, output: float = 1.0, gradient: float = 1.0) -> Peer:
    """The reference, with its output or the gradient of value scaled."""

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(value: Tensor, *rest: Any) -> Tensor:
            return output * function(Skewed.apply(value, gradient), *rest, backend="reference")

        return run

    return Peer(name, plain=wrap(ms_deform_attn), fused=wrap(fused_ms_deform_attn), ours=ours)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    """Run the script on a small case with the given peers; its exit status and rows."""

    def call(*found: Peer) -> tuple[int, list[dict[str, Any]]]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(gpu, "QUICK", SMALL)
        if found:
            monkeypatch.setattr(gpu, "peers", lambda device, compiled: list(found))
        status = gpu.main([*ARGUMENTS, "--out", str(tmp_path)])
        (file,) = tmp_path.glob("*.jsonl")
        return status, [json.loads(line) for line in file.read_text().splitlines()]

    return call


def test_reduced_form_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "msdeform.bench.gpu", *ARGUMENTS, "--out", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    (file,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    measured = {(row["case"], row["function"], row["direction"]) for row in rows if row["backend"] == "reference"}
    functions = ("ms_deform_attn", "fused_ms_deform_attn", "MSDeformAttn")
    cases = ("encoder-reduced", "decoder-reduced")
    assert measured == {(c, f, d) for c in cases for f in functions for d in ("forward", "backward")}
    for row in rows:
        assert row["failure"] is None
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert row["error"] <= row["bound"]
        assert {"commit", "dirty", "device", "torch", "date", "command"} <= set(row)
        assert str(tmp_path) not in row["command"]
    assert answer.stdout.splitlines()[-len(rows) - 1].startswith("case")  # the table comes last


def test_rows_are_appended(run: Callable[..., tuple[int, list[dict[str, Any]]]]) -> None:
    _, first = run(variant("reference", ours=False))
    _, second = run(variant("reference", ours=False))
    assert second[: len(first)] == first
    assert len(second) == 2 * len(first)


def test_a_wrong_output_gets_no_speed(
    run: Callable[..., tuple[int, list[dict[str, Any]]]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = run(variant("reference"), variant("wrong", output=1.001))
    assert status == 0  # someone else's fault
    wrong = [row for row in rows if row["backend"] == "wrong"]
    assert len(wrong) == 4
    assert all(row["median_us"] is None and row["failure"].startswith("incorrect") for row in wrong)
    assert all(row["median_us"] is not None for row in rows if row["backend"] == "reference")
    assert "wrong, small, float32, ms_deform_attn, forward: incorrect output" in capsys.readouterr().out


def test_a_wrong_gradient_costs_the_backward_its_speed(run: Callable[..., tuple[int, list[dict[str, Any]]]]) -> None:
    _, rows = run(variant("wrong", gradient=1.01))
    speeds = {(row["function"], row["direction"]): row["median_us"] for row in rows}
    for function in ("ms_deform_attn", "fused_ms_deform_attn"):
        assert speeds[function, "forward"] is not None
        assert speeds[function, "backward"] is None
    assert rows[1]["failure"].startswith("incorrect value")


def test_a_backend_of_ours_that_is_wrong_fails_the_run(
    run: Callable[..., tuple[int, list[dict[str, Any]]]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = run(variant("reference", ours=True, output=1.001))
    assert status == 1
    assert all(row["median_us"] is None for row in rows)  # the module built on it, too
    assert {row["function"] for row in rows} == {"ms_deform_attn", "fused_ms_deform_attn", "MSDeformAttn"}
    assert "FAILED" in capsys.readouterr().out


def test_a_peer_that_raises_is_reported(run: Callable[..., tuple[int, list[dict[str, Any]]]]) -> None:
    def fail(*_: Any) -> Tensor:
        raise KeyError("no such kernel\nand more")

    status, rows = run(Peer("broken", plain=fail, fused=fail), variant("reference"))
    assert status == 0
    assert rows[0]["failure"] == "KeyError: 'no such kernel\\nand more'"
    assert rows[-1]["median_us"] is not None


def test_gradients_alone_have_the_wider_bound(
    run: Callable[..., tuple[int, list[dict[str, Any]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def record(result: Tensor, truth: Tensor, compute: torch.dtype, *, gradient: bool) -> Comparison:
        seen.append(gradient)
        return compare(result, truth, compute, gradient=gradient)

    monkeypatch.setattr(workloads, "compare", record)
    run(variant("reference"))
    assert seen == [False, True, True, True, False, True, True, True, True]  # plain, then fused


def test_out_of_memory_is_a_row(
    run: Callable[..., tuple[int, list[dict[str, Any]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "_time_backward", exhaust)
    _, rows = run(variant("reference"))
    assert {row["failure"] for row in rows if row["direction"] == "backward"} == {"out of memory"}


def test_a_failed_verification_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "QUICK", ())
    monkeypatch.setattr(gpu, "_verify", lambda skipped: ["msdeform verify"])
    assert gpu.main(["--quick", "--no-tests", "--out", str(tmp_path)]) == 1


def test_the_reduced_form_keeps_nothing_unasked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "QUICK", ())
    monkeypatch.setattr(gpu, "_ROOT", tmp_path)
    assert gpu.main(ARGUMENTS) == 0
    assert "no rows were kept" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_the_rows_is_no_part_of_the_command() -> None:
    assert gpu._public(["--out", "x", "--quick"]) == ["--quick"]
    assert gpu._public(["--quick", "--out=x"]) == ["--quick"]


def test_an_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        gpu.main(["--quik"])
    assert exit_.value.code == 2
    assert "--quik" in capsys.readouterr().err
