"""Calls of kernels that are counted: ours, and other people's from a copy of their sources that the user has.

None of their code is here; only what a launch needs to know of it, which their launchers show.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from .cases import Case, OperatorInputs

_BLOCK_Q = 32  # queries of a program of deformops
_NAMESPACE = ("deformops", "deformops.core", "deformops.backends", "deformops.backends.triton")


class Call(NamedTuple):
    """One call of an implementation's Triton kernels."""

    implementation: str
    name: str
    run: Callable[[], object]


# of inputs on the CPU, of a case and a dtype
Calls = Callable[[OperatorInputs, Case], Iterator[Call]]


def ours(inputs: OperatorInputs, case: Case) -> Iterator[Call]:
    """Forward and both backwards of the Triton backend; references of an encoder need no gradient."""
    from ..kernels.triton import launch

    value, levels, grad_output = inputs.value, torch.tensor(case.sizes), inputs.grad_output
    fused = (inputs.reference_points, inputs.sampling_offsets, inputs.attention_logits)
    plain = (inputs.sampling_locations, inputs.attention_weights)

    def backward(method: str, run: Callable[[], object]) -> Callable[[], object]:
        def chosen() -> object:
            before, launch.backward_method = launch.backward_method, method
            try:
                return run()
            finally:
                launch.backward_method = before

        return chosen

    def fused_backward() -> object:
        return launch.fused_backward(grad_output, value, levels, *fused, (True, False, True, True))

    def plain_backward() -> object:
        return launch.backward(grad_output, value, levels, *plain, (True, True, True))

    yield Call("triton", "forward fused", lambda: launch.fused_forward(value, levels, *fused))
    yield Call("triton", "forward plain", lambda: launch.forward(value, levels, *plain))
    yield Call("triton", "backward fused", backward("atomics", fused_backward))
    yield Call("triton", "backward plain", backward("atomics", plain_backward))
    if case.Q is None:  # the sorted one is for encoders
        yield Call("triton", "backward fused, sorted", backward("cells", fused_backward))
        yield Call("triton", "backward plain, sorted", backward("cells", plain_backward))


def deformops(folder: Path) -> Calls:
    """Its query-tiled kernels, from the package unpacked in `folder`.

    Its modules are loaded around the package's own __init__, which wants a newer Python than the kernels need.
    """
    for name in _NAMESPACE:
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    module = importlib.import_module("deformops.backends.triton._kernels.msda_query_tiled")

    def calls(inputs: OperatorInputs, case: Case) -> Iterator[Call]:
        B, Q, H, D, L, P = case.B, case.queries, case.H, case.D, case.L, case.P
        value, locations = inputs.value, inputs.sampling_locations
        shapes = torch.tensor(case.sizes)
        starts = torch.tensor([sum(h * w for h, w in case.sizes[:level]) for level in range(L)])
        grad_output = inputs.grad_output.view(B, Q, H, D)
        plain = (value, shapes, starts, locations, inputs.attention_weights)

        def forward(weights: torch.Tensor, aggregate: int) -> None:
            output = torch.empty_like(grad_output)
            module.msda_forward_kernel[-(-Q // _BLOCK_Q), H, B](
                *(value, shapes, starts, locations, weights, output),
                *(B, Q, H, L, P, D),
                *(stride for tensor in (value, locations, weights, output) for stride in tensor.stride()),
                BLOCK_SIZE_Q=_BLOCK_Q,
                BLOCK_SIZE_D=D,
                aggregate=aggregate,
            )

        yield Call("deformops", "forward plain", lambda: forward(inputs.attention_weights, 0))
        yield Call("deformops", "forward softmax inside", lambda: forward(inputs.attention_logits, 1))
        yield Call("deformops", "backward plain", lambda: module.atomic_backward_launch(grad_output, *plain))
        if value.dtype is not torch.float32:
            wide = module.float32_backward_launch
            yield Call("deformops", "backward plain, fp32acc", lambda: wide(grad_output, *plain))

    return calls


def official_source(file: Path) -> str:
    """The kernels of ``ms_deform_im2col_cuda.cuh`` without its headers and launchers, which need PyTorch's.

    Raises ValueError for another file.
    """
    text = file.read_text()
    launchers = re.search(r"template <typename \w+>\s*void ms_deformable_im2col_cuda", text)
    if launchers is None:
        raise ValueError(f"--official: expected Deformable DETR's ms_deform_im2col_cuda.cuh, got {file}")
    kernels = re.sub(r"^#include.*$", "", text[: launchers.start()], flags=re.MULTILINE)
    return f"typedef long long int64_t;\n{kernels}"
