"""What the two ways of launching share: the launches so far, and which memory a kernel may read."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .counters import Counters
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
