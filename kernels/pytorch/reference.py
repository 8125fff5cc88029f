"""The operator in plain PyTorch: ``grid_sample`` per level, then the weighted sum over points.

    output[b, q, h] = sum over l, p of weight[b, q, h, l, p] * bilinear(value of level l, location[b, q, h, l, p])

(Zhu et al., Deformable DETR, equation 3.) Any device, any of the four float dtypes, autograd by PyTorch. Locations,
interpolation and accumulation are float32 (float64 if any input is); the result is rounded once to value's dtype.
This is the definition that the other backends are held against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import Backend, Functions, Implementation
from ..contract import Inputs, Sizes


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
    B, Q, H, D = inputs.B, inputs.Q, inputs.H, inputs.D
    if B == 0 or Q == 0:  # grid_sample refuses empty batches; the zero keeps the graph
        nothing = value.sum() + sampling_locations.sum() + attention_weights.sum()
        return value.new_zeros(B, Q, H * D) + 0 * nothing.to(value.dtype)

    compute = inputs.compute_dtype
    # (B, S, H, D) -> (B*H, D, S): one image per head. Channels stay side by side in memory: a batch of several has
    # to be copied, and is in rows of D
    maps = value.to(compute).transpose(1, 2).flatten(0, 1).transpose(1, 2)
    grid, weights = settle(_by_level(sampling_locations.to(compute)), _by_level(attention_weights.to(compute)))
    output = maps.new_zeros(B * H, D, Q)
    # split and unbind, not slices, whose gradients are as large as the whole
    levels = zip(sizes, maps.split([h * w for h, w in sizes], -1), grid.unbind(), weights.unbind(), strict=True)
    for (h, w), level_map, level_grid, level_weights in levels:
        sampled = F.grid_sample(
            level_map.reshape(B * H, D, h, w), level_grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (B*H, D, P, Q)
        output = output + (sampled * level_weights[:, None]).sum(2)
    return output.reshape(B, H, D, Q).permute(0, 3, 1, 2).reshape(B, Q, H * D).to(value.dtype)


def fused(plain: Implementation) -> Implementation:
    """Locations and softmax, then the function `plain` of them."""

    def fused_ms_deform_attn(
        inputs: Inputs,
        value: Tensor,
        shapes: Tensor | None,
        sizes: Sizes,
        reference_points: Tensor,
        sampling_offsets: Tensor,
        attention_logits: Tensor,
    ) -> Tensor:
        if shapes is not None:
            sizes = host_sizes(shapes, inputs.S)
        points = weighted_locations(inputs, sizes, reference_points, sampling_offsets, attention_logits)
        return plain(inputs, value, None, sizes, *points)

    return fused_ms_deform_attn


def weighted_locations(
    inputs: Inputs, sizes: Sizes, reference_points: Tensor, sampling_offsets: Tensor, attention_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Locations (B, Q, H, L, P, 2) and weights (B, Q, H, L, P) of the fused function's arguments."""
    compute = inputs.compute_dtype
    extent = extents(sizes, sampling_offsets.device, compute)
    locations = locate(reference_points.to(compute), sampling_offsets.to(compute), extent)
    return locations, attention_logits.to(compute).flatten(3).softmax(-1).view(attention_logits.shape)


def locate(reference_points: Tensor, sampling_offsets: Tensor, extent: Tensor) -> Tensor:
    """Sampling locations (B, Q, H, L, P, 2) from reference points (B, Q, L, 2 or 4) and offsets; extent (L, 2) is
    (w, h) of each level. Offsets count pixels of the level for points, and half boxes over P for boxes."""
    if reference_points.shape[-1] == 2:
        return reference_points[:, :, None, :, None, :] + sampling_offsets / extent[None, None, None, :, None, :]
    P = sampling_offsets.shape[4]
    centre, size = reference_points[:, :, None, :, None, :2], reference_points[:, :, None, :, None, 2:]
    return centre + sampling_offsets / P * size * 0.5


def extents(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(w, h) of each level, (L, 2): the order of coordinates, which is not the order of sizes."""
    return torch.tensor([(w, h) for h, w in sizes], dtype=dtype, device=device)


def host_sizes(shapes: Tensor, S: int) -> Sizes:
    """Level sizes as Python ints. On a device tensor this synchronises, which only the reference does."""
    sizes = tuple((int(h), int(w)) for h, w in shapes.tolist())
    if min(min(pair) for pair in sizes) < 1 or sum(h * w for h, w in sizes) != S:
        raise ValueError(f"spatial_shapes: expected level sizes of at least 1 that sum to S={S} of value, got {sizes}")
    return sizes


def _by_level(tensor: Tensor) -> Tensor:
    """(B, Q, H, L, P, ...) -> (L, B*H, P, Q, ...), contiguous. Queries come last because a sum over points is several
    times faster along rows of queries than along rows of points."""
    return tensor.movedim((3, 0, 2, 4, 1), (0, 1, 2, 3, 4)).flatten(1, 2).contiguous()


def settle(locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """grid_sample's grid (..., 2) for locations (..., 2), and the weights (...), NaN where a location is.

    grid_sample's own answers at coordinates that are not finite differ by device and code path, so it never sees any:
    whatever lies two widths or heights of the level outside it, or is NaN, is moved to one place there, where samples
    and gradients are zero. A NaN goes on in the weight; and as a factor of the location, since zero times NaN, the
    gradient, is NaN.
    """
    nan = locations[..., 0].isnan() | locations[..., 1].isnan()
    factor = torch.ones_like(weights).masked_fill(nan, float("nan"))
    grid = locations * (2 * factor)[..., None] - 1  # [0, 1] becomes [-1, 1]
    return grid.masked_fill(~(grid.abs() < 5), -5), weights * factor


BACKEND = Backend(
    "reference",
    0,
    "grid_sample in plain PyTorch",
    lambda: None,
    lambda inputs: None,
    lambda: Functions(ms_deform_attn, fused(ms_deform_attn)),
)
