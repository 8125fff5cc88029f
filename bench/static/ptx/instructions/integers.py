"""Arithmetic of integers and predicates, shifts and bit fields."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..memory import check
from ..state import Action
from .operation import NUMPY, Operation, Unknown, only


def _high(x: Any, y: Any) -> Any:
    """The upper half of a product of integers."""
    if x.dtype.itemsize < 8:
        wide = np.dtype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")
        return ((x.astype(wide) * y.astype(wide)) >> wide.type(8 * x.dtype.itemsize)).astype(x.dtype)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b = np.asarray(x).view(np.uint64), np.asarray(y).view(np.uint64)
    low, middle, other = (a & mask) * (b & mask), (a >> half) * (b & mask), (a & mask) * (b >> half)
    carry = (low >> half) + (middle & mask) + (other & mask)
    high = (a >> half) * (b >> half) + (middle >> half) + (other >> half) + (carry >> half)
    if x.dtype.kind == "i":
        high = high - np.where(x < 0, b, np.uint64(0)) - np.where(y < 0, a, np.uint64(0))
    return high.view(x.dtype)


def _remainder(x: Any, y: Any) -> Any:
    x, y = np.broadcast_arrays(np.atleast_1d(x), y)
    check(y != 0, lambda lane: "divides an integer by zero")
    return np.fmod(x, y)


def _quotient(x: Any, y: Any) -> Any:
    remainder = _remainder(x, y)
    return (x - remainder) // y  # towards zero


def _shift_left(x: Any, n: Any) -> Any:
    bits = 8 * x.dtype.itemsize
    return np.where(n < bits, x << np.minimum(n, bits - 1).astype(x.dtype), x.dtype.type(0))


def _shift_right(x: Any, n: Any) -> Any:
    bits = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(n, bits - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(n < bits, shifted, x.dtype.type(0))


def _low_ones(count: Any, dtype: Any) -> Any:
    """Numbers whose lowest `count` bits are ones."""
    return (_shift_left(np.ones_like(count, dtype), count) - dtype(1)).astype(dtype)


def _extract(x: Any, start: Any, count: Any) -> Any:
    """Bit field: `count` bits from `start` on, extended by the highest where x is signed."""
    bits = 8 * x.dtype.itemsize
    start, count = start & np.uint32(255), count & np.uint32(255)
    unsigned = np.asarray(x).view(f"u{x.dtype.itemsize}")
    dtype = unsigned.dtype.type
    ones = _low_ones(count, dtype)
    field = _shift_right(unsigned, start) & ones
    if x.dtype.kind == "u":
        return field
    top = np.minimum(start + count - np.uint32(1), bits - 1)
    negative = (_shift_right(unsigned, top) & dtype(1) != 0) & (count != 0)
    return np.where(negative, field | ~ones, field).view(x.dtype)


def _insert(a: Any, b: Any, start: Any, count: Any) -> Any:
    mask = _shift_left(_low_ones(count, b.dtype.type), start)
    return (_shift_left(a, start) & mask) | (b & ~mask)


def _permute(x: Any, y: Any, selector: Any) -> Any:
    both = (y.astype(np.uint64) << np.uint64(32)) | x.astype(np.uint64)
    result: Any = np.uint32(0)
    for k in range(4):
        chosen = (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = (both >> ((chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        byte = np.where(chosen & np.uint32(8), sign, byte).astype(np.uint32)
        result = result | (byte << np.uint32(8 * k))
    return result


def _bits_of(x: Any) -> Any:
    """(lanes, bits), the lowest first."""
    x = np.atleast_1d(x)
    return np.unpackbits(x.view(np.uint8).reshape(len(x), -1), axis=1, bitorder="little")


def _reverse(x: Any) -> Any:
    return np.packbits(_bits_of(x)[:, ::-1], axis=1, bitorder="little").view(x.dtype).reshape(-1)


_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul.lo": (2, np.multiply),
    "mul.hi": (2, _high),
    "mad.lo": (3, lambda x, y, z: x * y + z),
    "mad.hi": (3, lambda x, y, z: _high(x, y) + z),
    "div": (2, _quotient),
    "rem": (2, _remainder),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "neg": (1, np.negative),
    "abs": (1, np.abs),
    "and": (2, np.bitwise_and),
    "or": (2, np.bitwise_or),
    "xor": (2, np.bitwise_xor),
    "not": (1, np.invert),
    "cnot": (1, lambda x: (x == 0).astype(x.dtype)),
}
NAMES = {name.split(".")[0] for name in _FUNCTIONS}
PREDICATES: dict[str, tuple[int, Callable[..., Any]]] = {
    "and": (2, np.logical_and),
    "or": (2, np.logical_or),
    "xor": (2, np.logical_xor),
    "not": (1, np.logical_not),
}


def arithmetic(op: Operation) -> Action:
    """``add``, ``mul.lo``, ``mad.wide``, ``and`` and the others, of integers or predicates."""
    kind = op.kind
    if kind == "pred":
        count, function = PREDICATES[op.name]
        return op.apply(["pred"] * count, function)
    if "wide" not in op.modifiers:
        count, function = _FUNCTIONS[".".join([op.name, *op.modifiers])]
        return op.apply([kind] * count, function)
    only(op.modifiers, {"wide"})
    twice = f"{kind[0]}{2 * int(kind[1:])}"
    wide = NUMPY[twice]
    if op.name == "mul":
        return op.apply([kind] * 2, lambda x, y: x.astype(wide) * y.astype(wide))
    if op.name != "mad":
        raise Unknown
    return op.apply([kind, kind, twice], lambda x, y, z: x.astype(wide) * y.astype(wide) + z)


# by name: the types of the sources, "x" for the opcode's own and "u" for the same without a sign
_BITS: dict[str, tuple[str, Callable[..., Any]]] = {
    "shl": ("u u32", _shift_left),
    "shr": ("x u32", _shift_right),
    "bfe": ("x u32 u32", _extract),
    "bfi": ("u u u32 u32", _insert),
    "prmt": ("u32 u32 u32", _permute),
    "popc": ("u", lambda x: _bits_of(x).sum(1).astype(np.uint32)),
    "clz": ("u", lambda x: (np.cumsum(_bits_of(x)[:, ::-1], axis=1) == 0).sum(1).astype(np.uint32)),
    "brev": ("u", _reverse),
}


def bits(op: Operation) -> Action:
    """Shifts and bit fields, whose operands have types of their own."""
    if len(op.parts) != 2:
        raise Unknown
    forms, function = _BITS[op.name]
    kinds = [{"x": op.kind, "u": f"u{op.kind[1:]}"}.get(form, form) for form in forms.split()]
    operands = op.operands
    if op.name == "prmt" and operands[3].rstrip("U").startswith("0x"):
        # an operand of which no byte is taken may be a register that nothing sets
        taken = {int(digit, 16) & 7 for digit in operands[3].rstrip("U")[2:].zfill(4)}
        x = operands[1] if taken & {0, 1, 2, 3} else "0"
        y = operands[2] if taken & {4, 5, 6, 7} else "0"
        operands = (operands[0], x, y, operands[3])
    return op.apply(kinds, function, operands)


def funnel_shift(op: Operation) -> Action:
    """``shf``: a shift of two registers as one of 64 bits."""
    direction, mode = op.parts[1], op.parts[2]
    only([direction, mode], {"l", "r", "wrap", "clamp"})

    def function(low: Any, high: Any, n: Any) -> Any:
        n = (n & np.uint32(31) if mode == "wrap" else np.minimum(n, 32)).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        return (both >> n if direction == "r" else (both << n) >> np.uint64(32)).astype(np.uint32)

    return op.apply(["u32"] * 3, function)


def logic_table(op: Operation) -> Action:
    """``lop3``: a bitwise function of three numbers, given by its truth table."""
    table = int(op.operands[4], 0)

    def function(a: Any, b: Any, c: Any) -> Any:
        result: Any = np.uint32(0)
        for k in range(8):
            if table >> k & 1:
                result = result | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
        return result

    return op.apply(["u32"] * 3, function, op.operands[:4])
