"""Arithmetic: a table of functions for integers and predicates, and one for floating-point numbers.

Of floating-point numbers it is IEEE's, as PTX says, with two exceptions: a fused multiply-add rounds once where float64
holds the exact product (float32, and shorter: all but one result in 2**28), but twice in float64; and functions that
PTX calls approximate are exact unless the state has a seed of errors, which then move each result by up to the
documented number of last places.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..memory import check
from ..state import Action
from .floats import ULPS, flush, perturb, saturate
from .operation import FLOATS, Operation, Unknown, only

_WIDE = {np.dtype(f"{sign}{size}"): np.dtype(f"{sign}{2 * size}") for sign in "iu" for size in (1, 2, 4)}


def _wide(x: Any) -> Any:
    return x.astype(_WIDE[x.dtype])


def _high(x: Any, y: Any) -> Any:
    """The upper half of a product of integers."""
    if x.dtype.itemsize < 8:
        return ((_wide(x) * _wide(y)) >> _WIDE[x.dtype].type(8 * x.dtype.itemsize)).astype(x.dtype)
    return np.asarray(np.multiply(x, y, dtype=object) >> 64).astype(x.dtype)


def _remainder(x: Any, y: Any) -> Any:
    x, y = np.broadcast_arrays(np.atleast_1d(x), y)
    check(y != 0, lambda lane: "divides an integer by zero")
    return np.fmod(x, y)


def _shift_left(x: Any, n: Any) -> Any:
    bits = 8 * x.dtype.itemsize
    return np.where(n < bits, x << np.minimum(n, bits - 1).astype(x.dtype), x.dtype.type(0))


def _shift_right(x: Any, n: Any) -> Any:
    bits = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(n, bits - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(n < bits, shifted, x.dtype.type(0))


def _extract(x: Any, start: Any, count: Any) -> Any:
    """Bit field: `count` bits from `start` on, extended by the highest where x is signed."""
    start, count, bits = start & np.uint32(255), count & np.uint32(255), np.uint32(8 * x.dtype.itemsize)
    above = bits - np.minimum(start + count, bits)
    return np.where(count == 0, x.dtype.type(0), _shift_right(_shift_left(x, above), above + start))


def _insert(a: Any, b: Any, start: Any, count: Any) -> Any:
    one = np.ones_like(b)
    mask = _shift_left(_shift_left(one, count) - one, start)
    return (_shift_left(a, start) & mask) | (b & ~mask)


def _joined(low: Any, high: Any) -> Any:
    return (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)


def _permute(x: Any, y: Any, selector: Any) -> Any:
    both: Any = _joined(x, y)
    result: Any = np.uint32(0)
    for k in range(4):
        chosen = (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = (both >> ((chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result = result | (np.where(chosen & np.uint32(8), sign, byte).astype(np.uint32) << np.uint32(8 * k))
    return result


def _funnel_shift(right: bool, wraps: bool) -> Callable[[Any, Any, Any], Any]:
    """A shift of two registers as one of 64 bits."""

    def function(low: Any, high: Any, n: Any) -> Any:
        n = (n & np.uint32(31) if wraps else np.minimum(n, 32)).astype(np.uint64)
        both = _joined(low, high)
        return (both >> n if right else (both << n) >> np.uint64(32)).astype(np.uint32)

    return function


def _by_table(a: Any, b: Any, c: Any, table: Any) -> Any:
    """A bitwise function of three numbers, given by its truth table."""
    result: Any = np.uint32(0)
    for k in range(8):
        if table >> k & 1:
            result = result | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
    return result


def _bits_of(x: Any) -> Any:
    """(lanes, bits), the lowest first."""
    x = np.atleast_1d(x)
    return np.unpackbits(x.view(np.uint8).reshape(len(x), -1), axis=1, bitorder="little")


# types of the sources, "x" for the opcode's own, "u" for the same without a sign, "w" for twice as wide; and what is
# computed
_INTEGERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "add": ("x x", np.add),
    "sub": ("x x", np.subtract),
    "mul.lo": ("x x", np.multiply),
    "mul.hi": ("x x", _high),
    "mul.wide": ("x x", lambda x, y: _wide(x) * _wide(y)),
    "mad.lo": ("x x x", lambda x, y, z: x * y + z),
    "mad.hi": ("x x x", lambda x, y, z: _high(x, y) + z),
    "mad.wide": ("x x w", lambda x, y, z: x.astype(z.dtype) * y.astype(z.dtype) + z),
    "div": ("x x", lambda x, y: (x - _remainder(x, y)) // y),  # towards zero
    "rem": ("x x", _remainder),
    "min": ("x x", np.minimum),
    "max": ("x x", np.maximum),
    "neg": ("x", np.negative),
    "abs": ("x", np.abs),
    "and": ("x x", np.bitwise_and),
    "or": ("x x", np.bitwise_or),
    "xor": ("x x", np.bitwise_xor),
    "not": ("x", np.invert),
    "cnot": ("x", lambda x: (x == 0).astype(x.dtype)),
    "shl": ("u u32", _shift_left),
    "shr": ("x u32", _shift_right),
    "bfe": ("x u32 u32", _extract),
    "bfi": ("u u u32 u32", _insert),
    "prmt": ("u32 u32 u32", _permute),
    "popc": ("u", lambda x: _bits_of(x).sum(1).astype(np.uint32)),
    "clz": ("u", lambda x: (np.cumsum(_bits_of(x)[:, ::-1], axis=1) == 0).sum(1).astype(np.uint32)),
    "brev": ("u", lambda x: np.packbits(_bits_of(x)[:, ::-1], 1, bitorder="little").view(x.dtype).reshape(-1)),
    "lop3": ("u32 u32 u32 u32", _by_table),
    "cvta.to.global": ("x", lambda x: x),  # here every space has the addresses of this process
    "cvta": ("x", lambda x: x),
    **{f"shf.{d}.{m}": ("u32 u32 u32", _funnel_shift(d == "r", m == "wrap")) for d in "lr" for m in ("wrap", "clamp")},
}


def _multiply_add(x: Any, y: Any, z: Any) -> Any:
    return x.astype(np.float64) * y.astype(np.float64) + z.astype(np.float64)


def _through_float64(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


# of how many numbers, and what is computed
_FLOATS: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul": (2, np.multiply),
    "div": (2, np.divide),
    "fma": (3, _multiply_add),
    "mad": (3, _multiply_add),
    "min": (2, np.fmin),
    "max": (2, np.fmax),
    "min.NaN": (2, np.minimum),
    "max.NaN": (2, np.maximum),
    "neg": (1, np.negative),
    "abs": (1, np.abs),
    "rcp": (1, lambda x: np.divide(x.dtype.type(1), x)),
    "sqrt": (1, np.sqrt),
    "rsqrt": (1, lambda x: np.divide(x.dtype.type(1), np.sqrt(x))),
    "ex2": (1, _through_float64(np.exp2)),
    "lg2": (1, _through_float64(np.log2)),
    "sin": (1, _through_float64(np.sin)),
    "cos": (1, _through_float64(np.cos)),
    "tanh": (1, _through_float64(np.tanh)),
    "copysign": (2, lambda x, y: np.copysign(y, x)),
}
NAMES = {name.split(".")[0] for name in (*_INTEGERS, *_FLOATS)}


def arithmetic(op: Operation) -> Action:
    """``add``, ``mad.wide``, ``shl``, ``fma``, ``ex2`` and the others of the tables."""
    if op.kind in FLOATS:
        return _of_floats(op)
    forms, function = _INTEGERS[".".join(op.parts[:-1])]
    operands = op.operands
    if op.name == "prmt" and operands[3].rstrip("U").startswith("0x"):
        # an operand of which no byte is taken may be a register that nothing sets
        taken = {int(digit, 16) & 7 for digit in operands[3].rstrip("U")[2:].zfill(4)}
        x = operands[1] if taken & {0, 1, 2, 3} else "0"
        y = operands[2] if taken & {4, 5, 6, 7} else "0"
        operands = (operands[0], x, y, operands[3])
    return op.apply([_kind(form, op.kind) for form in forms.split()], function, operands=operands)


def _kind(form: str, own: str) -> str:
    if form == "w":
        return f"{own[0]}{2 * int(own[1:])}"
    return {"x": own, "u": f"u{own[1:]}"}.get(form, form)


def _of_floats(op: Operation) -> Action:
    name, kind, modifiers = op.name, op.kind, op.modifiers
    count, function = _FLOATS[f"{name}.NaN" if "NaN" in modifiers else name]
    kinds, result = [kind] * count, kind
    if name in ("add", "sub", "fma") and "f32" in modifiers:  # 16-bit numbers and a last one of float32, from sm_100 on
        only(modifiers, {"rn", "f32"})
        kinds[-1] = result = "f32"
    else:
        only(modifiers, {"rn", "ftz", "noftz", "approx", "full", "NaN", "sat"})
    if function is _multiply_add and result == "f32":
        function = lambda x, y, z: _multiply_add(x, y, z).astype(np.float32)  # noqa: E731
    if name in ("min", "max") and kind == "f32" and len(op.operands) == 4:  # of three numbers, from sm_100 on
        of_two, kinds = function, [kind] * 3
        function = lambda x, y, z: of_two(of_two(x, y), z)  # noqa: E731
    flushes, saturates = "ftz" in modifiers and kind == "f32", "sat" in modifiers
    error = next((f"{name}.{m}" for m in ("approx", "full") if m in modifiers), None)
    if error is not None and (error not in ULPS or kind != "f32"):
        raise Unknown
    if not (flushes or saturates or error):
        return op.apply(kinds, function, result=result)

    def adjusted(*arguments: Any) -> Any:
        *values, seed = arguments
        number = function(*(map(flush, values) if flushes else values))
        if error is not None and seed is not None:
            number = perturb(number, error, seed)
        if saturates:
            number = saturate(number)
        return flush(number) if flushes else number

    return op.apply(kinds, adjusted, result=result, seeded=True)
