"""Comparisons, selection, moves between registers, and conversions between types."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..state import Action, Lanes, State
from .floats import ORDER, comparison, flush, saturate, to_numbers, to_registers
from .integers import PREDICATES
from .operation import FLOATS, NUMPY, Operation, Unknown, only, vector


def compare(op: Operation) -> Action:
    """``setp``, which may combine its outcome with another predicate and set a second one to the opposite."""
    kind = op.kind
    name, *rest = [part for part in op.modifiers if part != "ftz"]
    holds = comparison(name) if kind in FLOATS else ORDER[name]
    combine = PREDICATES[rest[0]][1] if rest else None
    writes = [op.writer(target) for target in op.operands[0].split("|")]
    x, y = (op.reader(token, kind) for token in op.operands[1:3])
    other = op.condition(op.operands[3]) if combine is not None else None

    def act(state: State, lanes: Lanes) -> None:
        outcome = holds(to_numbers(kind, x(state, lanes)), to_numbers(kind, y(state, lanes)))
        for result, write in zip((outcome, ~outcome), writes, strict=False):
            write(state, lanes, result if combine is None else combine(result, other(state, lanes)))  # type: ignore[misc]

    return act


def select(op: Operation) -> Action:
    """``selp``: one of two operands; what is not chosen may be undefined."""
    write = op.writer(op.operands[0])
    x, y = (op.reader(token, op.kind) for token in op.operands[1:3])
    condition = op.reader(op.operands[3], "pred")

    def act(state: State, lanes: Lanes) -> None:
        chosen = condition(state, lanes)
        undefined = state.take_undefined()
        first = x(state, lanes)
        undefined_first = state.take_undefined()
        second = y(state, lanes)
        for missing, where in ((undefined_first, chosen), (state.take_undefined(), ~chosen)):
            if missing is not None:
                undefined = missing & where if undefined is None else undefined | (missing & where)
        state.undefined = undefined
        write(state, lanes, np.where(chosen, first, second))

    return act


def move(op: Operation) -> Action:
    """``mov``, which may take a register apart into several, or join several into one."""
    target, source = op.operands
    if target.startswith("{"):
        return _unpack(op, vector(target), source)
    if source.startswith("{"):
        return _pack(op, target, vector(source))
    return op.apply([op.kind], lambda x: x)


def _part(op: Operation, names: list[str]) -> str:
    return f"u{int(op.kind[1:]) // len(names)}"


def _unpack(op: Operation, names: list[str], source: str) -> Action:
    dtype = np.dtype(NUMPY[_part(op, names)])
    read = op.reader(source, f"u{op.kind[1:]}")
    writes = [op.writer(name) for name in names]

    def act(state: State, lanes: Lanes) -> None:
        columns = np.atleast_1d(read(state, lanes)).copy().view(dtype).reshape(-1, len(names))
        for k, write in enumerate(writes):
            column = np.ascontiguousarray(columns[:, k])
            write(state, lanes, column if len(column) > 1 or state.lanes == 1 else column[0])

    return act


def _pack(op: Operation, target: str, names: list[str]) -> Action:
    # the compiler packs a half that nobody reads from a register that nothing sets: NaN here, if it were read
    names = [name if name in op.kernel.set_registers or name[0] != "%" else "-1" for name in names]
    read, write, whole = op.columns(names, _part(op, names)), op.writer(target), NUMPY[f"u{op.kind[1:]}"]
    return lambda state, lanes: write(state, lanes, read(state, lanes).view(whole).reshape(-1))


def convert(op: Operation) -> Action:
    """``cvt``."""
    source, target, modifiers = op.parts[-1], op.parts[-2], op.parts[1:-2]
    only(modifiers, {"rn", "rzi", "rni", "rmi", "rpi", "ftz", "sat"})
    if target.endswith("x2"):
        if source != "f32" or modifiers != ["rn"]:
            raise Unknown
        one = target[:-2]

        def join(high: Any, low: Any) -> Any:
            upper, lower = (to_registers(one, x).astype(np.uint32) for x in (high, low))
            return (upper << np.uint32(16)) | lower

        return op.apply([source, source], join)
    return op.apply([source], _conversion(source, target, modifiers))


def _conversion(source: str, target: str, modifiers: list[str]) -> Callable[[Any], Any]:
    rounding = {"rzi": np.trunc, "rmi": np.floor, "rni": np.rint, "rpi": np.ceil}
    to_whole = next((rounding[m] for m in modifiers if m in rounding), None)
    flushes, saturates = "ftz" in modifiers, "sat" in modifiers
    dtype = np.dtype(NUMPY[target])

    def number(x: Any) -> Any:
        x = to_numbers(source, x)
        return flush(x) if flushes and source == "f32" else x

    if source in FLOATS and target in FLOATS:

        def between_floats(x: Any) -> Any:
            x = number(x) if to_whole is None else to_whole(number(x))
            result = to_registers(target, x.astype(np.float64) if target == "f64" else x)
            result = saturate(result) if saturates else result
            return flush(result) if flushes and target == "f32" else result

        return between_floats
    if source in FLOATS:
        if to_whole is None:
            raise Unknown
        info = np.iinfo(dtype)
        of_nan = 0 if source != "f64" and dtype.itemsize < 8 else 1 << (8 * dtype.itemsize - 1)
        of_nan = np.array(of_nan, f"u{dtype.itemsize}").view(dtype)[()]

        def to_integer(x: Any) -> Any:
            whole = to_whole(number(x)).astype(np.float64)
            low, high = whole <= float(info.min), whole >= float(info.max)
            inside = np.where(low | high | np.isnan(whole), 0, whole).astype(dtype)
            result = np.where(low, dtype.type(info.min), np.where(high, dtype.type(info.max), inside))
            return np.where(np.isnan(whole), of_nan, result).astype(dtype)

        return to_integer
    if target in FLOATS:
        exact = dtype if target in ("f32", "f64") else np.dtype(np.float64)
        return lambda x: to_registers(target, x.astype(exact))
    if saturates:
        of_source, of_target = np.iinfo(NUMPY[source]), np.iinfo(dtype)
        low, high = max(of_source.min, of_target.min), min(of_source.max, of_target.max)
        return lambda x: np.clip(x, x.dtype.type(low), x.dtype.type(high)).astype(dtype)
    return lambda x: x.astype(dtype)


def to_space(op: Operation) -> Action:
    """``cvta``: here every space has the addresses of this process."""
    only(op.modifiers, {"to", "global"})
    return op.apply([op.kind], lambda x: x)
