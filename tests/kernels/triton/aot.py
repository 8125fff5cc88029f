"""The Triton kernels compiled for a GPU that is not there: registers, spills, and the instructions that were emitted.

Read from the machine code itself, through the disassemblers in Triton's own wheel. What is executed of it, and how
often, ``msdeform bench instructions`` counts. Cannot share a process with Triton's interpreter.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from msdeform.bench.static.listings import SASS, disassembled
from msdeform.kernels.triton import launch
from msdeform.kernels.triton.backward_atomic import backward_kernel
from msdeform.kernels.triton.backward_sorted import (
    cells_kernel,
    keys_kernel,
    pixels_kernel,
    points_kernel,
    shares_kernel,
)
from msdeform.kernels.triton.forward import forward_kernel

_SORTED = {
    "keys": keys_kernel,
    "cells": cells_kernel,
    "shares": shares_kernel,
    "pixels": pixels_kernel,
    "points": points_kernel,
}
_KERNELS = {"forward": forward_kernel, "backward": backward_kernel, **_SORTED}
SORTED = tuple(_SORTED)
_POINTERS = {
    torch.int32: "*i32",
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one architecture."""

    arch: int
    registers: int
    spills: int
    """bytes of local memory per thread"""
    shared: int
    """bytes of shared memory per program"""
    parameters: dict[str, Any]
    """what the kernel was compiled for, by name"""
    opcodes: Counter[str] = field(repr=False)
    """emitted instructions by full opcode"""
    ttir: str = field(repr=False)
    """the first form that Triton gave it"""

    def count(self, pattern: str) -> int:
        """Emitted instructions whose opcode matches a regular expression from its beginning."""
        return sum(n for opcode, n in self.opcodes.items() if re.match(pattern, opcode))


def compile_kernel(
    kind: str,
    arch: int,
    *,
    dtype: torch.dtype = torch.float32,
    small_dtype: torch.dtype | None = None,
    D: int = 32,
    L: int = 4,
    P: int = 4,
    fused: bool = True,
    coordinates: int = 2,
    wide: bool = False,
    needs: tuple[bool, bool, bool, bool] = (True, False, True, True),
    by_value: bool = True,
) -> Compiled:
    """Compile a kernel for sm_``arch`` as a call with these parameters would.

    Args:
        kind: ``forward``, ``backward`` (with atomics), or one of `SORTED`.
        arch: compute capability times ten, such as 90.
        dtype: of value and output.
        small_dtype: of locations or offsets and weights or logits; float32 (float64 for float64) if None.
        wide: as where offsets need 64 bits.
        needs: gradients of value, references, points and weights.
        by_value: whether level sizes come as Python ints.
    """
    if small_dtype is None:
        small_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    kernel = _KERNELS[kind]
    B, S, Q, H = 2, 17821, 17821, 8  # a published encoder's call
    value = torch.empty(B, S, H, D, dtype=dtype, device="meta")
    references = torch.empty(B, Q, L, coordinates, dtype=small_dtype, device="meta")
    points = torch.empty(B, Q, H, L, P, 2, dtype=small_dtype, device="meta")
    grad_output = torch.empty(B, Q, H * D, dtype=dtype, device="meta")
    call = launch.Call(value, references if fused else None, points, points[..., 0].contiguous())
    if kind == "forward":
        parameters, options = launch.forward_parameters(call), launch.forward_options(value)
    elif kind == "backward":
        parameters, options = launch.backward_parameters(grad_output, call, needs), launch.backward_options(value)
    else:
        parameters = launch.sorted_parameters(grad_output, call, needs)[kind]
        options = launch.SORTED_OPTIONS.get(kind, {})
    parameters = parameters | {"BY_VALUE": by_value} | ({"WIDE": wide} if "WIDE" in parameters else {})
    pointer = dict.fromkeys(("value_ptr", "output_ptr", "grad_output_ptr", "grad_value_ptr"), dtype)
    pointer |= {"grad_references_ptr": call.compute, "records_ptr": call.compute, "sums_ptr": call.compute}
    pointer |= {"keys_ptr": torch.int32, "order_ptr": torch.int64, "firsts_ptr": torch.int32, "lasts_ptr": torch.int32}
    if kind == "backward":
        pointer["grad_value_ptr"] = call.compute
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = dict(parameters)
    attributes = {}
    for index, name in enumerate(kernel.arg_names):
        if name in parameters:
            signature[name] = "constexpr"
        elif name == "references_ptr" and not fused:
            signature[name], constants[name] = "constexpr", None
        elif name == "levels":
            signature[name] = ("i32",) * (2 * L) if by_value else "*i64"
        elif name.endswith("_ptr"):
            signature[name] = _POINTERS[pointer.get(name, small_dtype)]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i64" if wide and "stride" in name else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return _inspect(compiled.asm["cubin"], arch, parameters, compiled.asm["ttir"])


def _inspect(cubin: bytes, arch: int, parameters: dict[str, Any], ttir: str) -> Compiled:
    usage, code = disassembled(cubin)
    numbers = {key: int(number) for key, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    spills = numbers.get("STACK", 0) + numbers.get("LOCAL", 0)
    opcodes = Counter(SASS.findall(code))
    return Compiled(arch, numbers["REG"], spills, numbers.get("SHARED", 0), parameters, opcodes, ttir)
