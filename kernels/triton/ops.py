"""The Triton backend as the registry loads it: its four functions as PyTorch operators."""

from ..ops import Functions, register
from .launch import backward, forward, fused_backward, fused_forward

ms_deform_attn, fused_ms_deform_attn = register("triton", Functions(forward, backward, fused_forward, fused_backward))
