"""Which backend runs: precedence, no silent fallback, every reason."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import msdeform
from msdeform.kernels import registry
from msdeform.kernels.backend import import_failure
from msdeform.kernels.contract import Inputs
from msdeform.kernels.registry import AUTO, BACKENDS, BackendUnavailable, example_inputs


def test_argument_before_setting_before_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._availability, "triton", None)
    on_gpu = example_inputs("cuda")
    monkeypatch.setitem(registry._availability, "cuda", None)
    with msdeform.use_backend("cuda"):
        assert registry.resolve(on_gpu) == "cuda"
        assert registry.resolve(on_gpu, "reference") == "reference"
        with msdeform.use_backend("reference"):
            assert registry.resolve(on_gpu) == "reference"
        assert registry.resolve(on_gpu) == "cuda"
    assert registry.current_setting() == AUTO


def test_auto_takes_the_highest_rank_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BACKENDS:
        monkeypatch.setitem(registry._availability, name, None)
    monkeypatch.setitem(BACKENDS, "triton", BACKENDS["triton"]._replace(rank=20))  # as without the interpreter
    assert registry.resolve(example_inputs("cuda"), AUTO) == "triton"
    assert registry.resolve(example_inputs("cpu"), AUTO) == "cpu"
    assert registry.resolve(example_inputs("mps"), AUTO) == "reference"
    monkeypatch.setitem(registry._availability, "triton", "a reason")
    assert registry.resolve(example_inputs("cuda"), AUTO) == "cuda"


def test_auto_never_takes_a_rank_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BACKENDS:
        monkeypatch.setitem(registry._availability, name, None)
        monkeypatch.setitem(BACKENDS, name, BACKENDS[name]._replace(rank=-1))
    with pytest.raises(BackendUnavailable, match="triton: runs only when named; cuda: runs only when named"):
        registry.resolve(example_inputs("cuda"), AUTO)
    assert registry.resolve(example_inputs("cuda"), "triton") == "triton"
    assert {verdict.auto_reason for verdict in registry.report(example_inputs("cuda"))} == {
        "runs only when named",
        "the tensors are on cuda, not on the CPU",
    }


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("interpret", "rank"), [("1", "-1 True"), ("0", "20 False")])
def test_the_interpreter_runs_only_when_named(interpret: str, rank: str) -> None:
    code = (
        "from msdeform.kernels import registry\n"
        "from msdeform.kernels.triton.interpreter import interpreting\n"
        "print(registry.BACKENDS['triton'].rank, interpreting(), registry.resolve_for('mps'))\n"
        "if interpreting(): assert registry.resolve_for('cpu', backend='triton') == 'triton'"
    )
    environment = os.environ | {"TRITON_INTERPRET": interpret, "MSDEFORM_BACKEND": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{rank} reference"


def test_auto_that_finds_none_gives_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BACKENDS:
        monkeypatch.setitem(registry._availability, name, f"reason of {name}")
    with pytest.raises(BackendUnavailable, match="no backend can run fused.*B=1, Q=17821") as caught:
        registry.resolve(example_inputs("cpu"), AUTO)
    assert all(f"{name}: reason of {name}" in str(caught.value) for name in BACKENDS)


def test_a_named_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._availability, "triton", "no such device")
    with (
        msdeform.use_backend("triton"),
        pytest.raises(BackendUnavailable, match="backend 'triton' cannot run .*: no such device"),
    ):
        registry.resolve(example_inputs("cpu"))


def test_not_installed_and_broken_are_different_reasons(caplog: pytest.LogCaptureFixture) -> None:
    missing = ModuleNotFoundError("No module named 'triton'", name="triton")
    assert import_failure("Triton", "triton", missing) == "Triton is not installed"
    assert not caplog.records
    broken = ImportError("libcuda.so.1: cannot open")
    assert import_failure("Triton", "triton", broken) == (
        "Triton is installed but fails to import: ImportError: libcuda.so.1: cannot open"
    )
    assert len(caplog.records) == 1


def test_every_backend_describes_itself_under_its_name() -> None:
    assert list(BACKENDS) == ["reference", "gather", "cpu", "triton", "cuda"]
    assert all(backend.name == name and backend.summary for name, backend in BACKENDS.items())
    assert min(BACKENDS["cuda"].rank, BACKENDS["cpu"].rank) > BACKENDS["reference"].rank >= 0


def test_backends_refuse_what_they_cannot_read() -> None:
    assert BACKENDS["cuda"].refuses(example_inputs("cpu")) == "the tensors are on cpu, not on a CUDA device"
    assert BACKENDS["triton"].refuses(example_inputs("mps")) == "the tensors are on mps, not on a CUDA device"
    assert BACKENDS["cpu"].refuses(example_inputs("cuda")) == "the tensors are on cuda, not on the CPU"
    assert "S=2147483648 pixels" in str(BACKENDS["cpu"].refuses(example_inputs("cpu", S=2**31)))
    taking = {name for name, backend in BACKENDS.items() if backend.refuses(example_inputs("cuda")) is None}
    assert taking == {"reference", "gather", "triton", "cuda"}


def test_use_backend_refuses_unknown_names_and_leaves_the_setting() -> None:
    with pytest.raises(ValueError, match="did you mean reference"):
        msdeform.use_backend("referense")
    assert registry.current_setting() == AUTO


def test_the_setting_is_restored_after_an_exception() -> None:
    with pytest.raises(KeyError), msdeform.use_backend("reference"):
        raise KeyError
    assert registry.current_setting() == AUTO


def test_the_environment_is_read_at_import() -> None:
    code = "from msdeform.kernels import registry; print(registry.current_setting())"
    environment = os.environ | {"MSDEFORM_BACKEND": "reference"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reference"


def test_an_empty_or_misspelt_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDEFORM_BACKEND", "")
    assert registry._setting_from_environment() == AUTO
    monkeypatch.setenv("MSDEFORM_BACKEND", "cudda")
    expected = "MSDEFORM_BACKEND: backend: expected one of auto, reference, gather, cpu, triton, cuda, got 'cudda'"
    with pytest.raises(ValueError, match=expected):
        registry._setting_from_environment()


def test_the_registry_imports_neither_triton_nor_cuda() -> None:
    code = (
        "import sys; import msdeform.kernels.registry; print([m for m in ('triton', 'cuda.core') if m in sys.modules])"
    )
    # torch itself may bring Triton: what counts is what this module adds to it
    bare = "import sys; import torch; print([m for m in ('triton', 'cuda.core') if m in sys.modules])"
    ours, torchs = (
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True).stdout
        for c in (code, bare)
    )
    assert ours == torchs


def test_inputs_describe_themselves() -> None:
    inputs = Inputs(1, 2, 3, 4, 5, 6, 7, torch.bfloat16, torch.float32, "cuda", False)
    assert inputs.describe() == "ms_deform_attn of bfloat16 on cuda, B=1, Q=2, S=3, H=4, D=5, L=6, P=7"


def test_a_registered_backend_is_known_within_and_gone_after() -> None:
    before, available = dict(BACKENDS), dict(registry._availability)
    stand_in = BACKENDS["reference"]._replace(name="stand-in", rank=50)
    with registry.registered(stand_in):
        assert registry.resolve(example_inputs("cpu")) == "stand-in"
        blocked = BACKENDS["reference"]._replace(unavailable=lambda: "blocked")
        with pytest.raises(BackendUnavailable, match="blocked"), registry.registered(blocked):
            registry.resolve(example_inputs("cpu"), "reference")
        assert registry.resolve(example_inputs("cpu"), "reference") == "reference"
    assert before == BACKENDS
    assert list(before) == list(BACKENDS)
    assert {name: registry._availability.get(name) for name in available} == available
    with pytest.raises(ValueError, match="expected one of"):
        registry.resolve(example_inputs("cpu"), "stand-in")
