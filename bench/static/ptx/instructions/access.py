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


def _space(op: Operation) -> str:
    """Whether an access is to "shared" or "global" memory; to other memory it is unknown."""
    only(op.modifiers, _HINTS | _SHARED | ({"nc"} if op.name == "ld" else set()))
    if not {*_SHARED, "global"} & {*op.parts}:
        raise Unknown
    return "shared" if _SHARED & {*op.parts} else "global"


def load(op: Operation) -> Action:
    """``ld``, of parameters, shared or global memory."""
    dtype = np.dtype(NUMPY[op.kind])
    writes = [op.writer(name) for name in vector(op.operands[0])]
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
    space, address, size = _space(op), op.address(op.operands[1]), dtype.itemsize * len(writes)

    def act(state: State, lanes: Lanes) -> None:
        columns = state.load(space, address(state, lanes), size, lanes).view(dtype)
        for k, write in enumerate(writes):
            write(state, lanes, columns[:, k].copy())

    return act


def store(op: Operation) -> Action:
    """``st``, to shared or global memory."""
    space, address, read = _space(op), op.address(op.operands[0]), op.columns(vector(op.operands[1]), op.kind)

    def act(state: State, lanes: Lanes) -> None:
        at = address(state, lanes)
        state.store(space, at, read(state, lanes).view(np.uint8), lanes)

    return act


def atomic(op: Operation) -> Action:
    """Reductions; atomics of global memory whose result nobody reads, since their order is not defined, and not kept;
    and additions of integers to shared memory, one lane after the other."""
    if _SHARED & {*op.parts}:
        return _shared_add(op)
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


def _shared_add(op: Operation) -> Action:
    only(op.modifiers, _HINTS | _SHARED | {"add"})
    if op.name != "atom" or op.kind not in ("u32", "s32") or "add" not in op.parts:
        raise Unknown
    write, address, read = op.writer(op.operands[0]), op.address(op.operands[1]), op.reader(op.operands[2], "u32")

    def act(state: State, lanes: Lanes) -> None:
        at, added = address(state, lanes), state.per_lane(read(state, lanes), lanes)
        state.require_defined("what is added")
        write(state, lanes, state.add_to_shared(at, added, lanes))

    return act


def matrix(op: Operation) -> Action:
    """ldmatrix and stmatrix of 8x8 matrices of 16-bit numbers: matrix i's row r at lane 8*i + r's address."""
    loads = op.name == "ldmatrix"
    only(op.parts[1:], {"sync", "aligned", "m8n8", "x1", "x2", "x4", "b16", "trans"} | _SHARED)
    registers, pointer = op.operands if loads else op.operands[::-1]
    names, address = vector(registers), op.address(pointer)
    writes = [op.writer(name) for name in names] if loads else []
    read = None if loads else op.columns(names, "u32")
    rows = 8 * len(names)

    def tiles(values: np.ndarray) -> np.ndarray:
        """(warps, matrices, 8 rows, 8 columns) uint16, transposed on request."""
        found = values.view(np.uint16).reshape(-1, len(names), 8, 8)
        return np.ascontiguousarray(found.swapaxes(2, 3)) if "trans" in op.parts else found

    def act(state: State, lanes: Lanes) -> None:
        every = np.arange(state.lanes) if lanes is None else lanes
        if len(every) % 32:
            raise LaneError(0, "not every lane of a warp takes part")
        holders, at = (x.reshape(-1, 32)[:, :rows].reshape(-1) for x in (every, address(state, lanes)))
        if read is not None:
            words = np.ascontiguousarray(read(state, lanes).reshape(-1, 32, len(names)).swapaxes(1, 2))
            state.undefined = None  # a matrix that nobody reads may have been made of it
            state.store("shared", at, tiles(words).view(np.uint8).reshape(-1, 16), holders)
            return
        words = tiles(state.load("shared", at, 16, holders)).view(np.uint32).reshape(-1, len(names), 32)
        for k, write in enumerate(writes):
            write(state, lanes, words[:, k].reshape(-1).copy())

    return act
