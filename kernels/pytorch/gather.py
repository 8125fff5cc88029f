"""The operator in plain PyTorch without ``grid_sample``: the neighbours of a sample are rows, taken by their number.

The function and the gradients of :mod:`.reference`, made of what every runtime has: arithmetic, comparisons, Gather,
MatMul. Exported detectors hold it, because TensorRT 10.14 to 11.1 computes the GridSample nodes of deformable attention
wrong, and says nothing (NVIDIA/TensorRT issue 4813). It holds the four neighbours of all samples of a level, and its
autograd those of all levels, so that ``auto`` never takes it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import Backend, Functions
from ..contract import Inputs, Sizes
from .reference import extents, fused, host_sizes, settle


def ms_deform_attn(
    inputs: Inputs,
    value: Tensor,
    shapes: Tensor | None,
    sizes: Sizes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Shapes as in :mod:`..contract`; returns (B, Q, H*D) in value's dtype."""
    if shapes is not None:
        sizes = host_sizes(shapes, inputs.S)
    B, Q, S, H, D = inputs.B, inputs.Q, inputs.S, inputs.H, inputs.D
    compute, device = inputs.compute_dtype, value.device
    # a row for each head of each pixel, and last a row of zeros, which is what lies outside
    rows = F.pad(value.to(compute).reshape(B * S * H, D), (0, 0, 0, 1))
    extent = extents(sizes, device, torch.int64).view(-1, 1, 1, 1, 1, 2)
    w, h = extent.unbind(-1)  # (L, 1, 1, 1, 1)
    area = w * h
    batch, head = torch.arange(B, device=device), torch.arange(H, device=device)
    # of the first pixel of each level, (L, B, 1, H, 1)
    first = ((batch * S).view(-1, 1, 1, 1) + (area.cumsum(0) - area)) * H + head[:, None]

    grid, weights = settle(sampling_locations.to(compute).movedim(3, 0), attention_weights.to(compute).movedim(3, 0))
    # a pixel's centre is a whole number
    x, y = (((grid + 1) * extent - 1) / 2).unbind(-1)  # (L, B, Q, H, P)
    left, top = x.floor(), y.floor()
    row = (top * w + left).long() * H + first
    columns = [((left + i >= 0) & (left + i < w), share, i * H) for i, share in enumerate((left + 1 - x, x - left))]
    lines = [((top + i >= 0) & (top + i < h), share, i * H * w) for i, share in enumerate((top + 1 - y, y - top))]
    found, shares = [], []
    for inside_y, share_y, down in lines:
        for inside_x, share_x, right in columns:
            found.append(torch.where(inside_x & inside_y, row + (down + right), B * S * H))
            shares.append(share_x * share_y * weights)
    # (L, B, Q, H, 4 * P), level by level: the rows of all would be L times the memory
    levels = zip(torch.cat(found, -1).unbind(), torch.cat(shares, -1).unbind(), strict=True)
    output = rows.new_zeros(B, Q, H, 1, D)
    for row, share in levels:
        output = output + share[..., None, :] @ rows[row]
    return output.reshape(B, Q, H * D).to(value.dtype)


BACKEND = Backend(
    "gather",
    -1,
    "rows by number in plain PyTorch, for exports",
    lambda: None,
    lambda inputs: None,
    lambda: Functions(ms_deform_attn, fused(ms_deform_attn)),
)
