"""What the registry knows of the CUDA backend; importing it costs no cuda.core."""

from ..backend import Backend, Functions, too_wide
from ..contract import Inputs
from .compile import unavailable


def refuses(inputs: Inputs) -> str | None:
    if inputs.device_type != "cuda":
        return f"the tensors are on {inputs.device_type}, not on a CUDA device"
    return too_wide(inputs)


def load() -> Functions:
    from .ops import fused_ms_deform_attn, ms_deform_attn

    return Functions(ms_deform_attn, fused_ms_deform_attn)


BACKEND = Backend(
    "cuda",
    10,
    "CUDA C++ in the classic one-thread-per-channel form, compiled by NVRTC",
    unavailable,
    refuses,
    load,
)
