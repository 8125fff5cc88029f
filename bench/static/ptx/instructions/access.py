"""Loads, stores and reductions of memory, and of 8x8 matrices in shared memory."""

import re

import numpy as np

from ..memory import LaneError
from ..state import Action, Lanes, State
from .operation import NUMPY, Operation, Unknown, only, vector

_HINTS = {"relaxed", "gpu", "sys", "cta", "acquire", "release", "acq_rel", "weak", "volatile", "ca", "cg", "cs", "lu"}
_HINTS |= {"cv", "wb", "wt", "v2", "v4", "v8", "global", "L2::64B", "L2::128B", "L2::256B"}
_HINTS |= {f"L1::{when}" for when in ("evict_last", "evict_first", "evict_normal", "evict_unchanged", "no_allocate")}
"""what may stand in the opcode of an access to global memory, and changes nothing here"""
_SHARED = {"shared", "shared::cta"}
UPDATES = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
UPDATES |= {"xor": np.bitwise_xor}
"""functions of two numbers, by PTX's names, by which memory is updated and warps are reduced"""


def _is_shared(op: Operation) -> bool:
    """Whether an access is to shared memory; to other than shared and global memory it is unknown."""
    if not {*_SHARED, "global"} & {*op.parts}:
        raise Unknown
    return bool(_SHARED & {*op.parts})


def load(op: Operation) -> Action:
    """``ld``, of parameters, shared or global memory."""
    dtype = np.dtype(NUMPY[op.kind])
    names = vector(op.operands[0])
    writes = [op.writer(name) for name in names]
    if op.parts[1] == "param":
        match = re.match(r"^\[\s*(\w+)\s*(?:\+\s*(\d+))?\s*\]$", op.operands[1])
        if match is None or match[1] not in op.kernel.parameters:
            raise Unknown
        name, offset = match[1], int(match[2] or 0)

        def act_parameter(state: State, lanes: Lanes) -> None:
            values = np.frombuffer(state.parameters[name], dtype, len(writes), offset)
            for write, value in zip(writes, values, strict=True):
                write(state, lanes, value)

        return act_parameter
    only(op.modifiers, _HINTS | _SHARED | {"nc"})
    shared, address, size = _is_shared(op), op.address(op.operands[1]), dtype.itemsize * len(names)

    def act(state: State, lanes: Lanes) -> None:
        at = address(state, lanes)
        if shared:
            raw = state.shared.load(at, size, state.of(state.slot, lanes))
            state.count("shared load", at, size, lanes)
        else:
            raw = state.memory.load(at, size, state.of(state.program, lanes))
            state.count("global load", at, size, lanes)
        columns = raw.view(dtype)
        for k, write in enumerate(writes):
            write(state, lanes, columns[:, k].copy())

    return act


def store(op: Operation) -> Action:
    """``st``, to shared or global memory."""
    only(op.modifiers, _HINTS | _SHARED)
    shared, address, read = _is_shared(op), op.address(op.operands[0]), op.columns(vector(op.operands[1]), op.kind)

    def act(state: State, lanes: Lanes) -> None:
        at = address(state, lanes)
        raw = read(state, lanes).view(np.uint8)
        if shared:
            state.shared.store(at, raw, state.of(state.slot, lanes), state.undefined)
            state.count("shared store", at, raw.shape[1], lanes)
        else:
            state.require_defined("what is stored")
            state.memory.store(at, raw, state.of(state.program, lanes))
            state.count("global store", at, raw.shape[1], lanes)

    return act


def atomic(op: Operation) -> Action:
    """Reductions, and atomics whose result nobody reads: that order is not defined, and not kept."""
    only(op.modifiers, _HINTS | set(UPDATES) | {"noftz"})
    operation: np.ufunc | None = next((UPDATES[part] for part in op.parts if part in UPDATES), None)
    targets = vector(op.operands[0]) if op.name == "atom" else []
    if operation is None or "global" not in op.parts or op.kernel.read_registers & {*targets}:
        raise Unknown
    read, address = op.columns(vector(op.operands[-1]), op.kind), op.address(op.operands[-2])
    dtype = {"f16": np.float16, "bf16": np.uint16}.get(op.kind.removesuffix("x2"), NUMPY[op.kind])
    if op.kind.startswith("bf16"):
        operation = None

    def act(state: State, lanes: Lanes) -> None:
        at = address(state, lanes)
        columns = read(state, lanes).view(dtype)
        state.require_defined("what is added")
        state.memory.update(at, columns, operation)
        state.count("reduction", at, columns.itemsize * columns.shape[1], lanes)

    return act


def matrix(op: Operation) -> Action:
    """ldmatrix and stmatrix of 8x8 matrices of 16-bit numbers: matrix i's row r at lane 8*i + r's address."""
    loads = op.name == "ldmatrix"
    only(op.parts[1:], {"sync", "aligned", "m8n8", "x1", "x2", "x4", "b16", "trans"} | _SHARED)
    registers, pointer = op.operands if loads else op.operands[::-1]
    names, address = vector(registers), op.address(pointer)
    writes = [op.writer(name) for name in names] if loads else []
    read = None if loads else op.columns(names, "u32")
    transposed = "trans" in op.parts
    rows = 8 * len(names)

    def act(state: State, lanes: Lanes) -> None:
        every = np.arange(state.lanes) if lanes is None else lanes
        if len(every) % 32:
            raise LaneError(0, "not every lane of a warp takes part")
        holders = every.reshape(-1, 32)[:, :rows].reshape(-1)
        at = address(state, lanes).reshape(-1, 32)[:, :rows].reshape(-1)
        if read is not None:
            words = np.ascontiguousarray(read(state, lanes).reshape(-1, 32, len(names)).swapaxes(1, 2))
            tiles = _tiles(words, len(names), transposed)
            state.shared.store(at, tiles.view(np.uint8).reshape(-1, 16), state.slot[holders])
            state.count("shared store", at, 16, holders)
            return
        tiles = _tiles(state.shared.load(at, 16, state.slot[holders]), len(names), transposed)
        state.count("shared load", at, 16, holders)
        words = tiles.view(np.uint32).reshape(-1, len(names), 32)
        for k, write in enumerate(writes):
            write(state, lanes, words[:, k].reshape(-1).copy())

    return act


def _tiles(values: np.ndarray, matrices: int, transposed: bool) -> np.ndarray:
    """(warps, matrices, 8 rows, 8 columns) uint16, transposed on request."""
    tiles = values.view(np.uint16).reshape(-1, matrices, 8, 8)
    return np.ascontiguousarray(tiles.swapaxes(2, 3)) if transposed else tiles
