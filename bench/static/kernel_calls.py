"""Calls of kernels that are counted: ours, and other people's from a copy of their sources that the user has.

None of their code is here; only what a launch needs to know of it, which their launchers show.
"""

import functools
import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ...kernels.backend import call_of
from ...kernels.cuda import tiles
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
    """of CUDA C++ of ours"""


# of inputs on the CPU, their case, and an architecture
Calls = Callable[[OperatorInputs, Case, int], Iterator[Call]]


def triton(inputs: OperatorInputs, case: Case, arch: int) -> Iterator[Call]:
    """Forward and the three backwards of the Triton backend; references of an encoder need no gradient."""
    from ...kernels.triton import launch

    def backward(method: str, tensors: Sequence[torch.Tensor], needs: tuple[bool, ...], _: Any) -> object:
        with launch.replaced(backward_method=method):
            return launch.backward(inputs.grad_output, levels, tensors, needs)

    levels, fused, plain = tuple(itertools.chain(*case.sizes)), inputs.of(True), inputs.of(False)
    yield Call("triton", "forward fused", lambda _: launch.forward(levels, fused))
    yield Call("triton", "forward plain", lambda _: launch.forward(levels, plain))
    forms = (("fused", fused, (True, False, True, True)), ("plain", plain, (True,) * 3))
    for method, suffix in (("atomics", ""), ("sorted", ", sorted"), ("tiles", ", tiles")):
        if method == "sorted" and case.Q is not None:  # it is for encoders
            continue
        for form, tensors, needs in forms:
            by_nvrtc = method == "tiles"
            cubin = _tiles_cubin(tensors, needs, arch) if by_nvrtc else None
            run = functools.partial(backward, method, tensors, needs)
            yield Call("triton", f"backward {form}{suffix}", run, cubin, by_nvrtc)


def _tiles_cubin(tensors: Sequence[torch.Tensor], needs: Sequence[bool], arch: int) -> bytes:
    call = call_of(tensors)
    four = (needs[0], len(tensors) == 4 and needs[1], needs[-2], needs[-1])
    macros = tiles.macros_of(call, four, tiles.usual_tile(call))
    return tiles.machine_code(f"sm_{arch}", macros | {"STRIDE": call.value.stride(1)})


def cuda(inputs: OperatorInputs, case: Case, arch: int) -> Iterator[Call]:
    """Forward and backward of the CUDA backend."""
    from ...kernels.cuda import compile as compiler
    from ...kernels.cuda import launch

    levels, plain = tuple(itertools.chain(*case.sizes)), inputs.of(False)
    cubin = compiler.cubin(f"sm_{arch}", compiler.Dtypes.of(*plain))
    yield Call("cuda", "forward plain", lambda _: launch.forward(levels, plain), cubin, by_nvrtc=True)
    backward = functools.partial(launch.backward, inputs.grad_output, levels, plain, (True, True, True))
    yield Call("cuda", "backward plain", lambda _: backward(), cubin, by_nvrtc=True)


def _with_levels(inputs: OperatorInputs, case: Case) -> tuple[torch.Tensor, ...]:
    """What others' functions take: value, sizes (L, 2) of the levels, where each begins (L,), locations, weights."""
    shapes = torch.tensor(case.sizes)
    areas = shapes.prod(1)
    return inputs.value, shapes, areas.cumsum(0) - areas, inputs.sampling_locations, inputs.attention_weights


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
        plain = _with_levels(inputs, case)
        grad_output = inputs.grad_output.view(B, Q, H, D)

        def forward(weights: torch.Tensor, aggregate: int) -> None:
            output = torch.empty_like(grad_output)
            tensors = (*plain[:4], weights, output)
            module.msda_forward_kernel[-(-Q // _BLOCK_Q), H, B](
                *(*tensors, B, Q, H, L, P, D),
                *(stride for tensor in (tensors[0], *tensors[3:]) for stride in tensor.stride()),
                BLOCK_SIZE_Q=_BLOCK_Q,
                BLOCK_SIZE_D=D,
                aggregate=aggregate,
            )

        yield Call("deformops", "forward plain", lambda _: forward(inputs.attention_weights, 0))
        yield Call("deformops", "forward softmax inside", lambda _: forward(inputs.attention_logits, 1))
        yield Call("deformops", "backward plain", lambda _: module.atomic_backward_launch(grad_output, *plain))
        if inputs.value.dtype is not torch.float32:
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

    source = official_source(file).encode()

    @functools.cache
    def compiled(arch: int, kernel: str) -> tuple[Program, bytes]:
        flags = [f"--gpu-architecture=sm_{arch}", "--std=c++17", "--device-as-default-execution-space"]
        ptx, cubin = compile_source(source, "official.cu", flags, _OFFICIAL[kernel])
        return Program(parse(ptx)), cubin

    def calls(inputs: OperatorInputs, case: Case, arch: int) -> Iterator[Call]:
        if inputs.value.dtype is not torch.float32:
            return
        plain, sizes = _with_levels(inputs, case), (case.B, case.S, case.H, case.D, case.L, case.queries, case.P)
        threads = inputs.grad_output.numel()

        def launch(device: Any, kernel: str, block: int, *arguments: torch.Tensor | int) -> None:
            values = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in (threads, *arguments)]
            tensors = [(f"argument {i}", x) for i, x in enumerate(arguments, 1) if isinstance(x, torch.Tensor)]
            grid = (-(-threads // block), 1, 1)
            device.launch(compiled(arch, kernel)[0], grid, (block, 1, 1), values, tensors)

        def forward(device: Any) -> None:
            launch(device, "forward", _THREADS, *plain, *sizes, torch.empty_like(inputs.grad_output))

        def backward(device: Any) -> None:
            gradients = [torch.zeros_like(tensor) for tensor in (plain[0], *plain[3:])]
            launch(device, "backward", case.D, inputs.grad_output, *plain, *sizes, *gradients)

        yield Call("official", "forward plain", forward, compiled(arch, "forward")[1])
        yield Call("official", "backward plain", backward, compiled(arch, "backward")[1])

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
