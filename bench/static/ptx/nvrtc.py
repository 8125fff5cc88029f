"""Executes the kernels of kernels/cuda on a CPU: their PTX comes from NVRTC, as on a machine with a device.

``executing()`` puts itself in the place of the launch, so that ``msdeform.kernels.cuda.launch`` computes what it is
given (grid, block, pointers, strides) and runs on CPU tensors.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ....kernels.cuda import compile as compiler
from ....kernels.cuda import launch as launcher
from ....kernels.cuda import tiles
from .device import Device, poisoned
from .machine import Program
from .parse import parse


def compile_ptx(arch: int, source: Path, macros: Mapping[str, Any]) -> tuple[str, bytes]:
    """PTX and machine code that NVRTC makes of a source. Not through cuda.core, which asks a driver whether it could
    load the PTX."""
    from cuda.pathfinder import find_nvidia_header_directory

    options = compiler.options_of(f"sm_{arch}", macros)
    flags = [f"--gpu-architecture={options['arch']}", f"--std={options['std']}"]
    flags += [f"--include-path={place}" for place in (find_nvidia_header_directory("cudart"), compiler.FOLDER)]
    flags += [f"--define-macro={name}={value}" for name, value in options["define_macro"]]
    return compile_source(source.read_bytes(), source.name, flags)


@lru_cache(maxsize=64)
def _ptx(arch: int, source: Path, macros: tuple[tuple[str, Any], ...]) -> str:
    return compile_ptx(arch, source, dict(macros))[0]


@lru_cache(maxsize=64)
def _program(arch: int, source: Path, macros: tuple[tuple[str, Any], ...], name: str) -> Program:
    return Program(parse(_ptx(arch, source, macros), name))


def compile_source(source: bytes, file: str, flags: Sequence[str], instance: str | None = None) -> tuple[str, bytes]:
    """PTX and machine code that NVRTC makes of a source, or of an instance of one of its templates.

    Raises RuntimeError with its log where it refuses.
    """
    from cuda.bindings import nvrtc

    def call(name: str, *arguments: Any) -> Any:
        status, *values = getattr(nvrtc, f"nvrtc{name}")(*arguments)
        if int(status):
            raise RuntimeError(f"NVRTC: {status.name}")
        return values[0] if values else None

    def filled(name: str) -> bytes:
        buffer = bytes(call(f"Get{name}Size", program))
        call(f"Get{name}", program, buffer)
        return buffer

    program = call("CreateProgram", source, file.encode(), 0, [], [])
    if instance is not None:
        call("AddNameExpression", program, instance.encode())
    try:
        call("CompileProgram", program, len(flags), [flag.encode() for flag in flags])
    except RuntimeError:
        log = filled("ProgramLog").decode().rstrip("\0\n")
        raise RuntimeError(f"NVRTC refuses {file}: {log}") from None
    made = filled("PTX").decode().rstrip("\0"), filled("CUBIN")
    call("DestroyProgram", program)
    return made


class _CudaDevice(Device):
    """Knows a pointer's memory by having given the address: every ``data_ptr()`` asked for inside is kept."""

    def __init__(self, arch: int, count: bool, approximate: str | None) -> None:
        super().__init__(arch, count, approximate)
        self._storages: dict[int, torch.Tensor] = {}

    def address(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = tensor
        return int(tensor.storage_offset()) * tensor.element_size() + storage.data_ptr() if tensor.numel() else 0

    def kernels(self, index: int | None, dtypes: compiler.Dtypes) -> compiler.Kernels:
        """In place of the loaded kernels."""
        macros = tuple(compiler.macros_of(dtypes).items())
        names = (compiler.FORWARD, compiler.BACKWARD)
        return compiler.Kernels(*(_program(self.arch, compiler.SOURCE, macros, name) for name in names))

    def tiles_kernel(self, index: int, macros: Mapping[str, Any]) -> Program:
        """In place of the loaded kernel of tiles."""
        return _program(self.arch, tiles.SOURCE, tuple(macros.items()), tiles.KERNEL)

    def start(
        self,
        program: Program,
        device: torch.device,
        *,
        grid: int,
        block: int | tuple[int, int],
        arguments: Sequence[int],
        shared: int = 0,
    ) -> None:
        """In place of the launch."""
        tensors = [
            (f"argument {number}", tensor)
            for number, argument in enumerate(arguments)
            for start, tensor in self._storages.items()
            if start <= argument < start + tensor.untyped_storage().nbytes()
        ]
        threads = (block, 1, 1) if isinstance(block, int) else (*block, 1)
        self.launch(program, (grid, 1, 1), threads, arguments, tensors, shared)


@contextlib.contextmanager
def executing(arch: int = 90, count: bool = False, approximate: str | None = None) -> Iterator[Device]:
    """Execute what ``msdeform.kernels.cuda.launch`` launches inside, on CPU tensors.

    Args:
        arch, count, approximate: as in :func:`.triton_driver.executing`.

    Raises:
        RuntimeError: cuda.core or the CUDA headers are missing.
        Fault: out of the launch, when a kernel does what it may not.
    """
    device = _CudaDevice(arch, count, approximate)
    with (
        mock.patch.object(launcher, "kernels", device.kernels),
        mock.patch.object(launcher, "start", device.start),
        mock.patch.object(tiles, "load", device.tiles_kernel),
        mock.patch.object(torch.Tensor, "data_ptr", lambda tensor: device.address(tensor)),  # noqa: PLW0108  (a bound method is not one)
        poisoned(device),
    ):
        yield device
