"""The table of instructions: which function decodes an opcode."""

from collections.abc import Callable

from ..memory import LaneError
from ..parse import Fault, Instruction, Kernel
from ..state import Action, Lanes, Read, State
from . import access, moves, warp
from .arithmetic import NAMES, arithmetic
from .operation import Operation, Unknown


def _nothing(op: Operation) -> Action:
    return lambda state, lanes: None


def _barrier(op: Operation) -> Action:
    return _nothing(op) if "warp" in op.parts else lambda state, lanes: state.pass_barrier(lanes)


def _trap(op: Operation) -> Action:
    def act(state: State, lanes: Lanes) -> None:
        raise LaneError(0, "stops the kernel")

    return act


_DECODERS: dict[str, Callable[[Operation], Action]] = {
    **dict.fromkeys(NAMES, arithmetic),
    **dict.fromkeys(("atom", "red"), access.atomic),
    **dict.fromkeys(("ldmatrix", "stmatrix"), access.matrix),
    **dict.fromkeys(("vote", "redux"), warp.combine),
    **dict.fromkeys(("membar", "fence", "nanosleep", "griddepcontrol"), _nothing),
    # the machine itself changes the order of execution
    **dict.fromkeys(("bra", "ret", "exit"), _nothing),
    **dict.fromkeys(("bar", "barrier"), _barrier),
    "setp": moves.compare,
    "selp": moves.select,
    "mov": moves.move,
    "cvt": moves.convert,
    "ld": access.load,
    "st": access.store,
    "shfl": warp.shuffle,
    "match": warp.match,
    "activemask": warp.active,
    "trap": _trap,
}


def decode(kernel: Kernel, instruction: Instruction) -> tuple[Action, Read | None]:
    """What an instruction does to the lanes that execute it, and how the lanes that it waits for are read, if for any.

    Raises:
        Fault: the instruction is not known; its name is in the message.
    """
    op = Operation(kernel, instruction)
    mask = None
    if op.name in ("shfl", "vote", "redux", "match") or instruction.opcode == "bar.warp.sync":
        mask = instruction.operands[-1]
    elif op.name in ("ldmatrix", "stmatrix"):
        mask = "0xffffffff"
    try:
        return _DECODERS[op.name](op), None if mask is None else op.reader(mask, "u32")
    except (Unknown, KeyError, IndexError, ValueError):
        raise Fault(f"{kernel.name}: unknown instruction {instruction.text!r}") from None
    except Fault as fault:
        raise Fault(f"{kernel.name}: {instruction.text!r}: {fault}") from None
