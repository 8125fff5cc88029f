"""Triton kernels launched with parameters that are given, in place of those that the launcher chooses.

All that the benchmarks know of the launcher's inside stands here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..kernels.contract import Sizes
from ..kernels.triton import launch
from .cases import OperatorInputs

Settings = Mapping[str, int | None]
"""a compile-time parameter of a kernel, or an option of the compiler, by its name; None leaves it to the compiler"""
Results = dict[str, Tensor]
_NEEDS = (True, True, True, True)


def usual_forward(inputs: OperatorInputs) -> dict[str, Any]:
    """What the launcher chooses for a fused forward of these inputs: BLOCK_Q, BAND, num_warps and maxnreg."""
    meta, options = _forward(inputs)
    chosen = {"num_warps": 4, "maxnreg": None, **options}
    return {"BLOCK_Q": meta["BLOCK_Q"], "BAND": meta["BAND"]} | {
        name: chosen[name] for name in ("num_warps", "maxnreg")
    }


def forward(inputs: OperatorInputs, sizes: Sizes, settings: Settings) -> Callable[[], Results]:
    """The fused forward, prepared with some parameters replaced: a call gives the output (B, Q, H*D)."""
    value, references, offsets, logits = inputs[:4]
    levels = torch.tensor(sizes, device=value.device)
    meta, options = _forward(inputs)
    for name, number in settings.items():
        place = meta if name in meta else options
        place[name] = number
        if number is None:
            del place[name]
    B, Q, H, D = *offsets.shape[:3], value.shape[3]
    grid = launch.forward_grid(B, H, Q, meta)
    numbers = launch.forward_numbers(value, references, offsets, logits)

    def run() -> Results:
        output = value.new_empty(B, Q, H * D, dtype=launch.stored_dtype(value))
        with launch.device_of(value):
            launch.forward_kernel[grid](value, levels, offsets, logits, references, output, *numbers, **meta, **options)
        return {"output": output.to(value.dtype)}

    return run


def sorted_backward(inputs: OperatorInputs, sizes: Sizes, settings: Settings) -> Callable[[], Results]:
    """The fused backward without atomics, with RUN points of a walk: a call gives the four gradients by their names."""
    value, references, offsets, logits = inputs[:4]
    levels = torch.tensor(sizes, device=value.device)

    def run() -> Results:
        with _set("backward_method", "cells"), _set("RUN", settings.get("RUN") or launch.RUN):
            gradients = launch.fused_backward(inputs.grad_output, value, levels, references, offsets, logits, _NEEDS)
        return dict(zip(OperatorInputs._fields[:4], gradients, strict=True))

    return run


def _forward(inputs: OperatorInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The forward's compile-time parameters and compiler options."""
    value, references, offsets, logits = inputs[:4]
    meta = launch.forward_parameters(value, references, offsets, logits)
    return dict(meta), dict(launch.forward_options(value, offsets))


@contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    """Within, a constant of the launcher has another value."""
    usual = getattr(launch, name)
    setattr(launch, name, value)
    try:
        yield
    finally:
        setattr(launch, name, usual)
