"""The operator as a graph of GridSample nodes, in the engines that are installed."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from msdeform import fused_ms_deform_attn, ms_deform_attn
from msdeform.bench.operator import graphs, implementations, workloads
from msdeform.bench.operator.cases import Case, find
from msdeform.bench.operator.inputs import make_inputs

CPU = torch.device("cpu")
CASES = (find("odd"), Case("uniform", ((6, 5), (1, 1)), B=2, Q=7, H=2, D=4, P=1, locations="uniform"))
ENGINES = {"onnxruntime": graphs.onnxruntime_engine, "openvino": graphs.openvino_engine}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ENGINES)
def test_engines_are_right_and_have_no_backward(name: str, case: Case, dtype: torch.dtype) -> None:
    pytest.importorskip(name)
    inputs = make_inputs(case, dtype, CPU, seed=0)
    before = [tensor.clone() for tensor in inputs]
    subject = implementations.find(name, CPU)
    assert subject.reason is None
    for fused in (False, True):
        checks = workloads.check(
            workloads.operator(case, subject, [inputs], fused), workloads.truth(case, inputs, fused)
        )
        assert checks["forward"].failure is None
        assert checks["backward"].failure == "it has no such function"
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_made_once_for_shapes_and_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    made = []

    def make(model: bytes, threads: int) -> graphs.Engine:
        made.append(threads)
        return ENGINES[name](model, threads)

    monkeypatch.setattr(graphs, f"{name}_engine", make)
    subject = implementations._engine(name, CPU)
    assert subject.plain is not None
    assert subject.fused is not None
    case = CASES[1]
    inputs, others = (make_inputs(case, torch.float32, CPU, seed) for seed in (0, 1))
    plain = subject.plain(inputs.value, case.sizes, *inputs[4:6])
    torch.testing.assert_close(plain, ms_deform_attn(inputs.value, case.sizes, *inputs[4:6], backend="reference"))
    first = subject.fused(inputs.value, case.sizes, *inputs[1:4])
    kept = first.clone()
    second = subject.fused(others.value, case.sizes, *others[1:4])
    assert torch.equal(first, kept)  # the output is the caller's
    expected = fused_ms_deform_attn(others.value, case.sizes, *others[1:4], backend="reference")
    torch.testing.assert_close(second, expected)
    assert made == [torch.get_num_threads()] * 2


@pytest.mark.parametrize("name", ENGINES)
def test_a_process_outlives_its_engines(name: str) -> None:
    """In whatever order they end: two cores of OpenVINO leave the next signal no stack."""
    pytest.importorskip(name)
    program = f"""
import os, signal, torch
from msdeform.bench.operator import graphs
model = graphs.graph(lambda value, sizes: value + 1, ((1, 1),), [torch.zeros(2)])
first, second = (graphs.{name}_engine(model, 1) for _ in range(2))
output = torch.zeros(2)
for engine in (first, second):
    engine([output.clone()], output)
del engine, first, second
signal.signal(signal.SIGUSR1, lambda *_: print("told", output.tolist()))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "told [2.0, 2.0]\n"), done.stderr


@pytest.mark.parametrize("name", ENGINES)
def test_a_missing_engine_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"pip install {name} onnx" in (implementations.absent(name, CPU) or "")
