"""One instruction while it is decoded: the parts of its opcode, and functions that read and write its operands.

Decoding makes a function once, which looks at no text when it runs: it takes the machine's state and the lanes, reads
registers of those lanes, and writes its results there.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ..memory import Array
from ..parse import Fault, Instruction, Kernel
from ..state import Action, Lanes, Read, State, Write
from .floats import TO_NUMBERS, TO_REGISTERS

NUMPY: dict[str, Any] = {"pred": np.bool_, "f32": np.float32, "f64": np.float64, "f16": np.uint16, "bf16": np.uint16}
NUMPY |= {"f16x2": np.uint32, "bf16x2": np.uint32, "f32x2": np.uint64}
NUMPY |= {f"{s}{n}": getattr(np, f"{'int' if s == 's' else 'uint'}{n}") for s in "sub" for n in (8, 16, 32, 64)}
"""the dtype in which registers of a PTX type are held"""
FLOATS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f32x2", "f64"}
_SPECIAL = re.compile(r"^%((?:tid|ntid|ctaid|nctaid)\.[xyz]|laneid|warpid)$")
_ADDRESS = re.compile(r"^\[\s*([^\s+\-\]]+|-?\d+)\s*(?:\+?\s*(-?\s*(?:0x)?[0-9a-fA-F]+))?\s*\]$")


class Unknown(Exception):
    """An instruction, or a form of one, that is not implemented."""


def only(parts: Collection[str], allowed: Collection[str]) -> None:
    """Raises Unknown where an opcode has another part than these."""
    if not set(parts) <= set(allowed):
        raise Unknown


def vector(token: str) -> list[str]:
    """The registers of a vector operand; of another operand that one alone."""
    return [part.strip() for part in token.strip("{} ").split(",")]


class Operation:
    """An instruction of a kernel. `name` is the opcode's first part, `kind` its last, `modifiers` what is between."""

    def __init__(self, kernel: Kernel, instruction: Instruction) -> None:
        self.kernel, self.operands = kernel, instruction.operands
        self.parts = instruction.opcode.split(".")
        self.name, self.modifiers, self.kind = self.parts[0], self.parts[1:-1], self.parts[-1]

    def apply(
        self,
        kinds: list[str],
        function: Callable[..., Any],
        *,
        operands: tuple[str, ...] | None = None,
        result: str | None = None,
        seeded: bool = False,
    ) -> Action:
        """What `function` makes of the numbers of the sources, of these types, goes to the destination, the first of
        the operands. `result` is its type, if not the opcode's last; a `seeded` function gets the seed of errors, too.
        """
        target, *sources = self.operands if operands is None else operands
        if len(sources) != len(kinds):
            raise Unknown
        write = self.writer(target)
        reads = [self.number(token, kind) for token, kind in zip(sources, kinds, strict=True)]
        if seeded:
            reads.append(lambda state, lanes: state.seed)
        rounded = TO_REGISTERS.get(result or self.kind)
        whole = function if rounded is None else lambda *numbers: rounded(function(*numbers))
        if len(reads) == 2:  # most of them
            first, second = reads
            return lambda state, lanes: write(state, lanes, whole(first(state, lanes), second(state, lanes)))
        return lambda state, lanes: write(state, lanes, whole(*[read(state, lanes) for read in reads]))

    def number(self, token: str, kind: str) -> Read:
        """How an operand of this type is read as a number, two packed ones as (lanes, 2)."""
        read, to_number = self.reader(token, kind), TO_NUMBERS.get(kind)
        return read if to_number is None else lambda state, lanes: to_number(read(state, lanes))

    def reader(self, token: str, kind: str) -> Read:
        """How an operand is read, in the dtype in which registers of this type are held."""
        dtype = np.dtype(NUMPY[kind])
        token = token.strip()
        if special := _SPECIAL.match(token):
            return lambda state, lanes: state.of(state.special[special[1]], lanes).astype(dtype)
        number = self.kernel.register(token)
        if number is None:
            constant = _constant(self.kernel, token, dtype)
            return lambda state, lanes: constant
        whole = self.kernel.registers[number] == dtype.itemsize or kind == "pred"
        unsigned = None if whole else np.dtype(f"u{dtype.itemsize}")

        def read(state: State, lanes: Lanes) -> Array:
            values = state.registers[number]
            if values is None or number in state.set_by:
                values = state.register(number, lanes)
            if lanes is not None:
                values = values[lanes]
            return (values if unsigned is None else values.astype(unsigned)).view(dtype)

        return read

    def condition(self, token: str) -> Read:
        """How a predicate is read, negated where a ``!`` stands before it."""
        read = self.reader(token.lstrip("!"), "pred")
        return (lambda state, lanes: ~read(state, lanes)) if token.startswith("!") else read

    def writer(self, token: str) -> Write:
        """How a result is put into a register; one narrower than the register is extended by its own sign."""
        token = token.strip()
        if token == "_":
            return lambda state, lanes, values: None
        number = self.kernel.register(token)
        if number is None:
            raise Fault(f"unknown register {token!r}")
        width = self.kernel.registers[number]
        store = np.dtype(f"u{width}" if width else np.bool_)

        def write(state: State, lanes: Lanes, values: Any) -> None:
            if width and values.dtype.itemsize != width:
                values = values.astype(np.dtype(f"{'i' if values.dtype.kind == 'i' else 'u'}{width}"))
            if lanes is None:
                if values.size != state.lanes:
                    values = np.full(state.lanes, values)
                elif values.base is not None:  # a register's own memory may not be shared: it is written in place
                    values = values.copy()
                state.registers[number] = values.view(store)
                state.set_by.pop(number, None)
                if state.undefined is not None:
                    state.set_by[number] = ~state.undefined
                return
            if state.registers[number] is None:
                state.clear(number)
            state.registers[number][lanes] = values.view(store)  # type: ignore[index]
            if state.undefined is not None:
                state.set_by.setdefault(number, np.ones(state.lanes, np.bool_))[lanes] = ~state.undefined
            elif number in state.set_by:
                state.set_by[number][lanes] = True

        return write

    def columns(self, tokens: list[str], kind: str) -> Callable[[State, Lanes], Array]:
        """How several registers are read side by side: (lanes, registers), contiguous."""
        reads, dtype = [self.reader(token, kind) for token in tokens], NUMPY[kind]

        def read(state: State, lanes: Lanes) -> Array:
            columns = np.empty((state.lanes if lanes is None else len(lanes), len(reads)), dtype)
            for k, one in enumerate(reads):
                columns[:, k] = one(state, lanes)
            return columns

        return read

    def address(self, token: str) -> Read:
        """How an address ``[register + offset]`` is read: (lanes,) uint64."""
        match = _ADDRESS.match(token)
        if match is None:
            raise Fault(f"unknown address {token!r}")
        base, offset = match[1], int((match[2] or "0").replace(" ", ""), 0)
        number = self.kernel.register(base)
        read = self.reader(base, "u32" if number is not None and self.kernel.registers[number] == 4 else "u64")
        plus = np.uint64(offset & (2**64 - 1))

        def address(state: State, lanes: Lanes) -> Array:
            values = state.per_lane(read(state, lanes).astype(np.uint64) + plus, lanes)
            state.require_defined("an address")
            return values

        return address


def _constant(kernel: Kernel, token: str, dtype: np.dtype) -> Any:
    named = {**kernel.shared, "WARP_SZ": 32}
    if token in named:
        return np.array(named[token], dtype)[()]
    if dtype == np.bool_:
        return np.bool_(int(token, 0) != 0)
    if match := re.match(r"^0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})$", token):
        size = len(match[1]) // 2
        bits = np.array(int(match[1], 16), f"u{size}")
        return (bits.view(f"f{size}").astype(dtype) if dtype.kind == "f" else bits.view(dtype))[()]
    try:
        value = int(token.rstrip("U"), 0)
    except ValueError:
        raise Fault(f"unknown operand {token!r}") from None
    return np.array(value & (2 ** (8 * dtype.itemsize) - 1), f"u{dtype.itemsize}").view(dtype)[()]
