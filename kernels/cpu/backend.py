"""What the registry knows of the CPU backend; importing it costs no llvmlite."""

import platform

from ..backend import Backend, Functions, import_failure
from ..contract import Inputs

INSTALL = "pip install 'msdeform[cpu]' brings it, and CPU tensors take a tenth of the time or less"


def unavailable() -> str | None:
    try:
        import llvmlite.binding as llvm
    except Exception as error:  # a broken installation raises whatever it likes
        return f"{import_failure('llvmlite', 'llvmlite', error)} ({INSTALL})"
    if platform.machine().lower() in ("x86_64", "amd64") and not llvm.get_host_cpu_features().get("f16c"):
        return "the processor has no F16C instructions, which x86 processors have had since 2013"
    return None


def refuses(inputs: Inputs) -> str | None:
    if inputs.device_type != "cpu":
        return f"the tensors are on {inputs.device_type}, not on the CPU"
    if inputs.S >= 2**31:
        return f"the levels have S={inputs.S} pixels together, and the most is {2**31 - 1}"
    return None


def load() -> Functions:
    from ..autograd import Operator
    from .launch import prepare_backward, prepare_forward

    return Functions(*(Operator("cpu", fused, prepare_forward, prepare_backward) for fused in (False, True)))


BACKEND = Backend("cpu", 10, "compiled for this processor by LLVM, forward and backward", unavailable, refuses, load)
