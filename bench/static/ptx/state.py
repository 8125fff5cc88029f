"""What the threads that run together hold: registers, shared memory, and which lanes have set which register."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .counters import Counters
from .memory import BARRIER, Array, LaneError, Memory, SharedMemory
from .parse import Kernel

Lanes = Array | None
"""the lanes that execute an instruction, as an index array; None for all"""


class State:
    """The registers of the threads that run together, and what they can reach."""

    def __init__(
        self,
        kernel: Kernel,
        grid: Sequence[int],
        block: Sequence[int],
        programs: NDArray[np.int64],
        parameters: Mapping[str, bytes],
        memory: Memory,
        shared_bytes: int,
        counters: Counters | None,
        seed: int | None,
    ) -> None:
        threads = math.prod(block)
        per_program = -(-threads // 32) * 32
        self.kernel, self.threads, self.parameters, self.memory = kernel, threads, parameters, memory
        self.counters, self.seed = counters, seed
        self.lanes = per_program * len(programs)
        self.registers: list[Array | None] = [None] * len(kernel.registers)
        self.set_by: dict[int, NDArray[np.bool_]] = {}
        """of registers that not every lane has set: which lanes have"""
        self.undefined: NDArray[np.bool_] | None = None
        """of the lanes of the current instruction, those that have read what was never set"""
        self.slot = np.repeat(np.arange(len(programs)), per_program)
        """which of the programs that run together a lane belongs to"""
        self.shared = SharedMemory(len(programs), shared_bytes)
        self.program = np.repeat(programs + 1, per_program).astype(np.int32)
        self.first_of_warp = np.arange(self.lanes) & ~31
        tid = np.tile(np.arange(per_program), len(programs))
        number = np.repeat(programs, per_program)
        self.special: dict[str, Array] = {"laneid": (tid % 32).astype(np.uint32), "warpid": tid // 32}
        for axis, size, count in zip("xyz", block, grid, strict=True):
            self.special[f"tid.{axis}"], tid = tid % size, tid // size
            self.special[f"ctaid.{axis}"], number = number % count, number // count
            self.special[f"ntid.{axis}"] = np.full(self.lanes, size)
            self.special[f"nctaid.{axis}"] = np.full(self.lanes, count)
        self.turns = BARRIER + self.first_of_warp // 32 + 1
        """of each lane, for shared memory"""
        self.alive = np.tile(np.arange(per_program) < threads, len(programs))

    def of(self, values: Array, lanes: Lanes) -> Array:
        """These lanes' part of what every lane has."""
        return values if lanes is None else values[lanes]

    def per_lane(self, values: Any, lanes: Lanes) -> Array:
        """A value for each of these lanes, where one for all may have come."""
        return np.broadcast_to(values, (self.lanes if lanes is None else len(lanes),))

    def register(self, number: int, lanes: Lanes) -> Array:
        """A register of all lanes; which of `lanes` have never set it is kept in `undefined`.

        A value made of undefined ones is undefined: a reduction over part of a warp may make some, and drop them.
        """
        values = self.registers[number]
        if values is None:
            values = self.clear(number)
        if number in self.set_by:
            missing = ~self.of(self.set_by[number], lanes)
            if missing.any():
                self.undefined = missing if self.undefined is None else self.undefined | missing
        return values

    def clear(self, number: int) -> Array:
        """A register's memory, which no lane has set."""
        width = self.kernel.registers[number]
        values = self.registers[number] = np.zeros(self.lanes, f"u{width}" if width else np.bool_)
        self.set_by[number] = np.zeros(self.lanes, np.bool_)
        return values

    def take_undefined(self) -> NDArray[np.bool_] | None:
        """Which lanes have read what was never set since this was last asked."""
        undefined, self.undefined = self.undefined, None
        return undefined

    def require_defined(self, what: str) -> None:
        """Raises LaneError where a lane has read a register that was never set."""
        if self.undefined is not None:
            raise LaneError(int(np.flatnonzero(self.undefined)[0]), f"{what} depends on a register that was never set")

    def members(self, lanes: Lanes) -> NDArray[np.uint32]:
        """For each of these lanes (all if None), one bit for each lane of its warp that is among them."""
        chosen = np.zeros(self.lanes, np.bool_)
        chosen[slice(None) if lanes is None else lanes] = True
        masks = np.packbits(chosen.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32).reshape(-1)
        return self.of(np.repeat(masks, 32), lanes)

    def own_bit(self, lanes: Lanes) -> NDArray[np.uint32]:
        """Each lane's bit in a mask of its warp."""
        return np.uint32(1) << self.of(self.special["laneid"], lanes)

    def warps(self, lanes: Lanes) -> int:
        """How many warps have one of these lanes."""
        if lanes is None:
            return self.lanes // 32
        return int(np.count_nonzero(np.diff(lanes >> 5))) + 1 if len(lanes) else 0

    def load(self, space: str, address: Array, size: int, lanes: Lanes) -> Array:
        """(n, size) uint8 from addresses (n,) of "shared" or "global" memory."""
        if space == "shared":
            raw = self.shared.load(address, size, self.of(self.slot, lanes), self.of(self.turns, lanes))
        else:
            raw = self.memory.load(address, size, self.of(self.program, lanes))
        self.count(f"{space} load", address, size, lanes)
        return raw

    def store(self, space: str, address: Array, values: Array, lanes: Lanes) -> None:
        """Write `values` (n, size) uint8. What was never set stays so in shared memory, and is an error elsewhere."""
        if space == "shared":
            slot, turns = self.of(self.slot, lanes), self.of(self.turns, lanes)
            self.shared.store(address, values, slot, turns, self.undefined)
        else:
            self.require_defined("what is stored")
            self.memory.store(address, values, self.of(self.program, lanes))
        self.count(f"{space} store", address, values.shape[1], lanes)

    def add_to_shared(self, address: Array, values: Array, lanes: Lanes) -> Array:
        """Add `values` (n,) uint32 to shared memory, one lane after the other; returns what each found, (n,) uint32."""
        self.count("shared addition", address, 4, lanes)
        return self.shared.add(address, values, self.of(self.slot, lanes), self.of(self.turns, lanes))

    def pass_barrier(self, lanes: Lanes) -> None:
        """These lanes' next accesses to shared memory come behind a barrier."""
        self.turns[slice(None) if lanes is None else lanes] += BARRIER

    def count(self, kind: str, address: Array, size: int, lanes: Lanes) -> None:
        """Count an access of `size` bytes by each of these lanes, of a kind such as "shared load"."""
        if self.counters is None:
            return
        if kind.startswith("shared"):
            self.counters.count_shared(kind, address.astype(np.int64), size, self.of(np.arange(self.lanes), lanes))
        else:
            start = self.memory.starts[np.searchsorted(self.memory.starts, address, "right") - 1]
            offset = (address - start).astype(np.int64) + (start >> np.uint64(7)).astype(np.int64) * 128 % (1 << 38)
            self.counters.count_global(kind, offset, size, self.of(self.first_of_warp, lanes))


Action = Callable[[State, Lanes], None]
"""what an instruction does to the lanes that execute it"""
Read = Callable[[State, Lanes], Any]
"""gives an operand's value: (lanes,) from a register, a numpy scalar from a constant"""
Write = Callable[[State, Lanes, Any], None]
"""puts a result, (lanes,) or a scalar, into a register"""
