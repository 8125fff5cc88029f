"""Arithmetic and comparisons of floating-point numbers.

Arithmetic is IEEE's, as PTX says, with two exceptions: a fused multiply-add rounds once where float64 holds the exact
product (float32, and shorter: all but one result in 2**28), but twice in float64; and functions that PTX calls
approximate are exact unless the state has a seed of errors, which then move each result by up to the documented
number of last places.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..memory import Array
from ..state import Action, Lanes, State
from .operation import Operation, Unknown, only

# the error that the PTX manual documents, in units of the last place; of sin and cos in 2**-21
_ULPS = {"ex2.approx": 2, "rcp.approx": 1, "div.full": 2, "div.approx": 2, "sqrt.approx": 1, "rsqrt.approx": 2}
_ULPS |= {"lg2.approx": 2, "sin.approx": 2, "cos.approx": 2, "tanh.approx": 8192}


def _to_odd(x: Array) -> Array:
    """float64 as float32 rounded to odd, from where a second rounding gives what one would have given."""
    near = x.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.int32).copy()
    even = (bits & 1 == 0) & (back != x) & np.isfinite(x) & np.isfinite(near)
    toward = np.where(np.abs(x) > np.abs(back), 1, -1).astype(np.int32)
    return np.where(even, bits + toward, bits).view(np.float32)


def _to_bfloat16(x: Array) -> Array:
    x = np.atleast_1d(x)
    bits = (_to_odd(x) if x.dtype == np.float64 else x).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def to_numbers(kind: str, x: Any) -> Any:
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


def to_registers(kind: str, x: Any) -> Any:
    """Numbers as registers hold them, rounded once to nearest even."""
    if kind == "f32":
        return x.astype(np.float32, copy=False)
    if kind == "f32x2":
        return np.ascontiguousarray(x, np.float32).view(np.uint64).reshape(-1)
    if kind.startswith("f16"):
        bits = np.atleast_1d(x).astype(np.float16).view(np.uint16)
    elif kind.startswith("bf16"):
        bits = _to_bfloat16(x)
    else:
        return x
    return np.ascontiguousarray(bits).view(np.uint32).reshape(-1) if kind.endswith("x2") else bits


def flush(x: Array) -> Array:
    """Subnormal float32 numbers to zero, with their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def saturate(x: Array) -> Array:
    """Numbers clamped to [0, 1], NaN to zero."""
    return np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)


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


def _through_float64(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
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
NAMES = {name.split(".")[0] for name in _FUNCTIONS}


def arithmetic(op: Operation) -> Action:
    """``add``, ``fma``, ``ex2`` and the others, of one, two or three numbers."""
    name, kind, modifiers = op.name, op.kind, op.modifiers
    count, function = _FUNCTIONS[f"{name}.NaN" if "NaN" in modifiers else name]
    kinds = [kind] * count
    result_kind = kind
    if name in ("add", "sub", "fma") and "f32" in modifiers:  # 16-bit numbers and a last one of float32, from sm_100 on
        only(modifiers, {"rn", "f32"})
        kinds[-1] = result_kind = "f32"
    else:
        only(modifiers, {"rn", "ftz", "noftz", "approx", "full", "NaN", "sat"})
    if name in ("min", "max") and kind == "f32" and len(op.operands) == 4:  # of three numbers, from sm_100 on
        of_two, kinds = function, [kind] * 3
        function = lambda x, y, z: of_two(of_two(x, y), z)  # noqa: E731
    flushes, saturates = "ftz" in modifiers and kind == "f32", "sat" in modifiers
    error = next((f"{name}.{m}" for m in ("approx", "full") if m in modifiers), None)
    if error is not None and (error not in _ULPS or kind != "f32"):
        raise Unknown
    if not (flushes or saturates or error) and {*kinds, result_kind} <= {"f32", "f64"}:
        if name in ("fma", "mad") and kind == "f32":
            return op.apply(kinds, lambda x, y, z: _multiply_add(x, y, z).astype(np.float32))
        return op.apply(kinds, function)
    if len(op.operands) != len(kinds) + 1:
        raise Unknown
    write = op.writer(op.operands[0])
    reads = [(k, op.reader(token, k)) for k, token in zip(kinds, op.operands[1:], strict=True)]

    def act(state: State, lanes: Lanes) -> None:
        values = [to_numbers(k, read(state, lanes)) for k, read in reads]
        if flushes:
            values = [flush(x) for x in values]
        result = to_registers(result_kind, function(*values))
        if error is not None and state.seed is not None:
            result = _perturb(result, error, state.seed)
        if flushes:
            result = flush(result)
        write(state, lanes, saturate(result) if saturates else result)

    return act


ORDER: dict[str, Callable[..., Any]] = {
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
"""comparisons, by PTX's names"""


def _unordered(x: Any, y: Any) -> Any:
    return np.isnan(x) | np.isnan(y)


def comparison(name: str) -> Callable[..., Any]:
    """A comparison of floating-point numbers; false where either is NaN unless its name says otherwise."""
    if name == "ne":
        return lambda x, y: (x != y) & ~_unordered(x, y)
    if name == "nan":
        return _unordered
    if name == "num":
        return lambda x, y: ~_unordered(x, y)
    if name.endswith("u") and name[:-1] in ORDER:
        return lambda x, y: ORDER[name[:-1]](x, y) | _unordered(x, y)
    return ORDER[name]
