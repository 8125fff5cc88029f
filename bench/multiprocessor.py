"""The forward's reads of value on a few multiprocessors of a GPU, and which of them its first cache answers.

    programs    BLOCK_Q queries of one head. Dealt in turn, program p runs on multiprocessor p modulo their number, as
                it does where all take equally long; dealt at random, every multiprocessor gets any of as many
                consecutive programs as there are multiprocessors
    together    `resident` at once on each, evenly out of step
    reads       the rows of D channels of four neighbours, for every point in the kernel's order: point by point, a load
                instruction of a warp after the other
    L1          fully associative, least recently used: lines of 128 bytes, of which missing sectors of 32 are fetched

What else a kernel reads and writes (offsets, logits, results) is left out: whole sectors of a query's own, read once in
any order.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import lru
from .looks import Look
from .model import H200, Gpu
from .orders import NOBODY, Array, Order

LINE, SECTOR = 128, 32
_INSTRUCTION = 512  # bytes that a load of 16 a lane brings to a warp
DEALT = {"turn": "in turn", "random": "at random"}
IDLE = -1
"""in place of a row of value: read by nobody"""


@dataclass(frozen=True)
class Machine:
    """The first cache, and what runs beside it."""

    kb: int = 200
    """of 256 for L1 and shared memory together; the forward uses next to no shared memory"""
    resident: int = 4
    """programs of 4 warps at once on a multiprocessor: 65,536 registers over 128 threads of 116 or 128"""
    sample: int = 2
    """how many multiprocessors are simulated"""
    dealt: str = "turn"
    """how programs come to multiprocessors: one of DEALT"""
    gpu: Gpu = H200

    def lines(self, share: float = 1.0) -> int:
        """How many lines a share of L1 holds."""
        return int(share * self.kb * 1024) // LINE

    def programs(self, count: int) -> list[Array]:
        """Of a launch of `count` programs those of each simulated multiprocessor, as they come to it."""
        every = self.gpu.multiprocessors
        numbers = [every * i // self.sample for i in range(self.sample)]
        if self.dealt == "turn":
            return [np.arange(number, count, every) for number in numbers]
        generator = np.random.default_rng(0)
        turns = np.arange(0, count, every)
        columns = np.stack([generator.permutation(every)[: self.sample] for _ in turns], 1)
        return [programs[programs < count] for programs in turns + columns]


def block_queries(D: int, itemsize: int) -> int:
    """BLOCK_Q of the forward, as kernels.triton.launch chooses it for D, a power of two up to 64."""
    return max(1, min(64, (1024 if itemsize == 4 else 2048) // D))


def fits(D: int, itemsize: int) -> bool:
    """Whether a row is a power of two of sectors and no more than a line, which is all that is simulated."""
    return D * itemsize in (SECTOR, 2 * SECTOR, LINE)


class Launch:
    """The programs of one call of the forward, in the order in which they begin."""

    def __init__(self, look: Look, order: Order, itemsize: int) -> None:
        """`itemsize` is the bytes of a number of value."""
        self.look, self.order, self.itemsize = look, order, itemsize
        self.blocks = order.programs(look.sizes, block_queries(look.D, itemsize))
        """(blocks, BLOCK_Q) queries"""

    @property
    def count(self) -> int:
        """Programs of all heads and samples."""
        B, _, H = self.look.points.shape[:3]
        return B * H * len(self.blocks)

    def rows(self, programs: Array) -> Array:
        """Rows of value that programs (n,) read, (n, BLOCK_Q, L*P, 4) int64, IDLE where a query is NOBODY.

        Row (b*S + pixel)*H + h lies at that many times D*itemsize bytes.
        """
        B, S, H = self.look.points.shape[:3]
        N = len(self.blocks)
        if self.order.heads_fastest:
            b, block, h = np.unravel_index(programs, (B, N, H))
        else:
            b, h, block = np.unravel_index(programs, (B, H, N))
        queries = self.blocks[block]
        pixels = corners(self.look.points[b[:, None], queries, h[:, None]], self.look.sizes)
        rows = (b[:, None, None, None] * S + pixels) * H + h[:, None, None, None]
        return np.where(queries[..., None, None] == NOBODY, IDLE, rows)


def corners(points: Array, sizes: tuple[tuple[int, int], ...]) -> Array:
    """Pixels of the four neighbours of points (..., L, P, 2): (..., L*P, 4) int64, counted over all levels.

    Like the kernel, which moves a sample's cell into its level and reads four pixels of it wherever the sample lies.
    """
    h, w = np.array(sizes).T[:, :, None]
    start = np.cumsum([0, *(h * w)[:-1, 0]])[:, None]
    column = np.clip(np.floor(points[..., 0] * w - 0.5).astype(np.int64), 0, np.maximum(w - 2, 0))
    row = np.clip(np.floor(points[..., 1] * h - 0.5).astype(np.int64), 0, np.maximum(h - 2, 0))
    first = start + row * w + column
    right, below = np.where(w > 1, 1, 0), np.where(h > 1, w, 0)
    four = np.stack([first, first + right, first + below, first + right + below], -1)
    return four.reshape(*points.shape[:-3], points.shape[-3] * points.shape[-2], 4)


def stream(rows: Array, row_bytes: int, resident: int) -> Array:
    """What the programs of one multiprocessor read, one after another: (n,) int64 from (programs, BLOCK_Q, points, 4).

    Program k begins when k / resident programs' worth of points have been read; programs that run together take turns
    point by point. Of a point, each warp loads a neighbour for as many queries as an instruction reaches.
    """
    count, block, points, _ = rows.shape
    reached = min(block, _INSTRUCTION // row_bytes)
    grouped = rows.reshape(count, block // reached, reached, points, 4).transpose(0, 3, 1, 4, 2)
    begins = np.arange(count)[:, None] * points // resident
    turn = np.argsort((begins + np.arange(points)).ravel(), kind="stable")
    read = grouped.reshape(count * points, block * 4)[turn].ravel()
    return read[read != IDLE]


class Counts(NamedTuple):
    """What became of the reads on the simulated multiprocessors."""

    reads: int
    hits: int
    hits_half: int
    """with half the cache"""


def count(launch: Launch, machine: Machine) -> Counts:
    """Runs the sampled multiprocessors through a launch."""
    row_bytes = launch.look.D * launch.itemsize
    per_line = LINE // row_bytes
    total = [0, 0, 0]
    for programs in machine.programs(launch.count):
        read = stream(launch.rows(programs), row_bytes, machine.resident)
        distances = lru.stack_distances(read // per_line)
        total[0] += len(read)
        for i, share in ((1, 1.0), (2, 0.5)):
            total[i] += int(lru.hits(read, per_line, machine.lines(share), distances).sum())
    return Counts(*total)


def wave_bytes(launch: Launch, machine: Machine) -> int:
    """Bytes of value that a wave in the middle of the launch touches: as many programs as run at once."""
    at_once = machine.gpu.multiprocessors * machine.resident
    begin = launch.count // at_once // 2 * at_once
    rows = np.unique(launch.rows(np.arange(begin, min(begin + at_once, launch.count))))
    return int((rows != IDLE).sum()) * launch.look.D * launch.itemsize
