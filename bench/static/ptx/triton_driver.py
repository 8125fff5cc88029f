"""A driver for Triton that needs no device: kernels are compiled as for one, and their PTX is executed on the CPU.

Inside ``executing()`` a kernel is launched on CPU tensors, by ``kernel[grid](...)`` or by a kept compiled kernel.
Triton specialises on arguments and alignment just as it does on a device, since the same code of Triton decides.

Inside ``idling()`` a launch does nothing: for the time that the host takes, and for how many variants are compiled.
"""

import contextlib
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from .device import Device, poisoned
from .machine import Program
from .parse import Fault, parse

_FLOATS = {"fp64": "<d", "fp32": "<f", "f32": "<f", "fp16": "<e"}
_idle = itertools.count()
_program = lru_cache(maxsize=512)(lambda ptx: Program(parse(ptx)))


class _TritonDevice(Device):
    def launch_compiled(self, compiled: CompiledKernel, grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        """Execute a grid of a compiled kernel."""
        tensors: list[tuple[str, torch.Tensor]] = []
        values: list[int | bytes] = []
        for name, kind, value in _flatten(list(compiled.src.signature.items()), arguments):
            if isinstance(value, torch.Tensor):
                tensors.append((name, value))
            values.append(_packed(kind, value.data_ptr() if isinstance(value, torch.Tensor) else value))
        program = _program(compiled.asm["ptx"])
        values += [0] * (len(program.kernel.parameters) - len(values))  # scratch memory, which nothing of ours asks for
        block = (32 * compiled.metadata.num_warps, 1, 1)
        self.launch(program, grid, block, values, tensors, compiled.metadata.shared)


def _flatten(signature: Sequence[tuple[Any, Any]], arguments: Sequence[Any]) -> Iterator[tuple[str, str, Any]]:
    """Name, type and value of each argument that the compiled kernel takes; tuples' elements one after the other."""
    for (name, kind), value in zip(signature, arguments, strict=True):
        if isinstance(kind, tuple):
            yield from _flatten([(f"{name}[{k}]", inner) for k, inner in enumerate(kind)], value)
        elif kind != "constexpr":
            yield str(name), kind, value


def _packed(kind: str, value: Any) -> int | bytes:
    if kind[0] in "*iu":
        return int(value or 0)  # a pointer may be None
    if kind == "bf16":
        return struct.pack("<f", value)[2:]
    if kind not in _FLOATS:
        raise Fault(f"an argument of type {kind!r} is not known")
    return struct.pack(_FLOATS[kind], value)


class _Driver:
    """What Triton asks of a driver."""

    def __init__(self, arch: int, name: str, device: _TritonDevice | None = None) -> None:
        self.arch, self.name, self.device = arch, name, device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> str:
        """Under this name a kernel keeps what it compiled, apart from what it has for real devices."""
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0


@contextlib.contextmanager
def _active(active: _Driver, run_of: Callable[[CompiledKernel], Callable[..., None]]) -> Iterator[None]:
    """Triton's driver within, and what a compiled kernel runs instead of loading its machine code.

    Raises Fault where Triton interprets its kernels.
    """

    def init_handles(self: CompiledKernel) -> None:
        if self.module is None:
            self._run, self.module, self.function, self.n_regs, self.n_spills = run_of(self), 1, 1, 0, 0

    if triton.knobs.runtime.interpret:
        raise Fault("kernels cannot be compiled in a process with TRITON_INTERPRET=1")
    with (
        mock.patch.object(driver, "_active", active),
        mock.patch.object(CompiledKernel, "_init_handles", init_handles),
    ):
        yield


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

    def run_of(compiled: CompiledKernel) -> Callable[..., None]:
        _program(compiled.asm["ptx"])  # an unknown instruction is a fault before anything runs

        def run(x: int, y: int, z: int, *rest: Any) -> None:
            active = driver._active
            if not isinstance(active, _Driver) or active.device is None:
                raise Fault(f"{compiled.name}: compiled to be executed, and launched outside of `executing`")
            # behind the stream, the kernel, its metadata and hooks
            active.device.launch_compiled(compiled, (x, y, z), rest[6:])

        return run

    device = _TritonDevice(arch, count, approximate)
    with (
        _active(_Driver(arch, f"executed sm_{arch}", device), run_of),
        poisoned(device) if poison else contextlib.nullcontext(),
    ):
        yield device


@contextlib.contextmanager
def idling(arch: int = 90) -> Iterator[list[str]]:
    """Compile what Triton launches inside, as for an architecture, and run nothing of it.

    Yields:
        The name of a kernel for each of its variants, as they are compiled or found in Triton's cache on disk.
    """
    variants: list[str] = []

    def run_of(compiled: CompiledKernel) -> Callable[..., None]:
        variants.append(compiled.name)
        return lambda *arguments: None

    # a name of its own, so that nothing is compiled yet
    with _active(_Driver(arch, f"idle sm_{arch}, {next(_idle)}"), run_of):
        yield variants
