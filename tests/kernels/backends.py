"""Which backends the tests hold against the truth, each where it can run.

The reference, gather and the CPU backend run anywhere. Triton's kernels run in the interpreter on a CPU (marker
`interpreter`) and on the device (marker `gpu`); the CUDA kernels on the device only.
"""

from importlib.util import find_spec

import pytest

HERE = [
    pytest.param(("reference", "cpu"), id="reference-cpu"),
    pytest.param(("gather", "cpu"), id="gather-cpu"),
    pytest.param(("reference", "cuda"), id="reference-cuda", marks=pytest.mark.gpu),
    pytest.param(("gather", "cuda"), id="gather-cuda", marks=pytest.mark.gpu),
]
CPU = [
    pytest.param(
        ("cpu", "cpu"),
        id="cpu",
        marks=pytest.mark.skipif(find_spec("llvmlite") is None, reason="the CPU backend needs llvmlite"),
    )
]
TRITON = [
    pytest.param(("triton", "cpu"), id="triton-interpreter", marks=pytest.mark.interpreter),
    pytest.param(("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu),
]
CUDA = [pytest.param(("cuda", "cuda"), id="cuda-cuda", marks=pytest.mark.gpu)]

ALL = HERE + CPU + TRITON + CUDA
OPERATORS = CPU + TRITON + CUDA
"""the backends that are torch.library operators"""
