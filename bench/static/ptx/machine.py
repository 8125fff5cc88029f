"""Executes a parsed kernel: many programs at once, their threads as one vector.

Threads at the same instruction form a group, and the group at the lowest position runs first, so that the branches of
an if join behind it and threads that have left a loop wait for the others. A barrier stops a program's threads until
all of them have reached it; shuffles and votes stop a warp's lanes until those that they name have.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .counters import Counters
from .instructions.decode import decode
from .memory import Array, LaneError, Memory, check
from .parse import Fault, Kernel
from .state import Lanes, State

THREADS = 8192
"""about how many run as one vector: enough to hide Python, few enough for a core's cache"""

_EVERY = np.uint32(0xFFFFFFFF)
_KINDS = {"bra": "branch", "ret": "end", "exit": "end", "bar": "barrier", "barrier": "barrier"}
"""instructions that change the order of execution, by the first part of their opcode"""


class Program:
    """A kernel with every instruction decoded."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        decoded = [decode(kernel, instruction) for instruction in kernel.instructions]
        self.actions, self.masks = [action for action, _ in decoded], [mask for _, mask in decoded]
        self.guards = [None if i.predicate is None else kernel.register(i.predicate) for i in kernel.instructions]
        self.opcodes = [i.opcode for i in kernel.instructions]
        self.kinds = [
            "plain" if "warp" in opcode else _KINDS.get(opcode.split(".")[0], "plain") for opcode in self.opcodes
        ]
        self.targets = [
            kernel.labels[i.operands[0]] if kind == "branch" else -1
            for kind, i in zip(self.kinds, kernel.instructions, strict=True)
        ]


def execute(
    program: Program,
    grid: Sequence[int],
    block: Sequence[int],
    parameters: Mapping[str, bytes],
    memory: Memory,
    dynamic_shared: int = 0,
    counters: Counters | None = None,
    seed: int | None = None,
) -> None:
    """Run every program of a grid.

    Args:
        program: the decoded kernel.
        grid: programs along x, y and z.
        block: threads of a program along x, y and z.
        parameters: each parameter's bytes, by its name in the PTX.
        memory: what the kernel may touch.
        dynamic_shared: bytes of shared memory that the launch adds.
        counters: where to count; nothing is counted if None.
        seed: of the errors that approximate functions make; they make none if it is None.

    Raises:
        Fault: the kernel does what it may not, or an instruction is unknown.
    """
    kernel = program.kernel
    shape, threads = ((*grid, 1, 1)[:3], (*block, 1, 1)[:3])
    total = math.prod(shape)
    at_once = max(1, THREADS // (-(-math.prod(threads) // 32) * 32))
    shared = -(-kernel.shared_bytes // 16) * 16 + dynamic_shared
    with np.errstate(all="ignore"):
        for first in range(0, total, at_once):
            programs = np.arange(first, min(first + at_once, total))
            state = State(kernel, shape, threads, programs, parameters, memory, shared, counters, seed)
            _Scheduler(program, state).run()


class _Scheduler:
    def __init__(self, program: Program, state: State) -> None:
        self.program, self.state = program, state
        self.runnable: dict[int, Array] = {0: np.flatnonzero(state.alive)}
        self.waiting: dict[int, Array] = {}
        self.counts: dict[int, int] = {}

    def run(self) -> None:
        while self.runnable:
            at = min(self.runnable)
            lanes = self.runnable.pop(at)
            limit = min(self.runnable, default=len(self.program.actions))
            self._run_group(at, lanes, limit)
        if self.waiting:
            at = min(self.waiting)
            text = "waits for lanes of its warp that never come"
            if self.program.kinds[at] == "barrier":
                text = "waits at a barrier that other threads of its program never reach"
            self._fault(at, self.waiting[at], 0, text)
        if self.state.counters is not None:
            for at, count in self.counts.items():
                self.state.counters.opcodes[self.program.opcodes[at]] += count

    def _put(self, at: int, lanes: Array) -> None:
        """Make lanes runnable at an instruction, with those that are there already."""
        for others in (self.runnable.pop(at, None), self.waiting.pop(at, None)):
            if others is not None:
                lanes = np.sort(np.concatenate([lanes, others]))
        self.runnable[at] = lanes

    def _run_group(self, at: int, lanes: Array, limit: int) -> None:
        """Run lanes from `at` on until they diverge, end, wait, or reach an instruction where others are."""
        program, state, counting = self.program, self.state, self.state.counters is not None
        kinds, actions, guards, masks = program.kinds, program.actions, program.guards, program.masks
        every: Lanes = None if len(lanes) == state.lanes else lanes
        warps = state.warps(every) if counting else 0
        while at < limit and at not in self.waiting:
            chosen = every
            state.undefined = None
            try:
                if guards[at] is not None:
                    chosen = self._guarded(at, every)
                kind = kinds[at]
                must_wait = None
                if kind == "barrier" or masks[at] is not None:
                    must_wait = self._must_wait(at, chosen)
                if must_wait is not None:
                    self._hold(at, lanes, lanes if chosen is None else chosen, must_wait)
                    return
                if counting:
                    self.counts[at] = self.counts.get(at, 0) + warps
                if kind in ("plain", "barrier"):
                    if chosen is None or len(chosen):
                        actions[at](state, chosen)
                    at += 1
                    continue
            except LaneError as error:
                self._fault(at, chosen, error.position, str(error))
            count = len(lanes) if chosen is None else len(chosen)
            if kind == "branch" and count == len(lanes):
                at = program.targets[at]
                if at in self.runnable or at > limit:
                    break
            elif count == 0:
                at += 1
            else:
                rest = np.setdiff1d(lanes, lanes if chosen is None else chosen, assume_unique=True)
                if kind == "branch":
                    self._put(program.targets[at], chosen)  # type: ignore[arg-type]
                if len(rest):
                    self._put(at + 1, rest)
                return
        if at < len(actions):
            self._put(at, lanes)

    def _guarded(self, at: int, every: Lanes) -> Lanes:
        """The lanes whose predicate holds; `every` itself if all of them."""
        state, number = self.state, self.program.guards[at]
        values = state.registers[number]  # type: ignore[index]
        if values is None or number in state.set_by:
            values = state.register(number, every)  # type: ignore[arg-type]
            state.require_defined("a condition")
        holds = state.of(values, every) ^ np.bool_(self.program.kernel.instructions[at].negated)
        if holds.all():
            return every
        return np.flatnonzero(holds) if every is None else every[holds]

    def _must_wait(self, at: int, lanes: Lanes) -> NDArray[np.bool_] | None:
        """Which lanes must wait for others of their program or warp, or None if none must."""
        state = self.state
        if self.program.kinds[at] == "barrier":
            if lanes is None or len(lanes) == 0:
                return None
            slots = state.slot[lanes]
            short = np.bincount(slots, minlength=int(slots.max()) + 1)[slots] < state.threads
        else:
            mask = self.program.masks[at](state, lanes)  # type: ignore[misc]
            state.require_defined("a mask of lanes")
            if lanes is None and np.ndim(mask) == 0 and mask == _EVERY:
                return None
            check(mask & state.own_bit(lanes) != 0, lambda lane: "is not one of the lanes that it names")
            short = mask & ~state.members(lanes) != 0
        return short if short.any() else None

    def _hold(self, at: int, lanes: Array, chosen: Array, must_wait: NDArray[np.bool_]) -> None:
        """Keep the lanes that must wait; the others execute the instruction and go on."""
        stays, goes = chosen[must_wait], chosen[~must_wait]
        if len(goes):
            self.program.actions[at](self.state, goes)
        rest = np.setdiff1d(lanes, stays, assume_unique=True)
        if len(rest):
            if self.state.counters is not None:
                self.counts[at] = self.counts.get(at, 0) + self.state.warps(rest)
            self._put(at + 1, rest)
        self.waiting[at] = stays

    def _fault(self, at: int, lanes: Lanes, position: int, text: str) -> None:
        lane = position if lanes is None else int(lanes[position])
        state, instruction = self.state, self.program.kernel.instructions[at]
        place = tuple(int(state.special[f"ctaid.{axis}"][lane]) for axis in "xyz")
        thread = tuple(int(state.special[f"tid.{axis}"][lane]) for axis in "xyz")
        source = f", {instruction.source}" if instruction.source else ""
        who = f"program {place} thread {thread[0] if not any(thread[1:]) else thread}"
        raise Fault(f"{self.program.kernel.name}: {who}, instruction {at} ({instruction.text}{source}): {text}")
