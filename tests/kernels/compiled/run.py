"""Runs the Triton kernels as compiled, and holds output and gradients against the float64 reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msdeform.bench.static.ptx.verify import call
from msdeform.kernels.diagnostics.tolerances import compare
from msdeform.kernels.diagnostics.verify import Case, evaluate, make_inputs

Change = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]

METHODS = ("atomics", "cells")
"""the two ways in which the gradient of value is added up"""


def make_grad_output(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed + 1)
    return torch.randn(case.B, case.Q, case.H * case.D, generator=generator).to(case.dtype)


def check(case: Case, method: str, change: Change | None = None, **options: Any) -> None:
    """Output and every gradient against the truth, within the bounds of the project.

    Args:
        change: what is done to the inputs before the call.
        options: of `call`.
    """
    tensors = make_inputs(case)
    if change is not None:
        tensors = change(tensors)
    grad_output = make_grad_output(case)
    truth = evaluate(case, [t.double() for t in tensors], grad_output.double(), "reference")
    results = call(case.sizes, tensors, grad_output, method, **options)
    double = any(t.dtype is torch.float64 for t in tensors)
    needs = (True, *(options.get("needs") or (True,) * len(tensors)))
    for name, needed, result in zip(("output", *case.names), needs, results, strict=True):
        if not needed:
            continue
        assert result is not None
        compute = torch.float64 if double else torch.float32
        comparison = compare(result, truth[name], compute, gradient=name != "output")
        assert comparison.ok, f"{name}: {comparison}; {case.describe()}; {method}"
