"""`msdeform info` and `msdeform verify` from the command line."""

from dataclasses import replace

import pytest

from msdeform.cli import main
from msdeform.kernels import registry
from msdeform.kernels.diagnostics import checks, verify
from msdeform.kernels.diagnostics.options import VerifyOptions
from msdeform.kernels.diagnostics.tolerances import Comparison


def test_info_describes_the_call_that_is_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--device", "cpu", "--dtype", "bfloat16", "--Q", "5", "--L", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in registry.BACKENDS)
    asked = "of bfloat16 on cpu, B=1, Q=5, S=17821, H=8, D=32, L=2, P=4"
    assert f"auto takes 'cpu' for fused_ms_deform_attn {asked}" in printed


def test_verify_checks_the_shape_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--levels",
        "3x4,2X2",
        "--batch",
        "2",
        "--heads",
        "3",
        "--channels",
        "5",
        "--points",
        "1",
        "--queries",
        "6",
    ]
    assert main(["verify", "--device", "cpu", "--backend", "reference", "--dtype", "float64", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("B=2 Q=6 H=3 D=5 P=1 levels 3x4 2x2; value float64") == 3  # both functions, points and boxes
    assert printed.endswith("every error is within its bound: reference\n")


def test_without_a_shape_the_usual_cases_are_checked() -> None:
    usual = checks.default_cases("cpu")
    assert verify._chosen_cases(VerifyOptions(seed=3), "cpu") == [replace(case, seed=3) for case in usual]
    half = verify._chosen_cases(VerifyOptions(dtype="float16"), "cpu")
    assert half == [case for case in usual if case.dtype is checks.DTYPES["float16"]]


def test_an_encoder_is_among_the_usual_cases_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    for interpreting in (True, False):
        monkeypatch.setattr(checks, "interpreting", lambda interpreting=interpreting: interpreting)
        for device in ("cpu", "cuda"):
            encoders = [case for case in checks.default_cases(device) if case.Q == case.S]
            assert len(encoders) == (0 if interpreting else 6)


def test_verify_checks_every_backend_that_runs_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = []
    monkeypatch.setattr(verify, "run", lambda cases, backends, device: checked.append(list(backends)) or True)
    with monkeypatch.context() as context:
        context.setitem(registry._availability, "triton", "no such device")
        context.setitem(registry._availability, "cuda", None)
        assert main(["verify", "--device", "cpu"]) == 0
        context.setitem(registry._availability, "cpu", "llvmlite is not installed")
        assert main(["verify", "--device", "cpu"]) == 0
    assert checked == [["cpu", "reference", "gather"], ["reference", "gather"]]
    first, second = capsys.readouterr().out.split("every error is within its bound: cpu, reference, gather\n")
    assert "triton: not checked: no such device\ncuda: not checked: the tensors are on cpu" in first
    assert "cpu: not checked: llvmlite is not installed\n" in second


def test_verify_says_when_an_error_exceeds_its_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "compare", lambda *_, **__: Comparison(2.0, 1.0))
    words = ["--device", "cpu", "--backend", "reference", "--dtype", "float32", "--batch", "1"]
    assert main(["verify", *words]) == 1
    assert "BREACH: an error exceeds its bound: reference" in capsys.readouterr().out


def test_a_backend_that_cannot_run_here_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--device", "cpu", "--backend", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("msdeform verify: backend 'cuda' cannot run here: ")
