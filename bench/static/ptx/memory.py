"""The memory of an executed kernel: what it may touch, what was written, and by which program.

Addresses are those of this process, so that a tensor's ``data_ptr()`` is what a kernel is given. An access is checked
before memory is touched: inside one allocation, aligned, nothing read that was never written, and no two programs of a
launch (or threads of one instruction) store different bits to one byte.
"""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

POISON = 0xFF
"""the byte that new memory is filled with: NaN in every dtype, -1 in integers"""
_BASE = 4096  # where the views of memory begin: no allocation lies below
_BYTES = (1 << 47) - _BASE
_DTYPES: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
# one view of the process's memory for each size of an access; complex128 stands for any 16 bytes
_ALL: Any = (ctypes.c_uint8 * _BYTES).from_address(_BASE)
_SPACE = {size: np.frombuffer(_ALL, np.dtype(dtype)) for size, dtype in _DTYPES.items()}
_SHIFT = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4}


class LaneError(Exception):
    """What is wrong with one lane's access; the machine adds where."""

    def __init__(self, position: int, text: str) -> None:
        super().__init__(text)
        self.position = position


def check(holds: Any, text: Callable[[int], str], lanes: slice | Array = slice(None)) -> None:
    """Raises LaneError, with what `text` says of it, for the first lane where something does not hold.

    Args:
        holds: (n,) bool.
        text: of a lane's position in the access.
        lanes: the positions in the access that `holds` is of, where those are not all.
    """
    if not holds.all():
        first = int(np.flatnonzero(~holds)[0])
        position = first if isinstance(lanes, slice) else int(lanes[first])
        raise LaneError(position, text(position))


@dataclass
class Allocation:
    """Memory that a kernel may touch."""

    name: str
    start: int
    size: int
    written: NDArray[np.uint8] | None = None
    """1 for each byte that was written, None if all were"""
    writers: NDArray[np.int32] | None = None
    """the program (its number plus 1) that stored each byte in this launch, None before the first store"""

    def see_host_writes(self) -> None:
        """Mark as written what no longer is as it was filled: other code than kernels has written it."""
        if self.written is not None:
            words = _SPACE[1][self.start - _BASE : self.start - _BASE + self.size]
            self.written |= words != POISON
            whole = self.size // 2 * 2  # a byte of a written number may be as it was: numbers have 2 bytes or more
            pairs = self.written[:whole].reshape(-1, 2)
            pairs |= pairs.max(1, keepdims=True)
            if self.written.all():
                self.written = None


