"""A driver for Triton that needs no device: kernels are compiled as for one, and their PTX is executed on the CPU.

Inside ``executing()`` a kernel is launched on CPU tensors, by ``kernel[grid](...)`` or by a kept compiled kernel. Triton
specialises on arguments and alignment just as it does on a device, since the same code of Triton decides.
"""

import contextlib
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from .counters import Counters
from .machine import Program, execute
from .memory import POISON, Allocation, Memory
from .parse import Fault, parse

_FORMATS = {"fp64": "<d", "fp32": "<f", "f32": "<f", "fp16": "<e", "i1": "<b"}
_FORMATS |= {f"i{n}": f"<{c}" for n, c in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))}
_FORMATS |= {f"u{n}": f"<{c}" for n, c in ((8, "B"), (16, "H"), (32, "I"), (64, "Q"))}


class Launch(NamedTuple):
    """One launch that was executed."""

    name: str
    grid: tuple[int, int, int]
    counters: Counters | None
    ptx: str


class Device:
    """What `executing` gives: the launches so far, and the storages whose bytes are known to be unwritten."""

    def __init__(self, arch: int, count: bool, approximate: str | None) -> None:
        self.arch, self.count = arch, count
        self.seed = {None: None, "exact": None, "worst": 0}[approximate]
        self.launches: list[Launch] = []
        self._fresh: dict[int, tuple[torch.UntypedStorage, Allocation]] = {}

    def poison(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fill a new tensor with NaN, and hold its bytes for unwritten."""
        storage = tensor.untyped_storage()
        if tensor.device.type == "cpu" and storage.nbytes():
            storage.fill_(POISON)
            start, size = storage.data_ptr(), storage.nbytes()
            # the storage is kept, so that no other one is taken for it
            self._fresh[start] = storage, Allocation("new memory", start, size, np.zeros(size, np.uint8))
        return tensor

    def memory(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> Memory:
        """What these tensors' storages hold."""
        allocations: dict[int, Allocation] = {}
        for name, tensor in tensors:
            storage = tensor.untyped_storage()
            start, size = storage.data_ptr(), storage.nbytes()
            if tensor.device.type != "cpu":
                raise Fault(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")
            if size and start not in allocations:
                known = self._fresh.get(start)
                allocation = known[1] if known and known[1].size == size else Allocation(name, start, size)
                allocation.name = name
                allocations[start] = allocation
        return Memory(list(allocations.values()))

    def launch(self, compiled: "_Loaded", grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        """Execute a grid of a compiled kernel."""
        tensors: list[tuple[str, torch.Tensor]] = []
        values: list[bytes] = []
        for name, kind, value in _flatten(compiled.signature, arguments):
            if kind.startswith("*"):
                if isinstance(value, torch.Tensor):
                    tensors.append((name, value))
                    value = value.data_ptr()
                values.append(struct.pack("<Q", value or 0))
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
        counters = Counters() if self.count else None
        execute(
            compiled.program,
            grid,
            (32 * compiled.warps, 1, 1),
            parameters,
            self.memory(tensors),
            compiled.shared,
            counters,
            self.seed,
        )
        self.launches.append(Launch(compiled.name, grid, counters, compiled.ptx))


class _Loaded(NamedTuple):
    name: str
    program: Program
    signature: tuple[tuple[str, Any], ...]
    warps: int
    shared: int
    ptx: str


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
    def __init__(self, device: Device) -> None:
        self.device, self.utils = device, _Utils()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.arch, 32)

    def get_current_device(self) -> str:
        """Under this name a kernel keeps what it compiled, apart from what it has for real devices."""
        return f"executed sm_{self.device.arch}"

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
    ptx, metadata = self.asm["ptx"], self.metadata
    loaded = _Loaded(self.name, _program(ptx), signature, metadata.num_warps, metadata.shared, ptx)

    def run(x: int, y: int, z: int, *rest: Any) -> None:
        active = driver._active
        if not isinstance(active, _Driver):
            raise Fault(f"{loaded.name}: compiled to be executed, and launched outside of `executing`")
        active.device.launch(loaded, (x, y, z), rest[6:])  # behind the stream, the kernel, its metadata and hooks

    self._run, self.module, self.function, self.n_regs, self.n_spills = run, 1, loaded, 0, 0


@contextlib.contextmanager
def poisoned(device: Device) -> Iterator[None]:
    """Make new memory that torch.empty and its kin give out NaN, and reading it in a kernel a fault."""
    places = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")]
    originals = [getattr(place, name) for place, name in places]

    def fresh(original: Any) -> Any:
        return lambda *args, **kwargs: device.poison(original(*args, **kwargs))

    try:
        for (place, name), original in zip(places, originals, strict=True):
            setattr(place, name, fresh(original))
        yield
    finally:
        for (place, name), original in zip(places, originals, strict=True):
            setattr(place, name, original)


@contextlib.contextmanager
def executing(
    arch: int = 90, count: bool = False, approximate: str | None = None, poison: bool = True
) -> Iterator[Device]:
    """Execute what Triton launches inside, on CPU tensors, as compiled for an architecture.

    Args:
        arch: 80, 90, 120: which device's code is compiled.
        count: whether the launches count what they execute.
        approximate: "worst" lets functions that PTX calls approximate err by up to the documented bound, in a repeatable
            way; they are exact otherwise.
        poison: whether reading new memory that nothing has written is a fault.

    Raises:
        Fault: out of the launch, when a kernel does what it may not.
    """
    if triton.knobs.runtime.interpret:
        raise Fault("compiled kernels cannot be executed in a process with TRITON_INTERPRET=1")
    device = Device(arch, count, approximate)
    before, init = driver._active, CompiledKernel._init_handles
    driver.set_active(_Driver(device))  # type: ignore[arg-type]
    CompiledKernel._init_handles = _init_handles
    try:
        with poisoned(device) if poison else contextlib.nullcontext():
            yield device
    finally:
        driver._active = before
        CompiledKernel._init_handles = init
