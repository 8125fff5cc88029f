"""Compile the kernels for a GPU that is not there, and read what the compiler made of them.

Registers, spills and instructions come from the machine code itself, through the disassemblers in Triton's own wheel.
Cannot share a process with Triton's interpreter.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..arguments import Parser, architecture
from . import launch
from .backward import backward_kernel
from .backward_sorted import cells_kernel, keys_kernel, pixels_kernel, points_kernel, shares_kernel
from .forward import forward_kernel
from .tuning import Choice

NUM_WARPS = 4
TABLE = Path(__file__).with_name("instructions.json")
"""what the main kernels cost on sm_90, committed so that a regression is seen"""

# the published encoder's call: D=32, L=P=4, fused, points as references; references of an encoder need no gradient
MAIN: dict[str, dict[str, Any]] = {
    f"{kind} {call} {str(dtype).removeprefix('torch.')}": {"kind": kind, "dtype": dtype, "fused": call == "fused"}
    for kind in ("forward", "backward")
    for call in ("fused", "plain")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
_KERNELS = {
    "forward": forward_kernel,
    "backward": backward_kernel,
    "keys": keys_kernel,
    "cells": cells_kernel,
    "shares": shares_kernel,
    "pixels": pixels_kernel,
    "points": points_kernel,
}
BY_CELL = ("keys", "cells", "pixels", "points")
_POINTERS = {
    torch.int32: "*i32",
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Machine:
    """One kernel compiled for one architecture."""

    arch: int
    registers: int
    spills: int
    """bytes of local memory per thread"""
    shared: int
    """bytes of shared memory per program"""
    block_q: float
    """queries (of keys, points), pixels, or what their points come to (cells) of one program"""
    opcodes: Counter[str] = field(repr=False)
    """instructions of one warp by full opcode, as executed: those in a loop times its trips"""
    num_warps: int = NUM_WARPS

    def count(self, pattern: str) -> int:
        """Executed instructions whose opcode matches a regular expression from its beginning."""
        return sum(n for opcode, n in self.opcodes.items() if re.match(pattern, opcode))

    @property
    def instructions(self) -> int:
        return self.opcodes.total() - self.count("NOP")

    @property
    def per_query(self) -> float:
        """Warp instructions for one (query, head)."""
        return self.instructions * self.num_warps / self.block_q


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
    fallback: bool = True,
    queries: int = 17821,
    choice: Choice | None = None,
) -> Machine:
    """Compile a kernel for sm_``arch`` as a call with these parameters would.

    Args:
        kind: ``forward``, ``backward``, or one of the backward by cell: ``keys``, ``cells``, ``pixels``,
            ``points``.
        arch: compute capability times ten, such as 90.
        dtype: of value and output.
        small_dtype: of locations or offsets and weights or logits; float32 (float64 for float64) if None.
        needs: gradients of value, references, points and weights, for ``backward``.
        queries: of a sample; whether they are a decoder's or an encoder's may decide how it is launched.
        choice: how it is launched, ``forward`` and ``backward``; by the table or the rule if None.
        fallback: whether ``forward`` holds the way with masks, too, which runs at numbers that are not finite only.
    """
    if small_dtype is None:
        small_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    compute = torch.float64 if torch.float64 in (dtype, small_dtype) else torch.float32
    kernel = _KERNELS[kind]
    # a published encoder's call; its strides decide which arguments are known to be multiples of 16
    B, S, Q, H = 2, 17821, queries, 8
    value = torch.empty(B, S, H, D, dtype=dtype, device="meta")
    references = torch.empty(B, Q, L, coordinates, dtype=small_dtype, device="meta") if fused else None
    points = torch.empty(B, Q, H, L, P, 2, dtype=small_dtype, device="meta")
    weights = torch.empty(B, Q, H, L, P, dtype=small_dtype, device="meta")
    grad_output = torch.empty(B, Q, H * D, dtype=dtype, device="meta")
    strides = {"value": value, "points": points, "weights": weights, "references": references}
    strides["grad_output"] = grad_output
    if kind == "forward":
        meta = launch.forward_parameters(value, references, points, weights, arch)
        meta |= {"FALLBACK": fallback, "WIDE": wide}
        trips: tuple[int, ...] = (-(-L * P // meta["CHUNK"]),)
    else:
        meta = launch.meta_parameters(value, references, points, weights) | {"WIDE": wide}
        if kind == "backward":
            meta = launch.backward_parameters(meta, needs)
            trips = (L, P if meta["UNROLL"] == 1 else 1)
        else:
            meta = launch.by_cell_parameters(grad_output, value, references, points, weights, needs)[kind]
            trips = (meta["RUN"] // meta["SHARE"],) if kind == "cells" else ()
    if choice is not None:
        meta = meta | {"BLOCK_Q": choice.block_q}
    pointer = {"levels_ptr": torch.int64, "value_ptr": dtype, "output_ptr": dtype, "grad_output_ptr": dtype}
    pointer |= {"grad_value_ptr": compute if kind == "backward" else dtype, "grad_references_ptr": compute}
    pointer |= {"keys_ptr": torch.int32, "order_ptr": torch.int64, "records_ptr": compute, "sums_ptr": compute}
    pointer |= {"firsts_ptr": torch.int32, "lasts_ptr": torch.int32}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(meta)
    attributes = {}
    for index, name in enumerate(kernel.arg_names):
        if name in meta:
            signature[name] = "constexpr"
        elif name == "references_ptr" and not fused:
            signature[name], constants[name] = "constexpr", None
        elif name.endswith("_ptr"):
            signature[name] = _POINTERS[pointer.get(name, small_dtype)]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i64" if wide and "stride" in name else "i32"
            tensor, _, axis = name.partition("_stride_")
            example = strides.get(tensor)
            axis = {"b": 0, "s": 1, "q": 1, "h": 2, "l": 2}.get(axis)
            specialized = example is not None and not kernel.params[index].do_not_specialize
            if specialized and example.stride(axis) % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": NUM_WARPS}
    if choice is not None:
        options |= choice.options
    elif kind == "forward":
        options |= launch.forward_options(value, points, arch)
    elif kind == "backward":
        options |= launch.backward_options(value)
    else:
        options |= launch.BY_CELL_OPTIONS.get(kind, {})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    of_program = meta["WALKS"] * meta["RUN"] / (L * P) if kind == "cells" else meta.get("BLOCK_Q", 1)
    machine = inspect_cubin(compiled.asm["cubin"], arch, of_program, trips)
    return replace(machine, num_warps=options["num_warps"])


def compile_main(name: str, arch: int) -> tuple[Machine, Machine]:
    """A kernel of `MAIN`: whole, and what of it runs on finite numbers, whose instructions are what a call costs."""
    parameters = MAIN[name]
    whole = compile_kernel(arch=arch, **parameters)
    return whole, compile_kernel(arch=arch, fallback=False, **parameters) if parameters["kind"] == "forward" else whole


def row(name: str, whole: Machine, executed: Machine) -> dict[str, Any]:
    """A row of the committed table."""
    return {
        "kernel": name,
        "arch": whole.arch,
        "instructions_per_query_and_head": round(executed.per_query, 1),
        "registers": whole.registers,
        "spilled_bytes": whole.spills,
        "shared_bytes": whole.shared,
        "barriers": executed.count("BAR"),
        "queries_per_program": whole.block_q,
    }


def by_cell_row(arch: int, dtype: torch.dtype, *, fused: bool) -> dict[str, Any]:
    """A row of the committed table for the kernels of a backward by cell together; the most of each resource.

    A query stands at every pixel, as in an encoder. Every step of a walk is counted as one that ends a run, every loop
    over shares as one share; the sort, PyTorch's, is not counted.
    """
    machines = {kind: compile_kernel(kind, arch, dtype=dtype, fused=fused) for kind in BY_CELL}
    return {
        "kernel": f"by cell {'fused' if fused else 'plain'} {str(dtype).removeprefix('torch.')}",
        "arch": arch,
        "instructions_per_query_and_head": round(sum(machine.per_query for machine in machines.values()), 1),
        "parts": {kind: round(machine.per_query, 1) for kind, machine in machines.items()},
        "registers": max(machine.registers for machine in machines.values()),
        "spilled_bytes": max(machine.spills for machine in machines.values()),
        "shared_bytes": max(machine.shared for machine in machines.values()),
        "barriers": sum(machine.count("BAR") for machine in machines.values()),
    }


def inspect_cubin(cubin: bytes, arch: int, block_q: float = 1, trips: tuple[int, ...] = ()) -> Machine:
    """Resources and opcodes of a cubin with one kernel.

    Args:
        trips: how often a loop at each depth of nesting runs; the outermost first, deeper ones than given once.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage = _run("cuobjdump", "-res-usage", str(path))
        listing = _run("nvdisasm", "-c", str(path))
    numbers = {key: int(number) for key, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    opcodes = _executed(listing, trips)
    spills = numbers.get("STACK", 0) + numbers.get("LOCAL", 0)
    return Machine(arch, numbers["REG"], spills, numbers.get("SHARED", 0), block_q, opcodes)


def _executed(listing: str, trips: tuple[int, ...]) -> Counter[str]:
    """Opcodes of a disassembly, each times the trips of the loops around it. A loop is a branch to an earlier label
    (the branch to itself that pads the end of a kernel is none)."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in listing.splitlines():
        if label := re.match(r"(\.L_\w+):", line.strip()):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)", line):
            target = re.search(r"`\((\.L_\w+)\)", line)
            begin = labels.get(target[1]) if target and found[1].startswith("BRA") else None
            if begin is not None and begin < len(instructions):
                loops.append((begin, len(instructions)))
            instructions.append(found[1])
    opcodes: Counter[str] = Counter()
    for position, opcode in enumerate(instructions):
        # several branches back to one label are one loop
        depth = len({begin for begin, end in loops if begin <= position <= end})
        opcodes[opcode] += math.prod(trips[:depth])
    return opcodes


def _run(tool: str, *arguments: str) -> str:
    binary = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([binary, *arguments], check=True, capture_output=True, text=True).stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Print, and on request write, the committed table."""
    parser = Parser(prog="python -m msdeform.kernels.triton.aot", description=main.__doc__)
    parser.add_argument("--arch", type=architecture, default=90, help="compute capability times ten (default: 90)")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}, which the tests compare with")
    options = parser.parse_args(argv)
    if options.write and options.arch != 90:
        parser.error("--write: the committed table is of --arch 90")
    rows = []
    for name in MAIN:
        rows.append(row(name, *compile_main(name, options.arch)))
        print(json.dumps(rows[-1]), flush=True)
    for fused in (True, False):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            rows.append(by_cell_row(options.arch, dtype, fused=fused))
            print(json.dumps(rows[-1]), flush=True)
    if options.write:
        TABLE.write_text("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