def _own(values: Array, size: int) -> Array:
    """The bytes of each lane's access, (n, size) uint8."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)


class Memory:
    """The allocations of one launch."""

    def __init__(self, allocations: list[Allocation]) -> None:
        self.allocations = sorted(allocations, key=lambda a: a.start)
        self.starts = np.array([a.start for a in self.allocations], np.uint64)
        self.ends = np.array([a.start + a.size for a in self.allocations], np.uint64)
        for allocation in self.allocations:
            allocation.writers = None
            allocation.see_host_writes()

    def locate(self, address: Array, size: int, what: str) -> Iterator[tuple[Allocation, slice | Array]]:
        """Check the addresses (n,) uint64, and give the allocations with the lanes that touch each."""
        unit = min(size, 16)
        misplaced = f"{what} {size} bytes at an address that is no multiple of {unit}"
        check(address & np.uint64(unit - 1) == 0, self._says(misplaced, address))
        low, high = address.min(), address.max()
        first = int(np.searchsorted(self.starts, low, "right")) - 1
        if first >= 0 and high + np.uint64(size) <= self.ends[first]:
            return iter([(self.allocations[first], slice(None))])
        places = np.searchsorted(self.starts, address, "right") - 1
        inside = (places >= 0) & (address + np.uint64(size) <= self.ends[np.maximum(places, 0)])
        check(inside, self._says(f"{what} {size} bytes out of bounds", address))
        return iter([(self.allocations[k], np.flatnonzero(places == k)) for k in np.unique(places)])

    def _says(self, what: str, address: Array) -> Callable[[int], str]:
        """What is wrong, and where in which allocation the lane's address is."""

        def says(position: int) -> str:
            at = int(address[position])
            before = [a for a in self.allocations if a.start <= at]
            near = before[-1] if before else self.allocations[0] if self.allocations else None
            if near is None or at < 65536:
                return f"{what}: address {at}"
            return f"{what}: byte {at - near.start} of the {near.size} of {near.name}"

        return says

    def _require_written(
        self, marks: Array, at: Array, size: int, address: Array, lanes: slice | Array, what: str
    ) -> None:
        written = _bytes_of(marks, at, size).all(1)
        check(written, self._says(f"{what} {size} bytes never written", address), lanes)

    def load(self, address: Array, size: int, program: Array) -> Array:
        """(n, size) uint8 from addresses (n,) by these programs (n,)."""
        for allocation, lanes in self.locate(address, size, "reads"):
            at = (address[lanes] - np.uint64(allocation.start)).astype(np.int64)
            if allocation.written is not None:
                self._require_written(allocation.written, at, size, address, lanes, "reads")
            if allocation.writers is not None:
                by = _bytes_of(allocation.writers, at, size)
                own = ((by == 0) | (by == program[lanes][:, None])).all(1)
                check(own, self._says("reads what another program stores in this launch", address), lanes)
        return _own(_gather(address, size), size)

    def store(self, address: Array, values: Array, program: Array) -> None:
        """Write `values` (n, size) uint8."""
        size = values.shape[1]
        for allocation, lanes in self.locate(address, size, "stores"):
            at = (address[lanes] - np.uint64(allocation.start)).astype(np.int64)
            if allocation.writers is None:
                allocation.writers = np.zeros(allocation.size, np.int32)
            by, own = _bytes_of(allocation.writers, at, size), program[lanes][:, None]
            other = (by != 0) & (by != own)
            if other.any():
                differs = (_own(_gather(address[lanes], size), size) != values[lanes]) & other
                check(~differs.any(1), self._says("stores other bits than another program", address), lanes)
            _put_bytes(allocation.writers, at, np.broadcast_to(own, by.shape), size)
            if allocation.written is not None:
                _put_bytes(allocation.written, at, np.ones(by.shape, np.uint8), size)
        _scatter(address, values)
        kept = (_own(_gather(address, size), size) == values).all(1)
        check(kept, self._says("two threads store different bits in one instruction", address))

    def update(self, address: Array, values: Array, operation: np.ufunc) -> None:
        """Atomics: `operation` on each of `values` (n, words) of a number's dtype, one lane after the other."""
        width = values.dtype.itemsize
        size = width * values.shape[1]
        for allocation, lanes in list(self.locate(address, size, "updates")):
            at = (address[lanes] - np.uint64(allocation.start)).astype(np.int64)
            if allocation.written is not None:
                self._require_written(allocation.written, at, size, address, lanes, "updates")
            begin = allocation.start - _BASE
            # of the allocation alone: numpy would copy a view that holds the indices too
            numbers = _SPACE[1][begin : begin + allocation.size // width * width].view(values.dtype)
            for word in range(values.shape[1]):
                operation.at(numbers, at // width + word, values[lanes, word])

    def update_bfloat16(self, address: Array, values: Array) -> None:
        """Atomic additions of bfloat16 numbers, (n, words) as uint16, each rounded."""
        address = (address[:, None] + np.arange(0, 2 * values.shape[1], 2, dtype=np.uint64)).reshape(-1)
        self.update(address, np.zeros((len(address), 1), np.uint16), np.bitwise_or)  # the checks alone
        values = values.reshape(-1)
        while len(address):
            _, first = np.unique(address, return_index=True)
            old, new = (
                (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
                for bits in (_gather(address[first], 2), values[first])
            )
            total = (old + new).view(np.uint32)
            total += np.uint32(0x7FFF) + ((total >> np.uint32(16)) & np.uint32(1))
            _scatter(address[first], (total >> np.uint32(16)).astype(np.uint16).view(np.uint8).reshape(-1, 2))
            address, values = np.delete(address, first), np.delete(values, first)


def _gather(address: Array, size: int) -> Array:
    if size > 16:
        parts = [_own(_gather(address + np.uint64(16 * k), 16), 16) for k in range(size // 16)]
        return np.concatenate(parts, 1)
    return _SPACE[size][(address - np.uint64(_BASE)) >> np.uint64(_SHIFT[size])]


def _scatter(address: Array, values: Array) -> None:
    size = values.shape[1]
    if size > 16:
        for k in range(size // 16):
            _scatter(address + np.uint64(16 * k), np.ascontiguousarray(values[:, 16 * k : 16 * k + 16]))
        return
    index = (address - np.uint64(_BASE)) >> np.uint64(_SHIFT[size])
    _SPACE[size][index] = np.ascontiguousarray(values).view(_DTYPES[size]).reshape(-1)


def _bytes_of(marks: Array, at: Array, size: int) -> Array:
    """Marks (n, size) of the bytes from `at` on."""
    return marks[at[:, None] + np.arange(size)]


def _put_bytes(marks: Array, at: Array, values: Array, size: int) -> None:
    marks[at[:, None] + np.arange(size)] = values


class SharedMemory:
    """The shared memory of the programs that run together, `size` bytes each."""

    def __init__(self, programs: int, size: int) -> None:
        self.size = size
        self.stride = -(-size // 16) * 16
        self.words = np.zeros(programs * self.stride // 16 + 1, np.complex128)
        self.views = {width: self.words.view(dtype) for width, dtype in _DTYPES.items()}
        self.written = np.zeros(self.words.nbytes, np.uint8)

    def _index(self, address: Array, size: int, slot: Array, what: str) -> Array:
        check(
            address + np.uint64(size) <= self.size,
            lambda i: f"{what} {size} bytes at {int(address[i])} of {self.size} bytes of shared memory",
        )
        check(
            address & np.uint64(size - 1) == 0,
            lambda i: f"{what} {size} bytes of shared memory at {int(address[i])}, no multiple of {size}",
        )
        return (address.astype(np.int64) + slot * self.stride) >> _SHIFT[size]

    def load(self, address: Array, size: int, slot: Array) -> Array:
        """(n, size) uint8 from addresses (n,) of the slots (n,) of the lanes' programs."""
        index = self._index(address, size, slot, "reads")
        written = self.written.reshape(-1, size)[index].all(1)
        check(written, lambda i: f"reads {size} bytes of shared memory never written, at {int(address[i])}")
        return _own(self.views[size][index], size)

    def store(self, address: Array, values: Array, slot: Array, undefined: Array | None = None) -> None:
        """Write `values` (n, size) uint8; those of lanes that are `undefined` count as never written."""
        size = values.shape[1]
        index = self._index(address, size, slot, "stores")
        self.views[size][index] = np.ascontiguousarray(values).view(_DTYPES[size]).reshape(-1)
        kept = (_own(self.views[size][index], size) == values).all(1)
        check(kept, lambda i: f"two threads store different bits to shared memory at {int(address[i])}")
        self.written.reshape(-1, size)[index] = 1 if undefined is None else ~undefined[:, None]
