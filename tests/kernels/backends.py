"""Which backends the tests hold against the truth, each where it can run.

Triton's kernels run in the interpreter on a CPU (marker `interpreter`) and on the device (marker `gpu`); the CUDA
kernels on the device only; the reference anywhere.
"""

import pytest

HERE = [
    pytest.param(("reference", "cpu"), id="reference-cpu"),
    pytest.param(("reference", "cuda"), id="reference-cuda", marks=pytest.mark.gpu),
]
TRITON = [
    pytest.param(("triton", "cpu"), id="triton-interpreter", marks=pytest.mark.interpreter),
    pytest.param(("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu),
]
CUDA = [pytest.param(("cuda", "cuda"), id="cuda-cuda", marks=pytest.mark.gpu)]

ALL = HERE + TRITON + CUDA
OPERATORS = TRITON + CUDA
"""the backends that are torch.library operators"""
