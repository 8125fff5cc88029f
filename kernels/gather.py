"""The operator in plain PyTorch without ``grid_sample``: the neighbours of a sample are rows, taken by their number.

The function and the gradients of :mod:`.reference`, made of what every runtime has: arithmetic, comparisons, Gather,
MatMul. Exported detectors hold it, because TensorRT 10.14 to 11.1 computes the GridSample nodes of deformable attention
wrong, and says nothing (NVIDIA/TensorRT issue 4813). It holds the four neighbours of all samples of a level, and its
autograd those of all levels, so that ``auto`` never takes it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, Functions
from .contract import Inputs, Sizes
from .reference import extents, host_sizes, settle, weighted_locations


def ms_deform_attn(
    inputs: Inputs,
    value: Tensor,
    shapes: Tensor | None,
    sizes: Sizes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Shapes as in :mod:`.contract`; returns (B, Q, H*D) in value's dtype."""
    if shapes is not None:
        sizes = host_sizes(shapes, inputs.S)
    B, Q, S, H, D = inputs.B, inputs.Q, inputs.S, inputs.H, inputs.D
    compute, device = inputs.compute_dtype, value.device
    # a row for each head of each pixel, and last a row of zeros, which is what lies outside
    rows = F.pad(value.to(compute).reshape(B * S * H, D), (0, 0, 0, 1))
    batch, head = torch.arange(B, device=device), torch.arange(H, device=device)
    row = (batch[:, None] * S * H + head)[:, None, :, None]  # (B, 1, H, 1): of pixel 0, then of each level's first
    grid, weights = settle(sampling_locations.to(compute), attention_weights.to(compute))
    # a pixel's centre is a whole number
    pixels = ((grid + 1) * extents(sizes, device, compute)[:, None] - 1) / 2
    output = rows.new_zeros(B, Q, H, 1, D)
    for level, (h, w) in enumerate(sizes):
        x, y = pixels[:, :, :, level].unbind(-1)  # (B, Q, H, P)
        left, top = x.floor(), y.floor()
        found, shares = [], []
        for row_y, share_y in ((top, top + 1 - y), (top + 1, y - top)):
            for column_x, share_x in ((left, left + 1 - x), (left + 1, x - left)):
                inside = (column_x >= 0) & (column_x < w) & (row_y >= 0) & (row_y < h)
                found.append(torch.where(inside, (row_y * w + column_x).long() * H + row, B * S * H))
                shares.append(share_x * share_y * weights[:, :, :, level])
        output = output + torch.cat(shares, -1)[..., None, :] @ rows[torch.cat(found, -1)]
        row = row + h * w * H
    return output.reshape(B, Q, H * D).to(value.dtype)


def fused_ms_deform_attn(
    inputs: Inputs,
    value: Tensor,
    shapes: Tensor | None,
    sizes: Sizes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Locations and softmax, then :func:`ms_deform_attn`."""
    if shapes is not None:
        sizes = host_sizes(shapes, inputs.S)
    points = weighted_locations(inputs, sizes, reference_points, sampling_offsets, attention_logits)
    return ms_deform_attn(inputs, value, None, sizes, *points)


BACKEND = Backend(
    "gather",
    -1,
    "rows by number in plain PyTorch, for exports",
    lambda: None,
    lambda inputs: None,
    lambda: Functions(ms_deform_attn, fused_ms_deform_attn),
)
