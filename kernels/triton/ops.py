"""The Triton backend as the registry loads it: its four functions as PyTorch operators."""

from ..ops import register, register_fused
from . import plan
from .launch import backward, forward, fused_backward, fused_forward

ms_deform_attn = register("triton", forward, backward, plan.forward, plan.backward)
fused_ms_deform_attn = register_fused("triton", fused_forward, fused_backward, plan.fused_forward, plan.fused_backward)
