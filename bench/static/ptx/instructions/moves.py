"""Comparisons, selection, moves between registers, and conversions between types."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..state import Action, Lanes, State
from .access import UPDATES
from .floats import TO_REGISTERS, flush, saturate
from .operation import FLOATS, NUMPY, Operation, Unknown, only, vector

_ORDER: dict[str, Callable[..., Any]] = {
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
    "nan": lambda x, y: False,
    "num": lambda x, y: True,
}


def _comparison(name: str) -> Callable[..., Any]:
    """A comparison of floating-point numbers; false where either is NaN unless its name says otherwise."""
    holds = _ORDER[name.removesuffix("u")]
    if name in ("ne", "nan", "num") or (name.endswith("u") and name != "neu"):
        return lambda x, y: holds(x, y) ^ (np.isnan(x) | np.isnan(y))
    return holds


def compare(op: Operation) -> Action:
    """``setp``, which may combine its outcome with another predicate and set a second one to the opposite."""
    name, *rest = [part for part in op.modifiers if part != "ftz"]
    holds = _comparison(name) if op.kind in FLOATS else _ORDER[name]
    combine = UPDATES[rest[0]] if rest else None
    writes = [op.writer(target) for target in op.operands[0].split("|")]
    x, y = (op.number(token, op.kind) for token in op.operands[1:3])
    other = op.condition(op.operands[3]) if rest else None

    def act(state: State, lanes: Lanes) -> None:
        outcome = holds(x(state, lanes), y(state, lanes))
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
    if "{" not in target + source:
        return op.apply([op.kind], lambda x: x)
    names = vector(target if target.startswith("{") else source)
    whole, part = f"u{op.kind[1:]}", f"u{int(op.kind[1:]) // len(names)}"
    if target.startswith("{"):
        read, writes = op.reader(source, whole), [op.writer(name) for name in names]

        def take_apart(state: State, lanes: Lanes) -> None:
            columns = np.atleast_1d(read(state, lanes)).copy().view(NUMPY[part]).reshape(-1, len(names))
            for k, write in enumerate(writes):
                write(state, lanes, np.ascontiguousarray(columns[:, k]))

        return take_apart
    # the compiler packs a half that nobody reads from a register that nothing sets: NaN here, if it were read
    names = [name if name in op.kernel.set_registers or name[0] != "%" else "-1" for name in names]
    columns, write = op.columns(names, part), op.writer(target)
    return lambda state, lanes: write(state, lanes, columns(state, lanes).view(NUMPY[whole]).reshape(-1))


_TO_WHOLE = {"rzi": np.trunc, "rmi": np.floor, "rni": np.rint, "rpi": np.ceil}


def convert(op: Operation) -> Action:
    """``cvt``."""
    source, target, modifiers = op.parts[-1], op.parts[-2], op.parts[1:-2]
    only(modifiers, {*_TO_WHOLE, "rn", "ftz", "sat"})
    if target.endswith("x2"):
        if source != "f32" or modifiers != ["rn"]:
            raise Unknown
        of_two = lambda high, low: np.stack(np.broadcast_arrays(low, high), -1)  # noqa: E731
        return op.apply([source, source], of_two, result=target)
    dtype = np.dtype(NUMPY[target])
    steps: list[Callable[[Any], Any]] = [_TO_WHOLE[part] for part in modifiers if part in _TO_WHOLE]
    if "ftz" in modifiers and source == "f32":
        steps.insert(0, flush)
    if source in FLOATS and target not in FLOATS:
        if not steps or steps == [flush]:
            raise Unknown
        steps.append(_to_integer(dtype, wide=source == "f64" or dtype.itemsize == 8))
    elif source in FLOATS or target in FLOATS:
        narrow = target in TO_REGISTERS  # numbers from which `apply` rounds once
        if not narrow or source not in FLOATS:
            steps.append(lambda x: x.astype(np.float64 if narrow else dtype, copy=False))
        steps += [saturate] if "sat" in modifiers else []
        steps += [flush] if "ftz" in modifiers and target == "f32" else []
    elif "sat" in modifiers:
        of_source, of_target = np.iinfo(NUMPY[source]), np.iinfo(dtype)
        low, high = max(of_source.min, of_target.min), min(of_source.max, of_target.max)
        steps.append(lambda x: np.clip(x, x.dtype.type(low), x.dtype.type(high)).astype(dtype))
    else:
        return op.apply([source], lambda x: x.astype(dtype), result=target)

    def in_steps(x: Any) -> Any:
        for step in steps:
            x = step(x)
        return x

    return op.apply([source], in_steps, result=target)


def _to_integer(dtype: np.dtype, wide: bool) -> Callable[[Any], Any]:
    """Whole numbers as integers, at most the type's own; NaN is zero, or in a `wide` conversion the highest bit."""
    info = np.iinfo(dtype)
    of_nan = np.array(1 << (info.bits - 1) if wide else 0, f"u{dtype.itemsize}").view(dtype)[()]

    def to_integer(x: Any) -> Any:
        whole = x.astype(np.float64)
        low, high = whole <= float(info.min), whole >= float(info.max)
        inside = np.where(low | high | np.isnan(whole), 0, whole).astype(dtype)
        result = np.where(low, dtype.type(info.min), np.where(high, dtype.type(info.max), inside))
        return np.where(np.isnan(whole), of_nan, result).astype(dtype)

    return to_integer
