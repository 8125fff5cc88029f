"""Executes kernels/cuda/msda.cu on a CPU: its PTX comes from NVRTC, as on a machine with a device.

``executing()`` puts itself in the place of the launch, so that ``msdeform.kernels.cuda.launch`` computes what it is
given (grid, block, pointers, strides) and runs on CPU tensors.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from unittest import mock

import torch

from ....kernels.cuda import compile as compiler
from ....kernels.cuda import launch as launcher
from .device import Device, poisoned
from .machine import Program
from .parse import Fault, parse


@lru_cache(maxsize=64)
def _program(arch: int, dtypes: compiler.Dtypes, name: str) -> Program:
    return Program(parse(_ptx(arch, dtypes), name))


def compile_ptx(arch: int, dtypes: compiler.Dtypes) -> str:
    """What NVRTC makes of msda.cu. Not through cuda.core, which asks a driver whether it could load the PTX."""
    from cuda.pathfinder import find_nvidia_header_directory

    options = compiler._options(f"sm_{arch}", dtypes)
    flags = [f"--gpu-architecture={options['arch']}", f"--std={options['std']}"]
    flags += [f"--include-path={find_nvidia_header_directory('cudart')}"]
    flags += [f"--define-macro={name}={value}" for name, value in options["define_macro"]]
    return compile_source(compiler.SOURCE.read_bytes(), "msda.cu", flags)[0]


_ptx = lru_cache(maxsize=64)(compile_ptx)


def compile_source(source: bytes, file: str, flags: Sequence[str], instance: str | None = None) -> tuple[str, bytes]:
    """PTX and machine code that NVRTC makes of a source, or of an instance of one of its templates.

    Raises RuntimeError with its log where it refuses.
    """
    from cuda.bindings import nvrtc

    def done(result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status):
            raise RuntimeError(f"NVRTC: {status.name}")
        return values[0] if values else None

    def filled(size: tuple[Any, ...], write: Callable[[Any, bytes], tuple[Any, ...]]) -> bytes:
        buffer = bytes(done(size))
        done(write(program, buffer))
        return buffer

    program = done(nvrtc.nvrtcCreateProgram(source, file.encode(), 0, [], []))
    if instance is not None:
        done(nvrtc.nvrtcAddNameExpression(program, instance.encode()))
    if int(nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])[0]):
        log = filled(nvrtc.nvrtcGetProgramLogSize(program), nvrtc.nvrtcGetProgramLog)
        raise RuntimeError(f"NVRTC refuses {file}: {log.decode().rstrip(chr(0))}")
    ptx = filled(nvrtc.nvrtcGetPTXSize(program), nvrtc.nvrtcGetPTX).decode().rstrip("\0")
    cubin = filled(nvrtc.nvrtcGetCUBINSize(program), nvrtc.nvrtcGetCUBIN)
    done(nvrtc.nvrtcDestroyProgram(program))
    return ptx, cubin


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
        forward, backward = (_program(self.arch, dtypes, name) for name in (compiler.FORWARD, compiler.BACKWARD))
        return compiler.Kernels(forward, backward)

    def launch_cuda(
        self, program: Program, device: torch.device, *, rows: int, block: tuple[int, int], arguments: Sequence[int]
    ) -> None:
        """In place of the launch: `rows` rows, block[1] of them to a block."""
        kernel = program.kernel
        if [size for _, size in kernel.parameters.values()] != [8] * len(arguments):
            raise Fault(f"{kernel.name}: expected {len(kernel.parameters)} arguments, got {len(arguments)}")
        parameters = {name: struct.pack("<q", a) for name, a in zip(kernel.parameters, arguments, strict=True)}
        tensors = []
        for number, argument in enumerate(arguments):
            for start, tensor in self._storages.items():
                if start <= argument < start + tensor.untyped_storage().nbytes():
                    tensors.append((f"argument {number}", tensor))
        grid = (-(-rows // block[1]), 1, 1)
        self.launch(program, kernel.name, grid, (*block, 1), parameters, tensors)


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
        mock.patch.object(launcher, "_launch", device.launch_cuda),
        mock.patch.object(torch.Tensor, "data_ptr", lambda tensor: device.address(tensor)),  # noqa: PLW0108  (a bound method is not one)
        poisoned(device),
    ):
        yield device
