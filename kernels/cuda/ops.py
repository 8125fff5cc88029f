"""The CUDA backend's two functions.

The kernels implement ``ms_deform_attn`` alone, as the operator they are a comparison for does; the fused function is
composed here: locations and softmax in PyTorch, which differentiates them, around the same kernels.
"""

import torch
from torch import Tensor

from ..autograd import Operator
from ..contract import Inputs, Sizes
from ..pytorch.reference import locate
from .launch import backward, forward

ms_deform_attn = Operator(
    "cuda",
    False,
    lambda levels, tensors: forward,
    lambda _, __, ___, needs: lambda grad_output, levels, tensors: backward(grad_output, levels, tensors, needs),
)


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
    # (w, h) of each level, filled in on the device: a copy from the host cannot be captured in a graph
    extent = (
        torch.stack([value.new_full((), size, dtype=compute) for h, w in sizes for size in (w, h)]).view(-1, 2)
        if shapes is None
        else shapes.flip(-1).to(compute)
    )
    locations = locate(reference_points.to(compute), sampling_offsets.to(compute), extent)
    weights = attention_logits.to(compute).flatten(3).softmax(-1).view(attention_logits.shape)
    return ms_deform_attn(inputs, value, shapes, sizes, locations, weights)
