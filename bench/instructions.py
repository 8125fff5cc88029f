"""``msdeform bench instructions``: warp instructions of the compiled kernels for one (query, head); no GPU needed.

    msdeform bench instructions                       # ours, for sm_90, at the published encoder's shape
    msdeform bench instructions --deformops FOLDER    # and deformops' Triton kernels, from its unpacked wheel
    msdeform bench instructions --cubin FILE --implementation NAME --kernels FORWARD BACKWARD

Triton's kernels are counted as :mod:`..kernels.triton.aot` counts them, CUDA's as :mod:`.sass` does: loops as often as
they run, at 4 levels of 4 points with 32 channels to a head, which is one warp for each query and head of a kernel with
a thread for each channel. A cubin of someone else's kernel comes from wherever it was compiled; only numbers are kept.
"""

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..kernels.arguments import Parser, architecture
from ..kernels.cuda import compile as nvrtc
from . import sass
from .cases import Case
from .provenance import provenance
from .records import RESULTS, Row, append
from .runner import public
from .tables import aligned, number

_L, _P, _D = 4, 4, 32
_B, _Q, _H = 2, 17821, 8  # the published encoder's call, whose strides a launch would specialise on
_WARPS = 4  # of a Triton program, unless its launch says otherwise
_BLOCK_Q = 32  # queries of a program of deformops
_COUNTED = ("instructions_per_query_and_head", "registers", "spilled_bytes", "shared_bytes", "barriers")
_DIRECTIONS = ("forward", "backward")
_counted: dict[tuple[Any, ...], float | None] = {}


