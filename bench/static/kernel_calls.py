"""Calls of kernels that are counted: ours, and other people's from a copy of their sources that the user has.

None of their code is here; only what a launch needs to know of it, which their launchers show.
"""

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..operator.cases import Case
from ..operator.inputs import OperatorInputs

_BLOCK_Q = 32  # queries of a program of deformops
_THREADS = 1024  # of a block of the official forward; its backward has one for each channel
_OFFICIAL = {
    "forward": "ms_deformable_im2col_gpu_kernel<float>",
    "backward": "ms_deformable_col2im_gpu_kernel_shm_blocksize_aware_reduce_v1<float, 32>",
}
_NAMESPACE = ("deformops", "deformops.core", "deformops.backends", "deformops.backends.triton")


class Call(NamedTuple):
    """One call of an implementation."""

    implementation: str
    name: str
    run: Callable[[Any], object]
    """launches its kernels on a :class:`.ptx.triton_driver.Device`; Triton's own launches go there by themselves"""
    cubin: bytes | None = None
    """its machine code; Triton's assembler makes it of the PTX if None"""
    by_nvrtc: bool = False
    """of our own CUDA kernels"""


# of inputs on the CPU, their case, and an architecture
Calls = Callable[[OperatorInputs, Case, int], Iterator[Call]]


def triton(inputs: OperatorInputs, case: Case, _: int) -> Iterator[Call]:
    """Forward and both backwards of the Triton backend; references of an encoder need no gradient."""
    from ...kernels.triton import launch

    levels, grad_output = _flat(case), inputs.grad_output
    fused = (inputs.value, inputs.reference_points, inputs.sampling_offsets, inputs.attention_logits)
    plain = (inputs.value, inputs.sampling_locations, inputs.attention_weights)

    def backward(method: str, tensors: tuple[torch.Tensor, ...], needs: tuple[bool, ...]) -> Callable[[Any], object]:
        def run(_: Any) -> object:
            with launch.replaced(backward_method=method):
                return launch.backward(grad_output, levels, tensors, needs)

        return run

    yield Call("triton", "forward fused", lambda _: launch.forward(levels, fused))
    yield Call("triton", "forward plain", lambda _: launch.forward(levels, plain))
    for method, suffix in (("atomics", ""), ("cells", ", sorted")):
        if method == "atomics" or case.Q is None:  # the sorted one is for encoders
            yield Call("triton", f"backward fused{suffix}", backward(method, fused, (True, False, True, True)))
            yield Call("triton", f"backward plain{suffix}", backward(method, plain, (True, True, True)))


def cuda(inputs: OperatorInputs, case: Case, arch: int) -> Iterator[Call]:
    """Forward and backward of the CUDA backend."""
    from ...kernels.cuda import compile as compiler
    from ...kernels.cuda import launch

    levels, plain = _flat(case), (inputs.value, inputs.sampling_locations, inputs.attention_weights)
    cubin = compiler.cubin(f"sm_{arch}", compiler.Dtypes.of(*plain))
    yield Call("cuda", "forward plain", lambda _: launch.forward(levels, plain), cubin, by_nvrtc=True)
    backward = functools.partial(launch.backward, inputs.grad_output, levels, plain, (True, True, True))
    yield Call("cuda", "backward plain", lambda _: backward(), cubin, by_nvrtc=True)


def _flat(case: Case) -> tuple[int, ...]:
    """Level sizes by value, as our models hand them on."""
    return tuple(size for pair in case.sizes for size in pair)


def _level_tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Sizes (L, 2) of the levels, and where each begins (L,)."""
    shapes = torch.tensor(case.sizes)
    areas = shapes.prod(1)
    return shapes, areas.cumsum(0) - areas


def deformops(folder: Path) -> Calls:
    """Its query-tiled kernels, from the package unpacked in `folder`.

    Its modules are loaded around the package's own __init__, which wants a newer Python than the kernels need.
    """
    for name in _NAMESPACE:
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    module = importlib.import_module("deformops.backends.triton._kernels.msda_query_tiled")

    def calls(inputs: OperatorInputs, case: Case, _: int) -> Iterator[Call]:
        B, Q, H, D, L, P = case.B, case.queries, case.H, case.D, case.L, case.P
        value, locations = inputs.value, inputs.sampling_locations
        shapes, starts = _level_tensors(case)
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

        yield Call("deformops", "forward plain", lambda _: forward(inputs.attention_weights, 0))
        yield Call("deformops", "forward softmax inside", lambda _: forward(inputs.attention_logits, 1))
        yield Call("deformops", "backward plain", lambda _: module.atomic_backward_launch(grad_output, *plain))
        if value.dtype is not torch.float32:
            wide = module.float32_backward_launch
            yield Call("deformops", "backward plain, fp32acc", lambda _: wide(grad_output, *plain))

    return calls


def official(file: Path) -> Calls:
    """The official kernels at the launches that they make for 32 channels, from ``ms_deform_im2col_cuda.cuh``.

    They are compiled by NVRTC, not by the nvcc that builds them elsewhere. Inputs are float32, as they take no 16 bits.
    """
    from .ptx.machine import Program
    from .ptx.nvrtc import compile_source
    from .ptx.parse import parse

    source = official_source(file)

    @functools.cache
    def of(arch: int) -> tuple[dict[str, tuple[str, bytes]], dict[str, Program]]:
        flags = [f"--gpu-architecture=sm_{arch}", "--std=c++17", "--device-as-default-execution-space"]
        compiled = {
            kernel: compile_source(source.encode(), "official.cu", flags, name) for kernel, name in _OFFICIAL.items()
        }
        return compiled, {kernel: Program(parse(ptx)) for kernel, (ptx, _) in compiled.items()}

    def calls(inputs: OperatorInputs, case: Case, arch: int) -> Iterator[Call]:
        compiled, programs = of(arch)
        if inputs.value.dtype is not torch.float32:
            return
        B, Q, H, D, L, P = case.B, case.queries, case.H, case.D, case.L, case.P
        shapes, starts = _level_tensors(case)
        plain = (inputs.value, shapes, starts, inputs.sampling_locations, inputs.attention_weights)
        sizes = (B, case.S, H, D, L, Q, P)
        threads = B * Q * H * D

        def launch(device: Any, kernel: str, block: int, arguments: tuple[torch.Tensor | int, ...]) -> None:
            values = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]
            tensors = [(f"argument {i}", x) for i, x in enumerate(arguments) if isinstance(x, torch.Tensor)]
            device.launch(programs[kernel], (-(-threads // block), 1, 1), (block, 1, 1), values, tensors)

        def forward(device: Any) -> torch.Tensor:
            output = torch.empty(B, Q, H * D)
            launch(device, "forward", _THREADS, (threads, *plain, *sizes, output))
            return output

        def backward(device: Any) -> tuple[torch.Tensor, ...]:
            gradients = tuple(torch.zeros_like(tensor) for tensor in (plain[0], *plain[3:]))
            launch(device, "backward", D, (threads, inputs.grad_output, *plain, *sizes, *gradients))
            return gradients

        yield Call("official", "forward plain", forward, compiled["forward"][1])
        yield Call("official", "backward plain", backward, compiled["backward"][1])

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
