"""The operator in plain PyTorch: ``grid_sample`` per level, then the weighted sum over points.

    output[b, q, h] = sum over l, p of weight[b, q, h, l, p] * bilinear(value of level l, location[b, q, h, l, p])

(Zhu et al., Deformable DETR, equation 3.) Any device, any of the four float dtypes, autograd by PyTorch. Locations,
interpolation and accumulation are float32 (float64 if any input is); the result is rounded once to value's dtype.
This is the definition that the other backends are held against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, Functions
from .contract import Inputs, Sizes


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
    B, Q, H, D = inputs.B, inputs.Q, inputs.H, inputs.D
    if B == 0 or Q == 0:  # grid_sample refuses empty batches; the zero keeps the graph
        nothing = value.sum() + sampling_locations.sum() + attention_weights.sum()
        return value.new_zeros(B, Q, H * D) + 0 * nothing.to(value.dtype)

    compute = inputs.compute_dtype
    # (B, S, H, D) -> (B*H, D, S): one image per head
    maps = value.to(compute).permute(0, 2, 3, 1).reshape(B * H, D, inputs.S)
    weights = attention_weights.to(compute)
    grid, poison = _grid(sampling_locations.to(compute), sizes)
    # zero, or NaN for each (query, head) with a NaN location: (B*H, 1, Q)
    output = (weights * poison).sum((3, 4)).transpose(1, 2).reshape(B * H, 1, Q)
    start = 0
    for level, (h, w) in enumerate(sizes):
        level_map = maps[:, :, start : start + h * w].reshape(B * H, D, h, w)
        sampled = F.grid_sample(
            level_map, _per_head(grid[:, :, :, level]), mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (B*H, D, Q, P)
        level_weights = _per_head(weights[:, :, :, level])  # (B*H, Q, P)
        output = output + (sampled * level_weights[:, None]).sum(-1)
        start += h * w
    return output.reshape(B, H, D, Q).permute(0, 3, 1, 2).reshape(B, Q, H * D).to(value.dtype)


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
    compute = inputs.compute_dtype
    extent = extents(sizes, value.device, compute)
    locations = locate(reference_points.to(compute), sampling_offsets.to(compute), extent)
    weights = attention_logits.to(compute).flatten(3).softmax(-1).view(attention_logits.shape)
    return ms_deform_attn(inputs, value, None, sizes, locations, weights)


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


def _grid(locations: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """grid_sample's grid for locations (B, Q, H, L, P, 2), and an addend (B, Q, H, L, P): zero, or NaN where a location
    is NaN.

    grid_sample's own answer for infinite coordinates is NaN and its gradients at NaN differ by code path, so both are
    settled before it: a location more than two pixels outside is moved to there, where the sample is zero and the
    clamp's gradient is zero; a NaN is moved there too, and its NaN travels in the addend, gradient included.
    """
    extent = extents(sizes, locations.device, locations.dtype)
    margin = (2.0 / extent)[:, None]  # two pixels beyond the border in normalised units, (L, 1, 2)
    nan = locations.isnan()
    either = nan.any(-1, keepdim=True)
    settled = torch.where(nan, -margin, locations.clamp(-margin, 1 + margin))
    # the product's gradient is NaN where the factor is, and zero elsewhere
    factor = torch.zeros_like(settled[..., 0]).masked_fill(either[..., 0], float("nan"))
    # not what is settled: a clamp would hold the gradient of the other coordinate at zero
    poison = torch.where(either, locations, settled).sum(-1) * factor
    return 2 * settled - 1, poison


def _per_head(tensor: Tensor) -> Tensor:
    """(B, Q, H, ...) -> (B*H, Q, ...)"""
    return tensor.transpose(1, 2).flatten(0, 1)


BACKEND = Backend(
    "reference",
    0,
    "grid_sample in plain PyTorch",
    lambda: None,
    lambda inputs: None,
    lambda: Functions(ms_deform_attn, fused_ms_deform_attn),
)
