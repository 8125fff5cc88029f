"""`msdeform bench dispatch`: what a call costs the host, on this machine, of launches that do nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench.cpu import host_time
from msdeform.bench.harness.records import read
from msdeform.bench.operator.cases import find
from msdeform.cli import main
from msdeform.kernels import registry
from msdeform.kernels.api import ms_deform_attn
from msdeform.kernels.diagnostics.checks import Case, make_inputs
from tests.kernels.stand_ins import without_kernels

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

CASE = Case(B=1, Q=3, H=2, D=4, P=2, sizes=((3, 4), (2, 2)), coordinates=None)


@pytest.mark.compiled
def test_every_stage_is_timed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "dispatch", "--rounds", "2", "--calls", "2", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 1 + 2 * len(host_time.DIRECTIONS) * len(host_time.STAGES)
    assert len({len(line) for line in lines}) == 1, "aligned"
    rows = [json.loads(line) for line in (tmp_path / "dispatch.jsonl").read_text().splitlines()]
    assert len(read(tmp_path).of("dispatch")) == len(rows) == len(lines) - 1, "no key twice"
    assert str(tmp_path) not in rows[0]["command"]
    for row in rows:
        assert (row["over_bare_us"] == 0.0) == (row["stage"] == "bare")
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]

    launches = {(row["direction"], row["stage"]): row["launches"] for row in rows}
    assert launches["forward", "bare"] == 0
    assert launches["forward", "launches only"] == launches["forward", "function"] == 1
    assert launches["forward+backward", "launches only"] == 1
    assert launches["forward+backward", "registry"] == 2
    assert launches["forward+backward, sorted", "launches only"] == 4, "the backward's"
    assert launches["forward+backward, sorted", "warm"] == 5


def test_launches_of_a_call() -> None:
    """One kernel forward and one backward; nothing where no gradient is wanted."""
    with without_kernels() as kernels:
        tensors = [tensor.requires_grad_() for tensor in make_inputs(CASE)]
        for calls in (1, 2, 3):  # the first is checked; the others launch what it kept
            output = ms_deform_attn(tensors[0], CASE.sizes, *tensors[1:])
            assert (kernels["forward"].launches, kernels["backward"].launches) == (calls, calls - 1)
            output.backward(torch.ones_like(output))
            assert (kernels["forward"].launches, kernels["backward"].launches) == (calls, calls)


@pytest.mark.compiled
def test_a_warm_call_launches_the_kept_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed as `warm` and as `function` doesn't pass Triton's own launcher, which looks the kernel up."""
    case = dataclasses.replace(find(host_time.CASE), sizes=((2, 2),) * 4)
    with host_time.without_device():
        stages = host_time.prepared(case, "ms_deform_attn", "forward+backward", torch.device("cpu"))
        for call in stages.values():
            call()
        looked_up: list[str] = []
        original = JITFunction.run

        def run(self: Any, *arguments: Any, **options: Any) -> Any:
            looked_up.append(self.__name__)
            return original(self, *arguments, **options)

        monkeypatch.setattr(JITFunction, "run", run)
        found = {}
        for stage, call in stages.items():
            looked_up.clear()
            call()
            found[stage] = len(looked_up)
    assert found == {
        "bare": 0,
        "launches only": 0,
        "warm": 0,
        "function": 0,
        "launch": 2,
        "dispatcher": 2,
        "checks": 2,
        "registry": 2,
    }


def test_nothing_is_left_of_the_stand_ins() -> None:
    tensors = make_inputs(CASE)
    want = ms_deform_attn(tensors[0], CASE.sizes, *tensors[1:])
    before = dict(registry.BACKENDS), dict(registry._availability)
    with without_kernels() as kernels:
        ms_deform_attn(tensors[0], CASE.sizes, *tensors[1:])
    assert before == (dict(registry.BACKENDS), dict(registry._availability))
    torch.testing.assert_close(ms_deform_attn(tensors[0], CASE.sizes, *tensors[1:]), want)
    assert kernels["forward"].launches == 1, "those within only"


def test_times_alternate_and_garbage_waits() -> None:
    order: list[str] = []
    taken = host_time.alternate([lambda: order.append("a"), lambda: order.append("b")], rounds=3, times=2)
    assert order[-12:] == ["a", "a", "b", "b"] * 3
    assert [len(times) for times in taken] == [3, 3]


@pytest.mark.parametrize("name", ["rounds", "calls"])
def test_slips(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "dispatch", f"--{name}", "0"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"msdeform bench dispatch: --{name}: expected at least 1, got 0\n"
