"""What each PTX instruction does, as a numpy function on the lanes that execute it.

`decode` turns an instruction into a closure once; running it looks at no text. A closure takes the machine's state and
the lanes (an index array, or None for all), reads registers of those lanes, and writes its results there.

Arithmetic is IEEE's, as PTX says, with two exceptions: a fused multiply-add rounds once where float64 holds the exact
product (float32, and shorter: all but one result in 2**28), but twice in float64; and functions that PTX calls
approximate are exact unless the state has a seed of errors, which then move each result by up to the documented
number of last places.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .memory import Array, Problem
from .parse import Fault, Instruction, Kernel

if TYPE_CHECKING:
    from .machine import State

Lanes = Array | None
Run = Callable[["State", Lanes], None]
Read = Callable[["State", Lanes], Any]

_NUMPY: dict[str, Any] = {"pred": np.bool_, "f32": np.float32, "f64": np.float64, "f16": np.uint16, "bf16": np.uint16}
_NUMPY |= {"f16x2": np.uint32, "bf16x2": np.uint32, "f32x2": np.uint64}
_NUMPY |= {f"{s}{n}": getattr(np, f"{'int' if s == 's' else 'uint'}{n}") for s in "sub" for n in (8, 16, 32, 64)}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_FLOATS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f32x2", "f64"}
_SPECIAL = re.compile(r"^%(tid|ntid|ctaid|nctaid)\.([xyz])$|^%(laneid|warpid)$")

# the error that the PTX manual documents, in units of the last place; of sin and cos in 2**-21
_ULPS = {"ex2.approx": 2, "rcp.approx": 1, "div.full": 2, "div.approx": 2, "sqrt.approx": 1, "rsqrt.approx": 2}
_ULPS |= {"lg2.approx": 2, "sin.approx": 2, "cos.approx": 2, "tanh.approx": 8192}


# --- operands -------------------------------------------------------------------------------------------------------


def _reader(kernel: Kernel, token: str, kind: str) -> Read:
    """How an operand is read as a number of this type: (lanes,) from a register, a numpy scalar from a constant."""
    dtype = np.dtype(_NUMPY[kind])
    token = token.strip()
    if (special := _SPECIAL.match(token)) is not None:
        name = token[1:]
        del special

        def read_special(state: "State", lanes: Lanes) -> Array:
            values = state.special[name]
            return (values if lanes is None else values[lanes]).astype(dtype)

        return read_special
    number = kernel.register(token)
    if number is None:
        constant = _constant(kernel, token, dtype)
        return lambda state, lanes: constant
    width = kernel.registers[number]
    if width == dtype.itemsize or kind == "pred":

        def read(state: "State", lanes: Lanes) -> Array:
            values = state.registers[number]
            if values is None or number in state.holes:
                values = state.checked(number, lanes)
            return values.view(dtype) if lanes is None else values[lanes].view(dtype)

        return read
    unsigned = _UNSIGNED[dtype.itemsize]

    def read_part(state: "State", lanes: Lanes) -> Array:
        values = state.registers[number]
        if values is None or number in state.holes:
            values = state.checked(number, lanes)
        return (values if lanes is None else values[lanes]).astype(unsigned).view(dtype)

    return read_part


def _constant(kernel: Kernel, token: str, dtype: np.dtype) -> Any:
    if token in kernel.shared:
        return np.array(kernel.shared[token], dtype)[()]
    if token in ("WARP_SZ",):
        return np.array(32, dtype)[()]
    if dtype == np.bool_:
        return np.bool_(int(token, 0) != 0)
    if match := re.match(r"^0[fF]([0-9a-fA-F]{8})$", token):
        bits = np.array(int(match[1], 16), np.uint32)
        return (bits.view(np.float32).astype(dtype) if dtype == np.float64 else bits.view(dtype))[()]
    if match := re.match(r"^0[dD]([0-9a-fA-F]{16})$", token):
        bits = np.array(int(match[1], 16), np.uint64)
        return (bits.view(np.float64).astype(dtype) if dtype == np.float32 else bits.view(dtype))[()]
    try:
        value = int(token.rstrip("U"), 0)
    except ValueError:
        raise Fault(f"unknown operand {token!r}") from None
    unsigned = _UNSIGNED[dtype.itemsize]
    return np.array(value & (2 ** (8 * dtype.itemsize) - 1), unsigned).view(dtype)[()]


def _writer(kernel: Kernel, token: str) -> Callable[["State", Lanes, Any], None]:
    """How a result is put into a register; one narrower than the register is extended by its own sign."""
    token = token.strip()
    if token == "_":
        return lambda state, lanes, values: None
    number = kernel.register(token)
    if number is None:
        raise Fault(f"unknown register {token!r}")
    width = kernel.registers[number]
    store = np.dtype(_UNSIGNED[width] if width else np.bool_)

    def write(state: "State", lanes: Lanes, values: Any) -> None:
        if width and values.dtype.itemsize != width:
            values = values.astype(np.dtype(f"{'i' if values.dtype.kind == 'i' else 'u'}{width}"))
        if lanes is None:
            if values.ndim == 0:
                values = np.full(state.lanes, values)
            elif values.base is not None:  # a register's own memory may not be shared: it is written in place
                values = values.copy()
            state.registers[number] = values.view(store)
            if state.undefined is None:
                state.holes.pop(number, None)
            else:
                state.holes[number] = ~state.undefined
            return
        register = state.registers[number]
        if register is None:
            register = state.registers[number] = np.zeros(state.lanes, store)
            state.holes[number] = np.zeros(state.lanes, np.bool_)
        register[lanes] = values.view(store)
        if state.undefined is not None:
            state.holes.setdefault(number, np.ones(state.lanes, np.bool_))[lanes] = ~state.undefined
        elif number in state.holes:
            state.holes[number][lanes] = True

    return write


def _vector(token: str) -> list[str]:
    return [part.strip() for part in token.strip("{} ").split(",")]


def _address(kernel: Kernel, token: str) -> Read:
    match = re.match(r"^\[\s*([^\s+\-\]]+|-?\d+)\s*(?:\+?\s*(-?\s*(?:0x)?[0-9a-fA-F]+))?\s*\]$", token)
    if match is None:
        raise Fault(f"unknown address {token!r}")
    base, offset = match[1], int((match[2] or "0").replace(" ", ""), 0)
    number = kernel.register(base)
    kind = "u32" if number is not None and kernel.registers[number] == 4 else "u64"
    read = _reader(kernel, base, kind)
    plus = np.uint64(offset & (2**64 - 1))

    def address(state: "State", lanes: Lanes) -> Array:
        values = read(state, lanes).astype(np.uint64) + plus
        state.require_defined("an address")
        if values.ndim == 0:
            values = np.full(state.lanes if lanes is None else len(lanes), values)
        return values

    return address


# --- numbers --------------------------------------------------------------------------------------------------------


def _to_odd(x: Array) -> Array:
    """float64 as float32 rounded to odd, from where a second rounding gives what one would have given."""
    near = x.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.int32).copy()
    even = (bits & 1 == 0) & (back != x) & np.isfinite(x) & np.isfinite(near)
    toward = np.where(np.abs(x) > np.abs(back), 1, -1).astype(np.int32)
    return np.where(even, bits + toward, bits).view(np.float32)


def _to_bfloat16(x: Array) -> Array:
    x = np.asarray(_to_odd(np.atleast_1d(x)) if x.dtype == np.float64 else x)
    bits = np.atleast_1d(x).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _lift(kind: str, x: Any) -> Any:
    """Registers as the numbers that they hold; two packed ones as (lanes, 2)."""
    if kind == "f32x2":
        return np.atleast_1d(x).view(np.float32).reshape(-1, 2)
    if kind.endswith("x2"):
        x = np.atleast_1d(x).view(np.uint16).reshape(-1, 2)
    if kind.startswith("f16"):
        return x.view(np.float16).astype(np.float32)
    if kind.startswith("bf16"):
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x


def _lower(kind: str, x: Any) -> Any:
    """Numbers as registers hold them, rounded once to nearest even."""
    if kind == "f32":
        return x.astype(np.float32) if x.dtype != np.float32 else x
    if kind == "f32x2":
        return np.ascontiguousarray(x, np.float32).view(np.uint64).reshape(-1)
    if kind.startswith("f16"):
        bits = np.atleast_1d(x).astype(np.float16).view(np.uint16)
    elif kind.startswith("bf16"):
        bits = _to_bfloat16(np.atleast_1d(x))
    else:
        return x
    return np.ascontiguousarray(bits).view(np.uint32).reshape(-1) if kind.endswith("x2") else bits


def _flush(x: Array) -> Array:
    """Subnormal float32 numbers to zero, with their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def _perturb(x: Array, name: str, seed: int) -> Array:
    """Move float32 results by up to the documented error; equal results move equally, as a device's do."""
    most = _ULPS[name]
    x = np.atleast_1d(x)
    hashed = (x.view(np.uint32) ^ np.uint32(seed)) * np.uint32(2654435761)
    steps = (hashed >> np.uint32(8)).astype(np.int32) % (2 * most + 1) - most
    if name in ("sin.approx", "cos.approx"):
        return (x + steps * np.float32(2.0**-21)).astype(np.float32)
    moved = (x.view(np.int32) + steps).view(np.float32)
    usual = np.isfinite(x) & np.isfinite(moved) & (np.abs(x) > 1e-36)
    return np.where(usual, moved, x)


