"""What the two ways of launching share: the launches so far, and which memory a kernel may read."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

from .counters import Counters
from .machine import Program, execute
from .memory import POISON, Allocation, Memory
from .parse import Fault


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
        """Fill a new tensor with NaN, and hold its bytes for unwritten.

        What other code than kernels writes to it is known by no longer being the filling; a -1 that such code writes
        to new memory of integers is taken for unwritten.
        """
        storage = tensor.untyped_storage()
        if tensor.device.type == "cpu" and storage.nbytes():
            storage.fill_(POISON)  # type: ignore[attr-defined]
            start, size = storage.data_ptr(), storage.nbytes()
            # the storage is kept, so that no other one is taken for it
            self._fresh[start] = storage, Allocation("new memory", start, size, np.zeros(size, np.uint8))
        return tensor

    def launch(
        self,
        program: Program,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[int | bytes],
        tensors: Sequence[tuple[str, torch.Tensor]],
        dynamic_shared: int = 0,
    ) -> None:
        """Execute a grid of a kernel.

        Args:
            program, grid, block, dynamic_shared: of :func:`.machine.execute`.
            arguments: a whole number for each parameter, or its bytes.
            tensors: whose memory the kernel may touch, by what a fault calls them.

        Raises:
            Fault: the arguments are not those of the kernel, or it does what it may not.
        """
        kernel, parameters = program.kernel, {}
        if len(arguments) != len(kernel.parameters):
            raise Fault(f"{kernel.name}: expected {len(kernel.parameters)} arguments, got {len(arguments)}")
        for (name, (_, size)), value in zip(kernel.parameters.items(), arguments, strict=True):
            packed = value if isinstance(value, bytes) else value.to_bytes(size, "little", signed=value < 0)
            if len(packed) != size:
                raise Fault(f"{kernel.name}: parameter {name} has {size} bytes, its argument {len(packed)}")
            parameters[name] = packed
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
        counters, memory = Counters() if self.count else None, Memory(list(allocations.values()))
        execute(program, grid, block, parameters, memory, dynamic_shared, counters, self.seed)
        self.launches.append(Launch(kernel.name, grid, counters, kernel.ptx))


_ALLOCATING = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"))


@contextlib.contextmanager
def poisoned(device: Device) -> Iterator[None]:
    """Make new memory that torch.empty and its kin give out NaN, and reading it in a kernel a fault."""
    with contextlib.ExitStack() as stack:
        for place, name in _ALLOCATING:
            stack.enter_context(mock.patch.object(place, name, _poisoning(device, getattr(place, name))))
        yield


def _poisoning(device: Device, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: device.poison(original(*args, **kwargs))
