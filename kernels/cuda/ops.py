"""The CUDA backend as the registry loads it.

The kernels implement ``ms_deform_attn`` alone, as the operator they are a comparison for does; the fused function is
composed here: locations and softmax in PyTorch, which differentiates them, around the same kernels.
"""

from torch import Tensor

from ..contract import Inputs, Sizes
from ..ops import levels_on, register
from ..reference import locate
from .launch import backward, forward

ms_deform_attn = register("cuda", forward, backward)


def fused_ms_deform_attn(
    inputs: Inputs,
    value: Tensor,
    shapes: Tensor | None,
    sizes: Sizes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Locations and softmax, then ``ms_deform_attn``; level sizes that are on the device stay there."""
    compute = inputs.compute_dtype
    levels = levels_on(value.device, shapes, [size for pair in sizes for size in pair])
    extent = levels.flip(-1).to(compute)  # (h, w) -> (w, h)
    locations = locate(reference_points.to(compute), sampling_offsets.to(compute), extent)
    weights = attention_logits.to(compute).flatten(3).softmax(-1).view(attention_logits.shape)
    return ms_deform_attn(inputs, value, shapes, sizes, locations, weights)