def main(argv: list[str] | None = None) -> int:
    """Compiles, counts, prints, and on request records."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _parse(arguments)
    rows = list(_rows(options))
    lines: list[tuple[str, ...]] = [("implementation", "kernel", "dtype", "instructions", "registers", "spilled bytes")]
    for row in rows:
        lead = (row["implementation"], row["kernel"], row["dtype"], number(row["instructions_per_query_and_head"]))
        lines.append((*lead, str(row["registers"]), str(row["spilled_bytes"])))
    print(f"warp instructions for one (query, head), sm_{options.arch}\n")
    print(aligned(lines, 3))
    if options.out is not None:
        # whose folder a file lies in is no part of a result
        told = [Path(word).name if "/" in word else word for word in public(arguments)]
        source = provenance(torch.device("cpu"), ["msdeform", "bench", "instructions", *told])
        append(options.out / "instructions.jsonl", [{**row, **source} for row in rows])
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="msdeform bench instructions", description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=architecture, default=90, help="compute capability times ten (default: 90)")
    parser.add_argument("--deformops", type=Path, metavar="FOLDER", help="that holds the package, unpacked")
    parser.add_argument("--cubin", type=Path, metavar="FILE", help="machine code with a thread for each channel")
    parser.add_argument("--implementation", metavar="NAME", help="whose the cubin is")
    parser.add_argument("--kernels", nargs=2, metavar="NAME", help="parts of the names of its forward and backward")
    parser.add_argument("--dtype", default="float32", help="of the cubin (default: float32)")
    parser.add_argument(
        "--out", type=Path, nargs="?", const=RESULTS, metavar="DIR", help="append the rows there (bench/results)"
    )
    options = parser.parse_args(arguments)
    if options.cubin is not None and not (options.cubin.is_file() and options.implementation and options.kernels):
        parser.error("--cubin: expected a file, with --implementation and --kernels beside it")
    if options.deformops is not None and not (options.deformops / "deformops").is_dir():
        parser.error(f"--deformops: expected a folder with the package in it, got {options.deformops}")
    return options


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    if options.cubin is not None:
        machine = _machine(options.cubin.read_bytes())
        for direction, part in zip(_DIRECTIONS, options.kernels, strict=True):
            yield _row(options.implementation, direction, options.dtype, options.arch, machine, part)
        return
    if options.deformops is not None:
        yield from _deformops(options.deformops, options.arch)
        return
    from ..kernels.triton import aot

    for name in aot.MAIN:
        kind, call, dtype = name.split()
        counted = aot.row(name, *aot.compile_main(name, options.arch))
        yield {
            "kind": "instructions",
            "implementation": "triton",
            "kernel": f"{kind} {call}",
            "dtype": dtype,
            "arch": options.arch,
            **{key: counted[key] for key in _COUNTED},
        }
    for dtype in ("float32", "bfloat16", "float16"):
        for call in ("fused", "plain"):
            counted = aot.by_cell_row(options.arch, getattr(torch, dtype), fused=call == "fused")
            yield {
                "kind": "instructions",
                "implementation": "triton",
                "kernel": f"backward {call}, in order",
                "dtype": dtype,
                "arch": options.arch,
                **{key: counted[key] for key in (*_COUNTED, "parts")},
            }
        machine = _machine(nvrtc.cubin(f"sm_{options.arch}", nvrtc.Dtypes(dtype, "float32", "float32")))
        for direction, part in zip(_DIRECTIONS, (nvrtc.FORWARD, nvrtc.BACKWARD), strict=True):
            yield _row("cuda", direction, dtype, options.arch, machine, part)


Machine = dict[str, tuple[list[sass.Block], int, int]]
"""of each kernel its blocks, its registers and the bytes it spills"""


def _machine(cubin: bytes) -> Machine:
    """What the disassemblers of Triton's wheel make of machine code."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, listing = (
            subprocess.run([tools / tool, option, str(path)], check=True, capture_output=True, text=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = {}
    for name, blocks in sass.kernels(listing).items():
        of = re.search(rf"Function {re.escape(name)}:\s*\n(.*)", usage)
        numbers = {key: int(count) for key, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", of[1])} if of else {}
        found[name] = blocks, numbers.get("REG", 0), numbers.get("STACK", 0) + numbers.get("LOCAL", 0)
    return found


def _row(implementation: str, kernel: str, dtype: str, arch: int, machine: Machine, part: str) -> Row:
    """A row for the kernel of `machine` whose name contains `part`."""
    names = [name for name in machine if part in name]
    if len(names) != 1:
        raise ValueError(f"--kernels: expected a part of one of {', '.join(machine)}, got {part!r}")
    blocks, registers, spilled = machine[names[0]]
    return {
        "kind": "instructions",
        "implementation": implementation,
        "kernel": f"{kernel} plain",
        "dtype": dtype,
        "arch": arch,
        "instructions_per_query_and_head": sass.executed(blocks, sass.sampling_trips(_L, _P)),
        "registers": registers,
        "spilled_bytes": spilled,
    }


def _deformops(folder: Path, arch: int) -> Iterator[Row]:
    """Its query-tiled kernels at the launch it makes: 32 queries a program, Triton's own number of warps.

    Its modules are loaded around the package's own __init__, which wants a newer Python than the kernels need.
    """
    for name in ("deformops", "deformops.core", "deformops.backends", "deformops.backends.triton"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    module = importlib.import_module("deformops.backends.triton._kernels.msda_query_tiled")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        kernels = {
            "forward plain": (module.msda_forward_kernel, 0, dtype),
            "forward softmax inside": (module.msda_forward_kernel, 1, dtype),
            "backward plain": (module._msda_backward_kernel, None, dtype),
            "backward plain, fp32acc": (module._msda_backward_kernel, None, torch.float32),
        }
        for name, (kernel, aggregate, accumulated) in kernels.items():
            machine = _compile_triton(kernel, dtype, accumulated, aggregate, arch)
            yield {
                "kind": "instructions",
                "implementation": "deformops",
                "kernel": name,
                "dtype": str(dtype).removeprefix("torch."),
                "arch": arch,
                "instructions_per_query_and_head": round(machine.per_query, 1),
                "registers": machine.registers,
                "spilled_bytes": machine.spills,
            }


def _compile_triton(kernel: Any, dtype: torch.dtype, accumulated: torch.dtype, aggregate: int | None, arch: int) -> Any:
    """Compiles a kernel by the names of its arguments, as a launch on contiguous tensors would specialise it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ..kernels.triton import aot

    short = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    pointers = {"shapes_ptr": "*i64", "level_start_index_ptr": "*i64", "loc_ptr": "*fp32", "grad_loc_ptr": "*fp32"}
    S = sum(h * w for h, w in ((100, 134), (50, 67), (25, 34), (13, 17)))
    strides = {
        "v": torch.empty(_B, S, _H, _D, device="meta").stride(),
        "l": torch.empty(_B, _Q, _H, _L, _P, 2, device="meta").stride(),
        "a": torch.empty(_B, _Q, _H, _L, _P, device="meta").stride(),
        "o": torch.empty(_B, _Q, _H, _D, device="meta").stride(),
    }
    values: dict[str, int] = {
        "batch_size": _B,
        "num_queries": _Q,
        "num_heads": _H,
        "num_levels": _L,
        "num_points": _P,
        "dim_per_head": _D,
    }
    axes = {"v": "bshd", "l": "bqhlpc", "a": "bqhlp", "o": "bqhd"}
    for tensor, letters in axes.items():
        for prefix in ("", "g"):
            values |= {f"stride_{prefix}{tensor}{axis}": s for axis, s in zip(letters, strides[tensor], strict=True)}
    constants: dict[str, Any] = {"BLOCK_SIZE_Q": _BLOCK_Q, "BLOCK_SIZE_D": _D, "aggregate": aggregate}
    signature: dict[str, str] = {}
    attributes = {}
    used: dict[str, Any] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants or values.get(name) == 1:
            signature[name], used[name] = "constexpr", constants.get(name, 1)
        elif name.endswith("_ptr"):
            signature[name] = pointers.get(name, short[accumulated if name == "grad_value_ptr" else dtype])
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if values[name] % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=used, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": _WARPS})
    return aot.inspect_cubin(compiled.asm["cubin"], arch, _BLOCK_Q, (_L, _P))


def per_query_and_head(backend: str, direction: str, dtype: str, fused: bool, case: Case, arch: int) -> float | None:
    """Warp instructions of one of our kernels for a (query, head) of a case, or None for any other implementation.

    The fused call of the cuda backend is several kernels, most of them PyTorch's: None. In the backward of 16-bit
    values the rounding of the accumulated gradient is left out.
    """
    if direction == "both":
        parts = [per_query_and_head(backend, one, dtype, fused, case, arch) for one in _DIRECTIONS]
        return None if None in parts else sum(part for part in parts if part is not None)
    key: tuple[Any, ...] = (backend, direction, dtype, fused, case.D, case.L, case.P, arch)
    if backend == "triton" and direction == "backward" and _adds_by_cell(case):
        key = (*key, case.S / case.queries)
    if key not in _counted:
        _counted[key] = _count(backend, direction, dtype, fused, case, arch)
    return _counted[key]


def _adds_by_cell(case: Case) -> bool:
    """Whether the Triton backend's backward goes by cell on a case, which the benchmark leaves to the rule."""
    from ..kernels.triton import launch

    value = torch.empty(case.B, case.S, case.H, case.D, device="meta")
    return launch.adds_by_cell(value, torch.empty(case.B, case.queries, case.H, case.L, case.P, 2, device="meta"))


def _count(backend: str, direction: str, dtype: str, fused: bool, case: Case, arch: int) -> float | None:
    if backend == "cuda" and not fused and case.D == _D:
        weights = dtype if dtype != "float64" else "float64"
        machine = _machine(nvrtc.cubin(f"sm_{arch}", nvrtc.Dtypes(dtype, "float32", weights)))
        part = nvrtc.FORWARD if direction == "forward" else nvrtc.BACKWARD
        blocks = next(blocks for name, (blocks, _, _) in machine.items() if part in name)
        return sass.executed(blocks, sass.sampling_trips(case.L, case.P))
    if backend == "triton":
        from ..kernels.triton import aot

        value = getattr(torch, dtype)
        shape: dict[str, Any] = {
            "dtype": value,
            "small_dtype": value if fused else torch.float32,  # as cases.make_inputs has them
            "D": case.D,
            "L": case.L,
            "P": case.P,
            "fused": fused,
            "fallback": False,  # on finite numbers, which is what is timed
        }
        if direction == "backward" and _adds_by_cell(case):
            counts = {kind: aot.compile_kernel(kind, arch, **shape).per_query for kind in aot.BY_CELL}
            # of what a walk does at the end of a run nothing, so this is a floor; a pixel is not a query
            counts["pixels"] *= case.S / case.queries
            return sum(counts.values())
        return aot.compile_kernel(direction, arch, **shape).per_query
    return None
