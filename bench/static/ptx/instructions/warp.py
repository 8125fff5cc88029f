"""What the lanes of a warp tell each other: shuffles, votes, reductions, matches."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..memory import Array, check
from ..state import Action, Lanes, State
from .access import UPDATES
from .operation import Operation, Unknown


def _source_lane(mode: str, lane: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """Which lane of its warp each lane reads, and whether that lies within its segment."""
    segment, clamp = (c >> np.uint32(8)) & np.uint32(31), c & np.uint32(31)
    b, lane = (b & np.uint32(31)).astype(np.int64), lane.astype(np.int64)
    lowest = lane & segment
    source = {"idx": lowest | (b & ~segment), "bfly": lane ^ b, "down": lane + b, "up": lane - b}[mode]
    highest = lowest | (clamp & ~segment)
    inside = source >= highest if mode == "up" else source <= highest
    return np.where(inside, source, lane), inside


def shuffle(op: Operation) -> Action:
    """``shfl.sync``."""
    mode = op.parts[2]
    number = op.kernel.register(op.operands[1])
    if op.parts[1] != "sync" or mode not in ("up", "down", "idx", "bfly") or len(op.operands) != 5 or number is None:
        raise Unknown
    target, _, inside_name = op.operands[0].partition("|")
    write, write_inside = op.writer(target), op.writer(inside_name or "_")
    b, c = (op.reader(token, "u32") for token in op.operands[2:4])

    def act(state: State, lanes: Lanes) -> None:
        lane = state.of(state.special["laneid"], lanes)
        source, inside = _source_lane(mode, lane, b(state, lanes), c(state, lanes))
        state.require_defined("a lane's number")
        where = state.of(state.first_of_warp, lanes) + source
        if lanes is not None:
            takes_part = np.zeros(state.lanes, np.bool_)
            takes_part[lanes] = True
            check(takes_part[where], lambda i: f"shuffles from lane {int(source[i])}, which takes no part")
        values = state.register(number, None)[where]  # of all lanes: what counts is whether the source has set it
        set_by = state.set_by.get(number)
        state.undefined = None if set_by is None or set_by[where].all() else ~set_by[where]
        write(state, lanes, values)
        write_inside(state, lanes, inside)
        if state.counters is not None:
            state.counters.wavefronts_by["shuffle"] += state.warps(lanes)

    return act


_VOTES: dict[str, Callable[[Array], Any]] = {
    "all": lambda x: x.all(1),
    "any": lambda x: x.any(1),
    "uni": lambda x: x.all(1) | ~x.any(1),
    "ballot": lambda x: np.bitwise_or.reduce(x, 1),
}


def combine(op: Operation) -> Action:
    """``vote.sync`` and ``redux.sync``: every lane gets a function of what the lanes of its warp read."""
    if op.parts[1] != "sync" or (op.name == "redux" and len(op.parts) != 4):
        raise Unknown
    mask, write = op.reader(op.operands[2], "u32"), op.writer(op.operands[0])
    if op.name == "redux":
        read, update = op.reader(op.operands[1], op.kind), UPDATES[op.parts[2]]
        function: Callable[[Array], Any] = lambda x: update.reduce(x, 1).astype(x.dtype)  # noqa: E731
    else:
        read, function = op.condition(op.operands[1]), _VOTES[op.parts[2]]

    def act(state: State, lanes: Lanes) -> None:
        values, masks = state.per_lane(read(state, lanes), lanes), mask(state, lanes)
        state.require_defined("what lanes tell each other")
        if op.parts[2] == "ballot":
            values = np.where(values, state.own_bit(lanes), np.uint32(0))
        if lanes is None and np.ndim(masks) == 0 and masks == np.uint32(0xFFFFFFFF):
            result = np.repeat(function(values.reshape(-1, 32)), 32)
        else:
            first = state.of(state.first_of_warp, lanes)
            keys, group = np.unique((first << 32) | state.per_lane(masks, lanes).astype(np.int64), return_inverse=True)
            result = np.concatenate([function(values[group == k][None]) for k in range(len(keys))])[group]
        write(state, lanes, result)

    return act


def match(op: Operation) -> Action:
    """``match.any.sync``: which lanes have the same value."""
    if op.parts[1:3] != ["any", "sync"]:
        raise Unknown
    read, mask = op.reader(op.operands[1], op.kind), op.reader(op.operands[2], "u32")
    write = op.writer(op.operands[0])

    def act(state: State, lanes: Lanes) -> None:
        values, masks = (state.per_lane(r(state, lanes), lanes) for r in (read, mask))
        warps = state.of(state.first_of_warp, lanes)
        same = (values[:, None] == values) & (masks[:, None] == masks) & (warps[:, None] == warps)
        write(state, lanes, np.bitwise_or.reduce(np.where(same, state.own_bit(lanes), np.uint32(0)), 1))

    return act


def active(op: Operation) -> Action:
    """``activemask``."""
    write = op.writer(op.operands[0])
    return lambda state, lanes: write(state, lanes, state.members(lanes))
