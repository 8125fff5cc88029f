"""A driver for Triton that needs no device: kernels are compiled as for one, and their PTX is executed on the CPU.

Inside ``executing()`` a kernel is launched on CPU tensors, by ``kernel[grid](...)`` or by a kept compiled kernel.
Triton specialises on arguments and alignment just as it does on a device, since the same code of Triton decides.

Inside ``idling()`` kernels are compiled and launched likewise, and a launch does nothing: for the time that the host
takes, and for how many variants of a kernel are compiled.
"""

import contextlib
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from .device import Device, poisoned
from .machine import Program
from .parse import Fault, parse

_FORMATS = {"fp64": "<d", "fp32": "<f", "f32": "<f", "fp16": "<e", "i1": "<b"}
_FORMATS |= {f"i{n}": f"<{c}" for n, c in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))}
_FORMATS |= {f"u{n}": f"<{c}" for n, c in ((8, "B"), (16, "H"), (32, "I"), (64, "Q"))}


class _TritonDevice(Device):
    def launch_compiled(self, compiled: "_Loaded", grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        """Execute a grid of a compiled kernel."""
        tensors: list[tuple[str, torch.Tensor]] = []
        values: list[bytes] = []
        for name, kind, value in _flatten(compiled.signature, arguments):
            if kind.startswith("*"):
                if isinstance(value, torch.Tensor):
                    tensors.append((name, value))
                values.append(struct.pack("<Q", value.data_ptr() if isinstance(value, torch.Tensor) else value or 0))
            else:
                values.append(_pack(kind, value))
        kernel = compiled.program.kernel
        values += [bytes(8)] * (len(kernel.parameters) - len(values))  # scratch memory, which nothing of ours asks for
        if len(values) != len(kernel.parameters):
            raise Fault(f"{kernel.name}: {len(values)} arguments for {len(kernel.parameters)} parameters")
        parameters = {}
        for (name, (_, size)), value in zip(kernel.parameters.items(), values, strict=True):
            if len(value) != size:
                raise Fault(f"{kernel.name}: parameter {name} has {size} bytes, its argument {len(value)}")
            parameters[name] = value
        block = (32 * compiled.warps, 1, 1)
        self.launch(compiled.program, compiled.name, grid, block, parameters, tensors, compiled.shared)


class _Loaded(NamedTuple):
    name: str
    program: Program
    signature: tuple[tuple[str, Any], ...]
    warps: int
    shared: int


def _flatten(signature: Sequence[tuple[str, Any]], arguments: Sequence[Any]) -> Iterator[tuple[str, str, Any]]:
    """Name, type and value of each argument that the compiled kernel takes; tuples' elements one after the other."""
    for (name, kind), value in zip(signature, arguments, strict=True):
        if isinstance(kind, tuple):
            yield from _flatten([(f"{name}[{k}]", inner) for k, inner in enumerate(kind)], value)
        elif kind != "constexpr":
            yield name, kind, value


def _pack(kind: str, value: Any) -> bytes:
    if kind == "bf16":
        return struct.pack("<f", value)[2:]
    if kind not in _FORMATS:
        raise Fault(f"an argument of type {kind!r} is not known")
    return struct.pack(_FORMATS[kind], value)


@lru_cache(maxsize=512)
def _program(ptx: str) -> Program:
    return Program(parse(ptx))


class _Utils:
    """What Triton asks of a device's driver."""

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, None, int, int, int]:
        return 1, None, 0, 0, 1024

    def unload_module(self, module: int) -> None: ...

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}


class _Driver:
    def __init__(self, arch: int, name: str, device: _TritonDevice | None = None) -> None:
        self.arch, self.name, self.device, self.utils = arch, name, device, _Utils()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> str:
        """Under this name a kernel keeps what it compiled, apart from what it has for real devices."""
        return self.name

    def set_current_device(self, device: str) -> None: ...

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


def _init_handles(self: CompiledKernel) -> None:
    """In place of CompiledKernel's own: instead of loading machine code, decode the PTX."""
    if self.module is not None:
        return
    signature = tuple((str(name), kind) for name, kind in self.src.signature.items())
    loaded = _Loaded(self.name, _program(self.asm["ptx"]), signature, self.metadata.num_warps, self.metadata.shared)

    def run(x: int, y: int, z: int, *rest: Any) -> None:
        active = driver._active
        if not isinstance(active, _Driver) or active.device is None:
            raise Fault(f"{loaded.name}: compiled to be executed, and launched outside of `executing`")
        active.device.launch_compiled(
            loaded, (x, y, z), rest[6:]
        )  # behind the stream, the kernel, its metadata and hooks

    self._run, self.module, self.function, self.n_regs, self.n_spills = run, 1, loaded, 0, 0


@contextlib.contextmanager
def executing(
    arch: int = 90, count: bool = False, approximate: str | None = None, poison: bool = True
) -> Iterator[Device]:
    """Execute what Triton launches inside, on CPU tensors, as compiled for an architecture.

    Args:
        arch: 80, 90, 120: which device's code is compiled.
        count: whether the launches count what they execute.
        approximate: "worst" lets functions that PTX calls approximate err by up to the documented bound, alike in
            every run; they are exact otherwise.
        poison: whether reading new memory that nothing has written is a fault.

    Raises:
        Fault: out of the launch, when a kernel does what it may not.
    """
    if triton.knobs.runtime.interpret:
        raise Fault("compiled kernels cannot be executed in a process with TRITON_INTERPRET=1")
    device = _TritonDevice(arch, count, approximate)
    with (
        _active(_Driver(arch, f"executed sm_{arch}", device), _init_handles),
        poisoned(device) if poison else contextlib.nullcontext(),
    ):
        yield device


@contextlib.contextmanager
def idling(arch: int = 90) -> Iterator[list[str]]:
    """Compile what Triton launches inside, as for an architecture, and run nothing of it.

    Yields:
        The name of a kernel for each of its variants, as they are compiled or found in Triton's cache on disk.
    """
    if triton.knobs.runtime.interpret:
        raise Fault("kernels cannot be compiled in a process with TRITON_INTERPRET=1")
    variants: list[str] = []

    def load(self: CompiledKernel) -> None:
        if self.module is None:
            variants.append(self.name)
            self._run, self.module, self.function, self.n_regs, self.n_spills = _nothing, 1, 1, 0, 0

    # a name of its own, so that nothing is compiled yet
    with _active(_Driver(arch, f"idle sm_{arch}, {next(_idle)}"), load):
        yield variants


_idle = itertools.count()


def _nothing(*arguments: Any) -> None: ...


@contextlib.contextmanager
def _active(active: _Driver, init_handles: Callable[[CompiledKernel], None]) -> Iterator[None]:
    """Triton's driver within, and what stands in for CompiledKernel's loading of machine code."""
    before, init = driver._active, CompiledKernel._init_handles
    driver.set_active(active)
    CompiledKernel._init_handles = init_handles
    try:
        yield
    finally:
        driver._active = before
        CompiledKernel._init_handles = init