def _multiply_add(x: Any, y: Any, z: Any) -> Any:
    return x.astype(np.float64) * y.astype(np.float64) + z.astype(np.float64)


_FLOAT_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
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
    "ex2": (1, lambda x: np.exp2(x.astype(np.float64)).astype(x.dtype)),
    "lg2": (1, lambda x: np.log2(x.astype(np.float64)).astype(x.dtype)),
    "sin": (1, lambda x: np.sin(x.astype(np.float64)).astype(x.dtype)),
    "cos": (1, lambda x: np.cos(x.astype(np.float64)).astype(x.dtype)),
    "tanh": (1, lambda x: np.tanh(x.astype(np.float64)).astype(x.dtype)),
    "copysign": (2, lambda x, y: np.copysign(y, x)),
}


def _of_three(of_two: Callable[..., Any], x: Any, y: Any, z: Any) -> Any:
    return of_two(of_two(x, y), z)


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


def _quotient(x: Any, y: Any, remainder: bool) -> Any:
    x, y = np.broadcast_arrays(np.atleast_1d(x), y)
    if (y == 0).any():
        raise Problem(int(np.flatnonzero(y == 0)[0]), "divides an integer by zero")
    if remainder:
        return np.fmod(x, y)
    quotient = x // y
    if x.dtype.kind == "i":  # towards zero
        quotient += ((x % y != 0) & ((x < 0) != (y < 0))).astype(x.dtype)
    return quotient


