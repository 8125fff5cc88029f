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
import torch
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

    def bytes_at(self, address: Array, size: int) -> Array:
        """Indices (n, size) of the bytes of accesses at addresses (n,)."""
        return (address - np.uint64(self.start)).astype(np.int64)[:, None] + np.arange(size)


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

    def _touched(
        self, address: Array, size: int, what: str, *, written: bool = True
    ) -> Iterator[tuple[Allocation, slice | Array]]:
        """Check the addresses (n,) uint64, and give the allocations with the lanes that touch each; of `written` ones
        the bytes must have been."""
        unit = min(size, 16)
        misplaced = f"{what} {size} bytes at an address that is no multiple of {unit}"
        check(address & np.uint64(unit - 1) == 0, self._says(misplaced, address))
        first = int(np.searchsorted(self.starts, address.min(), "right")) - 1
        groups: list[tuple[int, slice | Array]] = [(first, slice(None))]
        if first < 0 or address.max() + np.uint64(size) > self.ends[first]:
            places = np.searchsorted(self.starts, address, "right") - 1
            inside = (places >= 0) & (address + np.uint64(size) <= self.ends[np.maximum(places, 0)])
            check(inside, self._says(f"{what} {size} bytes out of bounds", address))
            groups = [(k, np.flatnonzero(places == k)) for k in np.unique(places)]
        for k, lanes in groups:
            allocation = self.allocations[k]
            if written and allocation.written is not None:
                known = allocation.written[allocation.bytes_at(address[lanes], size)].all(1)
                check(known, self._says(f"{what} {size} bytes never written", address), lanes)
            yield allocation, lanes

    def _says(self, what: str, address: Array) -> Callable[[int], str]:
        """What is wrong, and where in which allocation the lane's address is."""

        def says(position: int) -> str:
            at = int(address[position])
            near = next((a for a in reversed(self.allocations) if a.start <= at), None)
            if near is None or at < 65536:
                return f"{what}: address {at}"
            return f"{what}: byte {at - near.start} of the {near.size} of {near.name}"

        return says

    def load(self, address: Array, size: int, program: Array) -> Array:
        """(n, size) uint8 from addresses (n,) by these programs (n,)."""
        for allocation, lanes in self._touched(address, size, "reads"):
            if allocation.writers is not None:
                by = allocation.writers[allocation.bytes_at(address[lanes], size)]
                own = ((by == 0) | (by == program[lanes][:, None])).all(1)
                check(own, self._says("reads what another program stores in this launch", address), lanes)
        space, index = _place(address, size)
        return _own(space[index], size)

    def store(self, address: Array, values: Array, program: Array) -> None:
        """Write `values` (n, size) uint8."""
        size = values.shape[1]
        space, index = _place(address, size)
        for allocation, lanes in self._touched(address, size, "stores", written=False):
            at, own = allocation.bytes_at(address[lanes], size), program[lanes][:, None]
            if allocation.writers is None:
                allocation.writers = np.zeros(allocation.size, np.int32)
            by = allocation.writers[at]
            other = (by != 0) & (by != own)
            if other.any():
                differs = (_own(space[index[lanes]], size) != values[lanes]) & other
                check(~differs.any(1), self._says("stores other bits than another program", address), lanes)
            allocation.writers[at] = own
            if allocation.written is not None:
                allocation.written[at] = 1
        space[index] = np.ascontiguousarray(values).view(space.dtype)
        kept = (_own(space[index], size) == values).all(1)
        check(kept, self._says("two threads store different bits in one instruction", address))

    def update(self, address: Array, values: Array, operation: np.ufunc | None) -> None:
        """Atomics: `operation` on each of `values` (n, words) of a number's dtype, one lane after the other; None adds
        bfloat16 numbers, which come as uint16."""
        width = values.dtype.itemsize
        for allocation, lanes in self._touched(address, width * values.shape[1], "updates"):
            first = (address[lanes] - np.uint64(allocation.start)).astype(np.int64) // width
            begin = allocation.start - _BASE
            # of the allocation alone: numpy would copy a view that holds the indices too
            numbers = _SPACE[1][begin : begin + allocation.size // width * width].view(values.dtype)
            for word in range(values.shape[1]):
                if operation is not None:
                    operation.at(numbers, first + word, values[lanes, word])
                    continue
                target, added = (torch.from_numpy(x).view(torch.bfloat16) for x in (numbers, values[lanes, word]))
                target.index_add_(0, torch.from_numpy(first + word), added)


def _place(address: Array, size: int) -> tuple[Array, Array]:
    """A view of all memory in words of at most 16 bytes, and each access's indices (n, words) in it."""
    word = min(size, 16)
    index = (address - np.uint64(_BASE)) >> np.uint64(_SHIFT[word])
    return _SPACE[word], index[:, None] + np.arange(size // word, dtype=np.uint64)


class SharedMemory:
    """The shared memory of the programs that run together, `size` bytes each.

    An access comes with its `turns`: each lane's warp, and how many barriers the lane has passed. If different warps
    access one place with no barrier between, and one of them stores, nobody knows which comes first: a fault.
    """

    def __init__(self, programs: int, size: int) -> None:
        self.size = size
        self.stride = -(-size // 16) * 16
        self.words = np.zeros(programs * self.stride // 16 + 1, np.complex128)
        self.written = np.zeros(self.words.nbytes, np.uint8)
        # of each _UNIT bytes the turn of the last store, load and addition
        self.turns = {kind: np.zeros(self.words.nbytes // _UNIT, np.int64) for kind in _CONFLICTS}

    def _place(self, address: Array, size: int, slot: Array, what: str) -> tuple[Array, Array]:
        def says(i: int) -> str:
            return f"{what} {size} bytes at {int(address[i])} of {self.size} bytes of shared memory"

        check(address + np.uint64(size) <= self.size, says)
        check(address & np.uint64(size - 1) == 0, lambda i: f"{says(i)}, no multiple of {size}")
        return self.words.view(_DTYPES[size]), (address.astype(np.int64) + slot * self.stride) >> _SHIFT[size]

    def _take_turn(self, kind: str, address: Array, size: int, slot: Array, turns: Array) -> None:
        first = (address.astype(np.int64) + slot * self.stride) // _UNIT
        words, own = first[:, None] + np.arange(max(1, size // _UNIT)), turns[:, None]
        for other in _CONFLICTS[kind]:
            last = self.turns[other][words]
            apart = (last >> _WARP_BITS != own >> _WARP_BITS) | (last == own)
            text = f"{kind} shared memory that another warp {other}, with no barrier between, at"
            check(apart.all(1), lambda i, text=text: f"{text} {int(address[i])}")  # type: ignore[misc]
        # of several warps, in one instruction or since the last barrier, none stands for the others
        kept, own = self.turns[kind], np.broadcast_to(own, words.shape)
        last = kept[words]
        kept[words] = own
        several = (kept[words] != own) | ((last >> _WARP_BITS == own >> _WARP_BITS) & (last != own))
        kept[words[several]] = own[several] | _EVERY_WARP

    def load(self, address: Array, size: int, slot: Array, turns: Array) -> Array:
        """(n, size) uint8 from addresses (n,) of the slots (n,) of the lanes' programs."""
        space, index = self._place(address, size, slot, "reads")
        written = self.written.reshape(-1, size)[index].all(1)
        check(written, lambda i: f"reads {size} bytes of shared memory never written, at {int(address[i])}")
        self._take_turn("reads", address, size, slot, turns)
        return _own(space[index], size)

    def store(self, address: Array, values: Array, slot: Array, turns: Array, undefined: Array | None = None) -> None:
        """Write `values` (n, size) uint8; those of lanes that are `undefined` count as never written."""
        size = values.shape[1]
        space, index = self._place(address, size, slot, "stores")
        space[index] = np.ascontiguousarray(values).view(space.dtype).reshape(-1)
        kept = (_own(space[index], size) == values).all(1)
        check(kept, lambda i: f"two threads store different bits to shared memory at {int(address[i])}")
        self._take_turn("stores", address, size, slot, turns)
        self.written.reshape(-1, size)[index] = 1 if undefined is None else ~undefined[:, None]

    def add(self, address: Array, values: Array, slot: Array, turns: Array) -> Array:
        """Add `values` (n,) uint32 one lane after the other; returns what each lane found, (n,) uint32."""
        space, index = self._place(address, 4, slot, "adds")
        check(self.written.reshape(-1, 4)[index].all(1), lambda i: f"adds to what was never written, at {address[i]}")
        self._take_turn("adds to", address, 4, slot, turns)
        order = np.argsort(index, kind="stable")
        added, places = values[order], index[order]
        sums = np.cumsum(added, dtype=np.uint32) - added
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        before = sums - np.repeat(sums[starts], np.diff(starts, append=len(places)))
        found = np.empty(len(index), np.uint32)
        found[order] = space[places] + before
        np.add.at(space, places, added)
        return found


_CONFLICTS = {"stores": ("stores", "reads", "adds to"), "reads": ("stores", "adds to"), "adds to": ("stores", "reads")}
"""accesses to shared memory, and which of them by another warp may not be in the same turn"""
_UNIT = 2
_WARP_BITS = 24
_EVERY_WARP = (1 << _WARP_BITS) - 1
BARRIER = 1 << _WARP_BITS
"""by how much a barrier moves a lane's turn on; below it a turn has the lane's warp, from 1 on"""
