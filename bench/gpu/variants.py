"""Triton kernels launched with parameters that are given, in place of those that the launcher chooses.

All that the benchmarks know of the launcher's inside stands here.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...kernels.contract import Sizes
from ...kernels.cuda import tiles
from ...kernels.triton import launch
from ..operator.inputs import OperatorInputs

Settings = Mapping[str, int | None]
"""a compile-time parameter of a kernel, or an option of the compiler, by its name; None leaves it to the compiler"""
Results = dict[str, Tensor]


def usual_forward(inputs: OperatorInputs) -> dict[str, Any]:
    """What the launcher chooses for a fused forward of these inputs: BLOCK_Q, BAND, num_warps and maxnreg."""
    parameters = launch.forward_parameters(launch.call_of(inputs[:4]))
    options = {"num_warps": 4, "maxnreg": None} | launch.forward_options(inputs.value)
    return {"BLOCK_Q": parameters["BLOCK_Q"], "BAND": parameters["BAND"]} | options


def forward(inputs: OperatorInputs, sizes: Sizes, settings: Settings) -> Callable[[], Results]:
    """The fused forward, prepared with some parameters replaced: a call gives the output (B, Q, H*D)."""
    levels, tensors = tuple(itertools.chain(*sizes)), inputs[:4]
    usual = launch.forward_parameters(launch.call_of(tensors))
    parameters = usual | {name: number for name, number in settings.items() if name in usual}
    options = launch.forward_options(inputs.value) | {n: v for n, v in settings.items() if n not in usual}
    options = {name: number for name, number in options.items() if number is not None}
    with launch.replaced(forward_parameters=lambda call: parameters, forward_options=lambda value: options):
        prepared = launch.prepare_forward(levels, tensors)
    return lambda: {"output": prepared(levels, tensors)}


def tiled_backward(inputs: OperatorInputs, sizes: Sizes, settings: Settings) -> Callable[[], Results]:
    """The fused backward by tiles, these of :class:`.tiles.Tile`: a call gives the four gradients by their names."""
    run, tile = _backward(inputs, sizes), tiles.Tile(**settings)  # type: ignore[arg-type]

    def tiled() -> Results:
        with launch.replaced(backward_method="tiles", tile=tile):
            return run()

    return tiled


def sorted_backward(inputs: OperatorInputs, sizes: Sizes, settings: Settings) -> Callable[[], Results]:
    """The fused backward without atomics, with RUN points of a walk: a call gives the four gradients by their names."""
    run = _backward(inputs, sizes)

    def sorting() -> Results:
        with launch.replaced(backward_method="sorted", RUN=settings.get("RUN") or launch.RUN):
            return run()

    return sorting


def _backward(inputs: OperatorInputs, sizes: Sizes) -> Callable[[], Results]:
    levels, tensors = tuple(itertools.chain(*sizes)), inputs[:4]
    prepared = launch.prepare_backward(inputs.grad_output, levels, tensors, (True, True, True, True))

    def run() -> Results:
        gradients = prepared(inputs.grad_output, levels, tensors)
        return dict(zip(OperatorInputs._fields[:4], gradients, strict=True))  # type: ignore[arg-type]

    return run