def _shift_left(x: Any, n: Any) -> Any:
    bits = 8 * x.dtype.itemsize
    return np.where(n < bits, x << np.minimum(n, bits - 1).astype(x.dtype), x.dtype.type(0))


def _shift_right(x: Any, n: Any) -> Any:
    bits = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(n, bits - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(n < bits, shifted, x.dtype.type(0))


def _extract(x: Any, start: Any, count: Any) -> Any:
    """Bit field: `count` bits from `start` on, extended by the highest where x is signed."""
    bits = 8 * x.dtype.itemsize
    start, count = start & np.uint32(255), count & np.uint32(255)
    unsigned = np.asarray(x).view(f"u{x.dtype.itemsize}")
    dtype = unsigned.dtype.type
    kept = np.minimum(count, bits)
    field = _shift_right(unsigned, start) & np.where(
        kept < bits, (dtype(1) << np.minimum(kept, bits - 1).astype(dtype)) - dtype(1), ~dtype(0)
    ).astype(dtype)
    if x.dtype.kind == "u":
        return field
    top = np.minimum(start + count - np.uint32(1), bits - 1)
    sign = (_shift_right(unsigned, top) & dtype(1) != 0) & (count != 0)
    return np.where(sign & (kept < bits), field | ~((dtype(1) << kept.astype(dtype)) - dtype(1)), field).view(x.dtype)


def _insert(a: Any, b: Any, start: Any, count: Any) -> Any:
    dtype = np.asarray(b).dtype.type
    ones = np.where(count < 8 * b.dtype.itemsize, _shift_left(np.ones_like(b), count) - dtype(1), ~dtype(0))
    mask = _shift_left(ones.astype(b.dtype), start)
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


def _count_bits(x: Any) -> Any:
    x = np.atleast_1d(x)
    return np.unpackbits(x.view(np.uint8).reshape(len(x), -1), axis=1).sum(1).astype(np.uint32)


def _leading_zeros(x: Any) -> Any:
    x = np.atleast_1d(x)
    bits = 8 * x.dtype.itemsize
    return sum((x >> x.dtype.type(k) == 0).astype(np.uint32) for k in range(bits))


def _reverse(x: Any) -> Any:
    x = np.atleast_1d(x)
    flipped = np.unpackbits(x.view(np.uint8).reshape(len(x), -1), axis=1, bitorder="little")[:, ::-1]
    return np.packbits(flipped, axis=1, bitorder="little").view(x.dtype).reshape(-1)


_INTEGER_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul.lo": (2, np.multiply),
    "mul.hi": (2, _high),
    "mad.lo": (3, lambda x, y, z: x * y + z),
    "mad.hi": (3, lambda x, y, z: _high(x, y) + z),
    "div": (2, lambda x, y: _quotient(x, y, False)),
    "rem": (2, lambda x, y: _quotient(x, y, True)),
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
_PREDICATE_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "and": (2, np.logical_and),
    "or": (2, np.logical_or),
    "xor": (2, np.logical_xor),
    "not": (1, np.logical_not),
}

