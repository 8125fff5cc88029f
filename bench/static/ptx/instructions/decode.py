"""The table of instructions: which function decodes an opcode."""

from collections.abc import Callable

from ..memory import LaneError
from ..parse import Fault, Instruction, Kernel
from ..state import Action, Lanes, Read, State
from . import access, floats, integers, moves, warp
from .operation import FLOATS, Operation, Unknown


def _arithmetic(op: Operation) -> Action:
    return (floats if op.kind in FLOATS else integers).arithmetic(op)


def _nothing(op: Operation) -> Action:
    return lambda state, lanes: None


def _trap(op: Operation) -> Action:
    def act(state: State, lanes: Lanes) -> None:
        raise LaneError(0, "stops the kernel")

    return act


_DECODERS: dict[str, Callable[[Operation], Action]] = {
    **dict.fromkeys(floats.NAMES | integers.NAMES, _arithmetic),
    **dict.fromkeys(("shl", "shr", "bfe", "bfi", "prmt", "popc", "clz", "brev"), integers.bits),
    **dict.fromkeys(("atom", "red"), access.atomic),
    **dict.fromkeys(("ldmatrix", "stmatrix"), access.matrix),
    **dict.fromkeys(("membar", "fence", "nanosleep", "griddepcontrol"), _nothing),
    # the machine itself changes the order of execution
    **dict.fromkeys(("bra", "ret", "exit", "bar", "barrier"), _nothing),
    "shf": integers.funnel_shift,
    "lop3": integers.logic_table,
    "setp": moves.compare,
    "selp": moves.select,
    "mov": moves.move,
    "cvt": moves.convert,
    "cvta": moves.to_space,
    "ld": access.load,
    "st": access.store,
    "shfl": warp.shuffle,
    "vote": warp.vote,
    "redux": warp.reduce,
    "match": warp.match,
    "activemask": warp.active,
    "trap": _trap,
}


def decode(kernel: Kernel, instruction: Instruction) -> Action:
    """What an instruction does to the lanes that execute it.

    Raises:
        Fault: the instruction is not known; its name is in the message.
    """
    operation = Operation(kernel, instruction)
    try:
        return _DECODERS[operation.name](operation)
    except (Unknown, KeyError, IndexError, ValueError):
        raise Fault(f"{kernel.name}: unknown instruction {instruction.text!r}") from None
    except Fault as fault:
        raise Fault(f"{kernel.name}: {instruction.text!r}: {fault}") from None


def member_mask(kernel: Kernel, instruction: Instruction) -> Read | None:
    """How the lanes that an instruction waits for are read, or None if it waits for none."""
    operation = Operation(kernel, instruction)
    if operation.name in ("shfl", "vote", "redux", "match") or instruction.opcode == "bar.warp.sync":
        return operation.reader(instruction.operands[-1], "u32")
    if operation.name in ("ldmatrix", "stmatrix"):
        return operation.reader("0xffffffff", "u32")
    return None
