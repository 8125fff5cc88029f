"""What a launch executed: warp instructions, wavefronts of the load-store unit, sectors, reductions, conflicts."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LINE, SECTOR, BANKS = 128, 32, 32


@dataclass
class Counters:
    """Sums over every warp of a launch."""

    opcodes: Counter[str] = field(default_factory=Counter)
    """warp instructions by opcode; one whose predicate is false for every lane counts too"""
    wavefronts_by: Counter[str] = field(default_factory=Counter)
    """passes through the load-store unit: of global memory one for each line of 128 bytes that a warp touches, one for
    a shuffle, and of shared memory as many as the busiest bank has words"""
    sectors: int = 0
    """of 32 bytes, that loads and stores of global memory touch, each warp instruction's own"""
    reductions: int = 0
    """sectors of atomics and reductions in the L2"""
    shared_conflicts: int = 0
    """wavefronts of shared memory beyond those that the bytes need"""

    @property
    def warp_instructions(self) -> int:
        return self.opcodes.total()

    @property
    def wavefronts(self) -> int:
        return self.wavefronts_by.total()

    def count_global(self, kind: str, address: NDArray[np.int64], size: int, warp: NDArray[np.int64]) -> None:
        """An access of `size` bytes at `address` (n,), from the start of its allocation, by lanes of `warp` (n,)."""
        self.wavefronts_by[kind] += _distinct(address // LINE, warp)
        sectors = sum(_distinct(address // SECTOR + k, warp) for k in range(max(1, size // SECTOR)))
        if kind == "reduction":
            self.reductions += sectors
        else:
            self.sectors += sectors

    def count_shared(self, kind: str, address: NDArray[np.int64], size: int, lane: NDArray[np.int64]) -> None:
        """An access of shared memory by these lanes, numbered through all warps."""
        words = max(1, size // 4)
        part = lane // (32 // words)  # 8 bytes a lane go in two halves of a warp, 16 in four quarters
        word = (address // 4)[:, None] + np.arange(words)
        group = np.unique(part, return_inverse=True)[1]
        wanted = np.unique((group[:, None] << 32) + word)
        bank = (wanted >> 32) * BANKS + wanted % BANKS
        busiest = np.bincount(bank, minlength=(int(group.max()) + 1) * BANKS).reshape(-1, BANKS).max(1)
        self.wavefronts_by[kind] += int(busiest.sum())
        self.shared_conflicts += int((busiest - 1).sum())


def _distinct(number: NDArray[np.int64], warp: NDArray[np.int64]) -> int:
    """How many different numbers each warp has, summed over warps."""
    return len(np.unique((warp << 40) + number))
