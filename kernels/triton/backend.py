"""What the registry knows of the Triton backend; importing it costs no Triton."""

import torch

from ..backend import Backend, Functions, import_failure, too_wide
from ..contract import Inputs
from .interpreter import interpreting


def unavailable() -> str | None:
    try:
        import triton  # noqa: F401
    except Exception as error:  # a broken installation raises whatever it likes
        return import_failure("Triton", "triton", error)
    if not interpreting() and not torch.cuda.is_available():
        return "no CUDA device (on a CPU, TRITON_INTERPRET=1 runs the kernels in Triton's slow interpreter)"
    return None


def refuses(inputs: Inputs) -> str | None:
    if inputs.device_type == "cuda" or (interpreting() and inputs.device_type == "cpu"):
        return too_wide(inputs)
    return f"the tensors are on {inputs.device_type}, not on a CUDA device"


def load() -> Functions:
    from ..autograd import Operator
    from .launch import prepare_backward, prepare_forward

    return Functions(*(Operator("triton", fused, prepare_forward, prepare_backward) for fused in (False, True)))


BACKEND = Backend(
    "triton",
    -1 if interpreting() else 20,
    "fused Triton kernels, forward and backward",
    unavailable,
    refuses,
    load,
)