_COMPARE: dict[str, Callable[..., Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def _unordered(x: Any, y: Any) -> Any:
    return np.isnan(x) | np.isnan(y)


def _float_compare(name: str) -> Callable[..., Any]:
    if name == "ne":  # false where either is NaN
        return lambda x, y: (x != y) & ~_unordered(x, y)
    if name == "nan":
        return _unordered
    if name == "num":
        return lambda x, y: ~_unordered(x, y)
    if name.endswith("u") and name[:-1] in _COMPARE:
        inner = _COMPARE[name[:-1]]
        return lambda x, y: inner(x, y) | _unordered(x, y)
    return _COMPARE[name]


# --- instructions ---------------------------------------------------------------------------------------------------


class Unknown(Exception):
    """An instruction, or a form of one, that is not implemented."""


def decode(kernel: Kernel, instruction: Instruction) -> Run:
    """What an instruction does to the lanes that execute it.

    Raises:
        Fault: the instruction is not known; its name is in the message.
    """
    parts = instruction.opcode.split(".")
    maker = _MAKERS.get(parts[0])
    try:
        if maker is None:
            raise Unknown
        return maker(kernel, instruction, parts)
    except (Unknown, KeyError, IndexError, ValueError):
        raise Fault(f"{kernel.name}: unknown instruction {instruction.text!r}") from None
    except Fault as fault:
        raise Fault(f"{kernel.name}: {instruction.text!r}: {fault}") from None


def _only(parts: list[str], allowed: set[str]) -> None:
    if set(parts) - allowed:
        raise Unknown


def _apply(kernel: Kernel, operands: tuple[str, ...], kinds: list[str], function: Callable[..., Any]) -> Run:
    """Destination first, then sources of these types."""
    if len(operands) != len(kinds) + 1:
        raise Unknown
    write = _writer(kernel, operands[0])
    reads = [_reader(kernel, token, kind) for token, kind in zip(operands[1:], kinds, strict=True)]
    if len(reads) == 1:
        (one,) = reads
        return lambda state, lanes: write(state, lanes, function(one(state, lanes)))
    if len(reads) == 2:
        first, second = reads
        return lambda state, lanes: write(state, lanes, function(first(state, lanes), second(state, lanes)))
    return lambda state, lanes: write(state, lanes, function(*(read(state, lanes) for read in reads)))


def _arithmetic(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    name, kind, modifiers = parts[0], parts[-1], parts[1:-1]
    if kind == "pred":
        count, function = _PREDICATE_FUNCTIONS[name]
        return _apply(kernel, instruction.operands, ["pred"] * count, function)
    if kind in _FLOATS:
        return _float_arithmetic(kernel, instruction, name, modifiers, kind)
    if "wide" in modifiers:
        _only(modifiers, {"wide"})
        wide = np.dtype(f"{np.dtype(_NUMPY[kind]).kind}{2 * np.dtype(_NUMPY[kind]).itemsize}")
        wider = f"{kind[0]}{2 * int(kind[1:])}"
        if name == "mul":
            return _apply(kernel, instruction.operands, [kind] * 2, lambda x, y: x.astype(wide) * y.astype(wide))
        if name != "mad":
            raise Unknown
        return _apply(
            kernel, instruction.operands, [kind, kind, wider], lambda x, y, z: x.astype(wide) * y.astype(wide) + z
        )
    count, function = _INTEGER_FUNCTIONS[".".join([name, *modifiers])]
    return _apply(kernel, instruction.operands, [kind] * count, function)


def _float_arithmetic(kernel: Kernel, instruction: Instruction, name: str, modifiers: list[str], kind: str) -> Run:
    if name in ("add", "sub", "fma") and "f32" in modifiers:
        return _mixed(kernel, instruction, name, modifiers, kind)
    _only(modifiers, {"rn", "ftz", "noftz", "approx", "full", "NaN", "sat"})
    count, function = _FLOAT_FUNCTIONS[f"{name}.NaN" if "NaN" in modifiers else name]
    if name in ("min", "max") and kind == "f32" and len(instruction.operands) == 4:  # of three numbers, from sm_100 on
        count, function = 3, partial(_of_three, function)
    flush, saturate = "ftz" in modifiers and kind == "f32", "sat" in modifiers
    error = next((f"{name}.{m}" for m in ("approx", "full") if m in modifiers), None)
    if error is not None and (error not in _ULPS or kind != "f32"):
        raise Unknown
    if kind in ("f32", "f64") and not (flush or saturate or error or name in ("fma", "mad")):
        return _apply(kernel, instruction.operands, [kind] * count, function)
    if name in ("fma", "mad") and kind == "f32" and not (flush or saturate):
        return _apply(
            kernel, instruction.operands, [kind] * 3, lambda x, y, z: _multiply_add(x, y, z).astype(np.float32)
        )
    write = _writer(kernel, instruction.operands[0])
    reads = [_reader(kernel, token, kind) for token in instruction.operands[1:]]
    if len(reads) != count:
        raise Unknown

    def run(state: "State", lanes: Lanes) -> None:
        values = [_lift(kind, read(state, lanes)) for read in reads]
        if flush:
            values = [_flush(x) for x in values]
        result = _lower(kind, function(*values))
        if error is not None and state.seed is not None:
            result = _perturb(result, error, state.seed)
        if flush:
            result = _flush(result)
        if saturate:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)
        write(state, lanes, result)

    return run


def _mixed(kernel: Kernel, instruction: Instruction, name: str, modifiers: list[str], kind: str) -> Run:
    """Float32 arithmetic on 16-bit numbers and, last, one of float32: from sm_100 on."""
    _only(modifiers, {"rn", "f32"})
    write = _writer(kernel, instruction.operands[0])
    *factors, last = instruction.operands[1:]
    reads = [_reader(kernel, token, kind) for token in factors] + [_reader(kernel, last, "f32")]
    kinds = [kind] * len(factors) + ["f32"]
    count, function = _FLOAT_FUNCTIONS[name]
    if len(reads) != count:
        raise Unknown

    def run(state: "State", lanes: Lanes) -> None:
        values = [_lift(k, read(state, lanes)) for k, read in zip(kinds, reads, strict=True)]
        write(state, lanes, _lower("f32", function(*values)))

    return run


def _bits(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    """Shifts and bit fields, whose operands have types of their own."""
    name, kind = parts[0], parts[-1]
    unsigned = f"u{kind[1:]}"
    forms: dict[str, tuple[list[str], Callable[..., Any]]] = {
        "shl": ([unsigned, "u32"], _shift_left),
        "shr": ([kind, "u32"], _shift_right),
        "bfe": ([kind, "u32", "u32"], _extract),
        "bfi": ([unsigned, unsigned, "u32", "u32"], _insert),
        "prmt": (["u32"] * 3, _permute),
        "popc": ([unsigned], _count_bits),
        "clz": ([unsigned], _leading_zeros),
        "brev": ([unsigned], _reverse),
    }
    if len(parts) != 2:
        raise Unknown
    kinds, function = forms[name]
    operands = instruction.operands
    if name == "prmt" and operands[3].rstrip("U").startswith("0x"):
        # an operand of which no byte is taken may be a register that nothing sets
        taken = {int(digit, 16) & 7 for digit in operands[3].rstrip("U")[2:].zfill(4)}
        x = operands[1] if taken & {0, 1, 2, 3} else "0"
        y = operands[2] if taken & {4, 5, 6, 7} else "0"
        operands = (operands[0], x, y, operands[3])
    return _apply(kernel, operands, kinds, function)


def _funnel_shift(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    direction, mode = parts[1], parts[2]
    _only([direction, mode], {"l", "r", "wrap", "clamp"})

    def function(low: Any, high: Any, n: Any) -> Any:
        n = (n & np.uint32(31) if mode == "wrap" else np.minimum(n, 32)).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        return (both >> n if direction == "r" else (both << n) >> np.uint64(32)).astype(np.uint32)

    return _apply(kernel, instruction.operands, ["u32"] * 3, function)


def _look_up(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    table = int(instruction.operands[4], 0)

    def function(a: Any, b: Any, c: Any) -> Any:
        result: Any = np.uint32(0)
        for k in range(8):
            if table >> k & 1:
                result = result | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
        return result

    return _apply(kernel, instruction.operands[:4], ["u32"] * 3, function)


def _compare(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    kind = parts[-1]
    name, *rest = [part for part in parts[1:-1] if part != "ftz"]
    compare = _float_compare(name) if kind in _FLOATS else _COMPARE[name]
    combine = _PREDICATE_FUNCTIONS[rest[0]][1] if rest else None
    targets = [target.strip() for target in instruction.operands[0].split("|")]
    writes = [_writer(kernel, target) for target in targets]
    x, y = (_reader(kernel, token, kind) for token in instruction.operands[1:3])
    other = None
    if combine is not None:
        token = instruction.operands[3]
        inner = _reader(kernel, token.lstrip("!"), "pred")
        other = (lambda state, lanes: ~inner(state, lanes)) if token.startswith("!") else inner

    def run(state: "State", lanes: Lanes) -> None:
        outcome = compare(_lift(kind, x(state, lanes)), _lift(kind, y(state, lanes)))
        for result, write in zip((outcome, ~outcome), writes, strict=False):
            write(state, lanes, result if combine is None else combine(result, other(state, lanes)))  # type: ignore[misc]

    return run


def _select(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    write = _writer(kernel, instruction.operands[0])
    x, y = (_reader(kernel, token, parts[-1]) for token in instruction.operands[1:3])
    condition = _reader(kernel, instruction.operands[3], "pred")

    def run(state: "State", lanes: Lanes) -> None:
        chosen = condition(state, lanes)
        undefined = state.take_undefined()
        first = x(state, lanes)
        of_first = state.take_undefined()
        second = y(state, lanes)
        # what is not chosen may be undefined
        for lost, where in ((of_first, chosen), (state.take_undefined(), ~chosen)):
            if lost is not None:
                undefined = lost & where if undefined is None else undefined | (lost & where)
        state.undefined = undefined
        write(state, lanes, np.where(chosen, first, second))

    return run


def _move(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    target, source = instruction.operands
    kind = parts[-1]
    if target.startswith("{") or source.startswith("{"):
        names = _vector(target if target.startswith("{") else source)
        whole, part = f"u{kind[1:]}", f"u{int(kind[1:]) // len(names)}"
        dtype = np.dtype(_NUMPY[part])
        if target.startswith("{"):
            read = _reader(kernel, source, whole)
            writes = [_writer(kernel, name) for name in names]

            def unpack(state: "State", lanes: Lanes) -> None:
                columns = np.atleast_1d(read(state, lanes)).copy().view(dtype).reshape(-1, len(names))
                for k, write in enumerate(writes):
                    column = np.ascontiguousarray(columns[:, k])
                    write(state, lanes, column if len(column) > 1 or state.lanes == 1 else column[0])

            return unpack
        # the compiler packs a half that nobody reads from a register that nothing sets: NaN here, if it were read
        names = [name if name in kernel.set_registers or name[0] != "%" else "-1" for name in names]
        reads = [_reader(kernel, name, part) for name in names]
        write = _writer(kernel, target)

        def pack(state: "State", lanes: Lanes) -> None:
            count = state.lanes if lanes is None else len(lanes)
            columns = np.empty((count, len(names)), dtype)
            for k, read in enumerate(reads):
                columns[:, k] = read(state, lanes)
            write(state, lanes, columns.view(_NUMPY[whole]).reshape(-1))

        return pack
    return _apply(kernel, (target, source), [kind], lambda x: x)


def _convert(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    source, target, modifiers = parts[-1], parts[-2], parts[1:-2]
    _only(modifiers, {"rn", "rz", "rzi", "rni", "rmi", "rpi", "ftz", "sat"})
    if target.endswith("x2"):
        if source != "f32" or modifiers != ["rn"]:
            raise Unknown
        pair = target[:-2]

        def join(high: Any, low: Any) -> Any:
            upper, lower = (_lower(pair, x).astype(np.uint32) for x in (high, low))
            return (upper << np.uint32(16)) | lower

        return _apply(kernel, instruction.operands, [source, source], join)
    return _apply(kernel, instruction.operands, [source], _conversion(source, target, modifiers))


def _conversion(source: str, target: str, modifiers: list[str]) -> Callable[[Any], Any]:
    rounding = {"rzi": np.trunc, "rmi": np.floor, "rni": np.rint, "rpi": np.ceil}
    to_whole = next((rounding[m] for m in modifiers if m in rounding), None)
    flush, saturate = "ftz" in modifiers and "f32" in (source, target), "sat" in modifiers
    dtype = np.dtype(_NUMPY[target])
    if "rz" in modifiers:
        raise Unknown
    if source in _FLOATS and target in _FLOATS:

        def between_floats(x: Any) -> Any:
            x = _lift(source, x)
            if flush and source == "f32":
                x = _flush(x)
            if to_whole is not None:
                x = to_whole(x)
            result = _lower(target, x.astype(np.float64) if target == "f64" else x)
            if saturate:
                result = np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)
            return _flush(result) if flush and target == "f32" else result

        return between_floats
    if source in _FLOATS:
        if to_whole is None:
            raise Unknown
        info = np.iinfo(dtype)
        undefined = 0 if source != "f64" and dtype.itemsize < 8 else 1 << (8 * dtype.itemsize - 1)
        undefined_value = np.array(undefined, f"u{dtype.itemsize}").view(dtype)[()]

        def to_integer(x: Any) -> Any:
            x = _lift(source, x)
            whole = to_whole(_flush(x) if flush and source == "f32" else x).astype(np.float64)
            low, high = whole <= float(info.min), whole >= float(info.max)
            inside = np.where(low | high | np.isnan(whole), 0, whole).astype(dtype)
            result = np.where(low, dtype.type(info.min), np.where(high, dtype.type(info.max), inside))
            return np.where(np.isnan(whole), undefined_value, result).astype(dtype)

        return to_integer
    if target in _FLOATS:
        exact = dtype if target in ("f32", "f64") else np.dtype(np.float64)
        return lambda x: _lower(target, x.astype(exact))
    if saturate:
        from_info, to_info = np.iinfo(_NUMPY[source]), np.iinfo(dtype)
        low, high = max(from_info.min, to_info.min), min(from_info.max, to_info.max)
        return lambda x: np.clip(x, x.dtype.type(low), x.dtype.type(high)).astype(dtype)
    return lambda x: x.astype(dtype)


def _to_space(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    _only(parts[1:-1], {"to", "global"})
    return _apply(kernel, instruction.operands, [parts[-1]], lambda x: x)


_HINTS = {"relaxed", "gpu", "sys", "cta", "acquire", "release", "acq_rel", "weak", "volatile", "nc", "ca", "cg", "cs"}
_HINTS |= {"lu", "cv", "wb", "wt", "L1::evict_last", "L1::evict_first", "L1::no_allocate", "L1::evict_normal"}
_HINTS |= {
    "L1::evict_unchanged",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "v2",
    "v4",
    "v8",
    "shared",
    "shared::cta",
    "global",
}


def _load(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    kind = parts[-1]
    dtype = np.dtype(_NUMPY[kind])
    names = _vector(instruction.operands[0])
    writes = [_writer(kernel, name) for name in names]
    if parts[1] == "param":
        return _load_parameter(kernel, instruction, dtype, writes)
    _only(parts[1:-1], _HINTS)
    shared = any(part.startswith("shared") for part in parts)
    if not shared and "global" not in parts:
        raise Unknown
    address, size = _address(kernel, instruction.operands[1]), dtype.itemsize * len(names)

    def run(state: "State", lanes: Lanes) -> None:
        at = address(state, lanes)
        if shared:
            raw = state.shared.load(at, size, state.of(state.slot, lanes))
            state.count_shared("shared load", at, size, lanes)
        else:
            raw = state.memory.load(at, size, state.of(state.program, lanes))
            state.count_global("global load", at, size, lanes)
        columns = raw.view(dtype)
        for k, write in enumerate(writes):
            write(state, lanes, columns[:, k].copy())

    return run


def _load_parameter(kernel: Kernel, instruction: Instruction, dtype: np.dtype, writes: list[Callable]) -> Run:
    match = re.match(r"^\[\s*(\w+)\s*(?:\+\s*(\d+))?\s*\]$", instruction.operands[1])
    if match is None or match[1] not in kernel.parameters:
        raise Unknown
    name, offset = match[1], int(match[2] or 0)

    def run(state: "State", lanes: Lanes) -> None:
        values = np.frombuffer(state.parameters[name], dtype, len(writes), offset)
        for write, value in zip(writes, values, strict=True):
            write(state, lanes, value)

    return run


def _store(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    kind = parts[-1]
    _only(parts[1:-1], _HINTS - {"nc"})
    shared = any(part.startswith("shared") for part in parts)
    if not shared and "global" not in parts:
        raise Unknown
    dtype = np.dtype(_NUMPY[kind])
    reads = [_reader(kernel, name, kind) for name in _vector(instruction.operands[1])]
    address = _address(kernel, instruction.operands[0])

    def run(state: "State", lanes: Lanes) -> None:
        at = address(state, lanes)
        columns = np.empty((len(at), len(reads)), dtype)
        for k, read in enumerate(reads):
            columns[:, k] = read(state, lanes)
        raw = columns.view(np.uint8)
        if shared:
            state.shared.store(at, raw, state.of(state.slot, lanes), state.undefined)
            state.count_shared("shared store", at, raw.shape[1], lanes)
        else:
            state.require_defined("what is stored")
            state.memory.store(at, raw, state.of(state.program, lanes))
            state.count_global("global store", at, raw.shape[1], lanes)

    return run


_UPDATES = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
_UPDATES |= {"xor": np.bitwise_xor}


def _atomic(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    """Reductions, and atomics whose result nobody reads: that order is not defined, and not kept."""
    kind, returns = parts[-1], parts[0] == "atom"
    operation = next((_UPDATES[part] for part in parts if part in _UPDATES), None)
    _only(parts[1:-1], _HINTS - {"nc", "shared", "shared::cta"} | set(_UPDATES) | {"noftz"})
    if operation is None or "global" not in parts:
        raise Unknown
    operands = instruction.operands
    targets = _vector(operands[0]) if returns else []
    if any(target in kernel.read_registers for target in targets):
        raise Unknown
    reads = [_reader(kernel, name, kind) for name in _vector(operands[-1])]
    address = _address(kernel, operands[-2])

    def run(state: "State", lanes: Lanes) -> None:
        at = address(state, lanes)
        columns = np.empty((len(at), len(reads)), _NUMPY[kind])
        for k, read in enumerate(reads):
            columns[:, k] = read(state, lanes)
        state.require_defined("what is added")
        if kind.startswith("f16"):
            state.memory.update(at, columns.view(np.float16), np.add)
        elif kind.startswith("bf16"):
            state.memory.update_bfloat16(at, columns.view(np.uint16))
        else:
            state.memory.update(at, columns, operation)
        state.count_global("reduction", at, columns.itemsize * len(reads), lanes)

    return run


def _nothing(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    return lambda state, lanes: None


def _trap(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    def run(state: "State", lanes: Lanes) -> None:
        raise Problem(0, "stops the kernel")

    return run


# --- between the lanes of a warp ------------------------------------------------------------------------------------


def _source_lane(mode: str, lane: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """Which lane of its warp each lane reads, and whether that lies within its segment."""
    segment, clamp = (c >> np.uint32(8)) & np.uint32(31), c & np.uint32(31)
    b = b & np.uint32(31)
    lowest, highest = lane & segment, (lane & segment) | (clamp & ~segment)
    signed = np.int64
    if mode == "up":
        source = lane.astype(signed) - b
        inside = source >= highest.astype(signed)
    else:
        source = {"idx": lowest | (b & ~segment), "bfly": lane ^ b, "down": lane + b}[mode].astype(signed)
        inside = source <= highest.astype(signed)
    return np.where(inside, source, lane.astype(signed)), inside


def _shuffle(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    mode = parts[2]
    if parts[1] != "sync" or mode not in ("up", "down", "idx", "bfly") or len(instruction.operands) != 5:
        raise Unknown
    target, _, inside_name = (part.strip() for part in instruction.operands[0].partition("|"))
    write = _writer(kernel, target)
    write_inside = _writer(kernel, inside_name) if inside_name else None
    number = kernel.register(instruction.operands[1])
    if number is None:
        raise Unknown
    b, c = (_reader(kernel, token, "u32") for token in instruction.operands[2:4])

    def run(state: "State", lanes: Lanes) -> None:
        lane = state.of(state.special["laneid"], lanes)
        source, inside = _source_lane(mode, lane, b(state, lanes), c(state, lanes))
        state.require_defined("a lane's number")
        where = state.of(state.first_of_warp, lanes) + source
        if lanes is not None:
            here = np.zeros(state.lanes, np.bool_)
            here[lanes] = True
            if not here[where].all():
                position = int(np.flatnonzero(~here[where])[0])
                raise Problem(position, f"shuffles from lane {int(source[position])}, which takes no part")
        values = state.checked(number, None)[where]  # of all lanes: what they lack is looked at by its source
        holes = state.holes.get(number)
        state.undefined = None if holes is None or holes[where].all() else ~holes[where]
        write(state, lanes, values)
        if write_inside is not None:
            write_inside(state, lanes, inside)
        state.count("shuffle", lanes)

    return run


def _over_members(state: "State", lanes: Lanes, values: Array, mask: Any, function: Callable[[Array], Any]) -> Array:
    """`function` over axis 1 of (warps, 32) `values`, whose lanes of `mask` take part; the result for every lane."""
    if lanes is None and np.ndim(mask) == 0 and mask == np.uint32(0xFFFFFFFF):
        return np.repeat(function(values.reshape(-1, 32)), 32)
    lanes = np.arange(state.lanes) if lanes is None else lanes
    masks = np.broadcast_to(mask, lanes.shape)
    result = None
    keys, inverse = np.unique((state.first_of_warp[lanes] << 32) | masks.astype(np.int64), return_inverse=True)
    for k in range(len(keys)):
        own = inverse == k
        one = function(values[own][None])
        result = np.empty(len(lanes), one.dtype) if result is None else result
        result[own] = one[0]
    return result  # type: ignore[return-value]


def _vote(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    mode = parts[2]
    functions: dict[str, Callable[[Array], Any]] = {
        "all": lambda x: x.all(1),
        "any": lambda x: x.any(1),
        "uni": lambda x: x.all(1) | ~x.any(1),
    }
    token = instruction.operands[1]
    inner = _reader(kernel, token.lstrip("!"), "pred")
    flip = token.startswith("!")
    mask = _reader(kernel, instruction.operands[2], "u32")
    write = _writer(kernel, instruction.operands[0])
    if parts[1] != "sync" or mode not in (*functions, "ballot"):
        raise Unknown

    def run(state: "State", lanes: Lanes) -> None:
        count = state.lanes if lanes is None else len(lanes)
        values = np.broadcast_to(inner(state, lanes) ^ np.bool_(flip), (count,))
        state.require_defined("what is voted on")
        if mode != "ballot":
            write(state, lanes, _over_members(state, lanes, values, mask(state, lanes), functions[mode]))
            return
        bit = np.where(values, np.uint32(1) << state.of(state.special["laneid"], lanes), np.uint32(0))
        ballot = _over_members(
            state, lanes, bit.astype(np.uint32), mask(state, lanes), lambda x: np.bitwise_or.reduce(x, 1)
        )
        write(state, lanes, ballot)

    return run


def _reduce(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    kind = parts[-1]
    function = _UPDATES[parts[2]]
    read, mask = _reader(kernel, instruction.operands[1], kind), _reader(kernel, instruction.operands[2], "u32")
    write = _writer(kernel, instruction.operands[0])
    if parts[1] != "sync" or len(parts) != 4:
        raise Unknown

    def run(state: "State", lanes: Lanes) -> None:
        count = state.lanes if lanes is None else len(lanes)
        values = np.broadcast_to(read(state, lanes), (count,))
        state.require_defined("what is reduced")
        write(
            state,
            lanes,
            _over_members(state, lanes, values, mask(state, lanes), lambda x: function.reduce(x, 1).astype(x.dtype)),
        )

    return run


def _match(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    if parts[1:3] != ["any", "sync"]:
        raise Unknown
    read, mask = _reader(kernel, instruction.operands[1], parts[-1]), _reader(kernel, instruction.operands[2], "u32")
    write = _writer(kernel, instruction.operands[0])

    def run(state: "State", lanes: Lanes) -> None:
        every = np.arange(state.lanes) if lanes is None else lanes
        values, masks = (np.broadcast_to(r(state, lanes), every.shape) for r in (read, mask))
        same = (values[:, None] == values[None]) & (masks[:, None] == masks[None])
        same &= state.first_of_warp[every][:, None] == state.first_of_warp[every][None]
        bits = np.uint32(1) << state.special["laneid"][every]
        write(state, lanes, np.bitwise_or.reduce(np.where(same, bits[None], np.uint32(0)), 1))

    return run


def _active(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    write = _writer(kernel, instruction.operands[0])

    def run(state: "State", lanes: Lanes) -> None:
        write(state, lanes, state.of(np.repeat(state.members(lanes), 32), lanes))

    return run


def _matrix(kernel: Kernel, instruction: Instruction, parts: list[str]) -> Run:
    """ldmatrix and stmatrix of 8x8 matrices of 16-bit numbers: matrix i's row r at lane 8*i + r's address."""
    loads = parts[0] == "ldmatrix"
    _only(parts[1:], {"sync", "aligned", "m8n8", "x1", "x2", "x4", "shared", "shared::cta", "b16", "trans"})
    names = _vector(instruction.operands[0 if loads else 1])
    address = _address(kernel, instruction.operands[1 if loads else 0])
    writes = [_writer(kernel, name) for name in names] if loads else []
    reads = [] if loads else [_reader(kernel, name, "u32") for name in names]
    transposed = "trans" in parts
    rows = 8 * len(names)

    def run(state: "State", lanes: Lanes) -> None:
        every = np.arange(state.lanes) if lanes is None else lanes
        if len(every) % 32:
            raise Problem(0, "not every lane of a warp takes part")
        holders = every.reshape(-1, 32)[:, :rows]
        at = address(state, lanes).reshape(-1, 32)[:, :rows].reshape(-1)
        slot = state.slot[holders.reshape(-1)]
        if loads:
            # (warps, matrices, 8 rows, 8 columns)
            tiles = state.shared.load(at, 16, slot).view(np.uint16).reshape(-1, len(names), 8, 8)
            state.count_shared("shared load", at, 16, holders.reshape(-1))
            tiles = np.ascontiguousarray(tiles.swapaxes(2, 3)) if transposed else tiles
            words = np.ascontiguousarray(tiles).view(np.uint32).reshape(-1, len(names), 32)
            for k, write in enumerate(writes):
                write(state, lanes, words[:, k].reshape(-1).copy())
            return
        words = np.stack([read(state, lanes).reshape(-1, 32) for read in reads], 1)
        tiles = np.ascontiguousarray(words).view(np.uint16).reshape(-1, len(names), 8, 8)
        tiles = np.ascontiguousarray(tiles.swapaxes(2, 3)) if transposed else tiles
        state.shared.store(at, tiles.view(np.uint8).reshape(-1, 16), slot)
        state.count_shared("shared store", at, 16, holders.reshape(-1))

    return run


_MAKERS: dict[str, Callable[[Kernel, Instruction, list[str]], Run]] = {
    **{name.split(".")[0]: _arithmetic for name in (*_FLOAT_FUNCTIONS, *_INTEGER_FUNCTIONS)},
    **dict.fromkeys(("shl", "shr", "bfe", "bfi", "prmt", "popc", "clz", "brev"), _bits),
    **dict.fromkeys(("atom", "red"), _atomic),
    **dict.fromkeys(("ldmatrix", "stmatrix"), _matrix),
    **dict.fromkeys(("membar", "fence", "nanosleep", "griddepcontrol"), _nothing),
    # what these do to the order of execution is the machine's
    **dict.fromkeys(("bra", "ret", "exit", "bar", "barrier"), _nothing),
    "shf": _funnel_shift,
    "lop3": _look_up,
    "setp": _compare,
    "selp": _select,
    "mov": _move,
    "cvt": _convert,
    "cvta": _to_space,
    "ld": _load,
    "st": _store,
    "shfl": _shuffle,
    "vote": _vote,
    "redux": _reduce,
    "match": _match,
    "activemask": _active,
    "trap": _trap,
}


def member_mask(kernel: Kernel, instruction: Instruction) -> Read | None:
    """How the lanes that an instruction waits for are read, or None if it waits for none."""
    parts = instruction.opcode.split(".")
    if parts[0] in ("shfl", "vote", "redux", "match") or instruction.opcode == "bar.warp.sync":
        return _reader(kernel, instruction.operands[-1], "u32")
    if parts[0] in ("ldmatrix", "stmatrix"):
        return _reader(kernel, "0xffffffff", "u32")
    return None
