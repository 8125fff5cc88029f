"""What an attention module computes on the way to its output, made anew in plain PyTorch from the module's inputs.

A fused kernel never forms locations, weights or probabilities; these functions do, with the module's own linear layers,
so that they are the same whatever backend ran. Deformable attention is sparse attention: the sum over points of
``weight * bilinear`` is a row of a matrix ``A`` (Q, S) whose entries are the weights times the coefficients of the four
pixels around each point, and ``A @ value`` is the operator's output (Zhu et al. 2021, equation 3).
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.reference import extents, locate
from ...models.attention import MSDeformAttn
from ...models.layers.geometry import at_least_float32

Shapes = tuple[tuple[int, int], ...]

# an edit of what was sampled, (locations, weights) -> the same; and of probabilities, (weights, allowed) -> weights
SampleEdit = Callable[[MSDeformAttn, Tensor, Tensor], tuple[Tensor, Tensor]]
WeightEdit = Callable[[Tensor, Tensor], Tensor]


def shapes_of(spatial_shapes: Shapes | Tensor) -> Shapes:
    """Level sizes as Python ints."""
    rows = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    return tuple((int(h), int(w)) for h, w in rows)


def sample(module: MSDeformAttn, query: Tensor, reference: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    """Where a module samples and with what weights.

    query (B, Q, C), reference (B, Q, L, 2 or 4). Returns locations (B, Q, H, L, P, 2), xy, normalised to each padded
    level, and weights (B, Q, H, L, P), which sum to 1 over L and P; both at least float32.
    """
    offsets, logits = module.project_points(query)
    offsets, logits, reference = at_least_float32(offsets), at_least_float32(logits), at_least_float32(reference)
    locations = locate(reference, offsets, extents(shapes, query.device, offsets.dtype))
    return locations, logits.flatten(3).softmax(-1).view(logits.shape)


def probabilities(module: nn.MultiheadAttention, query: Tensor, key: Tensor, forbidden: Tensor) -> Tensor:
    """Softmax of scaled dot products, (B, H, Q, S), from query (B, Q, C) and key (B, S, C).

    `forbidden` (B or 1, H or 1, Q or 1, S) is True where not to look, or is added to the scores. Rows with nowhere to
    look are NaN, as PyTorch's.
    """
    scores = _in(module, query, 0) @ _in(module, key, 1).transpose(-1, -2)
    scores = scores / math.sqrt(module.head_dim)
    if forbidden.dtype == torch.bool:
        return scores.masked_fill(forbidden, -math.inf).softmax(-1)
    return (scores + forbidden).softmax(-1)


def dense_values(module: nn.MultiheadAttention, value: Tensor) -> Tensor:
    """(B, S, C) to the values that probabilities weigh, (B, H, S, D)."""
    return _in(module, value, 2)


def _in(module: nn.MultiheadAttention, x: Tensor, which: int) -> Tensor:
    """One of the three input projections (query, key, value): (B, n, C) to (B, H, n, D)."""
    width = module.embed_dim
    if module._qkv_same_embed_dim:
        weight = module.in_proj_weight[which * width : (which + 1) * width]
    else:
        weight = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)[which]
    bias = None if module.in_proj_bias is None else module.in_proj_bias[which * width : (which + 1) * width]
    return F.linear(x, weight, bias).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)


def corners(locations: Tensor, shapes: Shapes, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The four pixels around each location (..., L, P, 2), and their bilinear coefficients.

    Returns index (..., L, P, 4), int32 into S, and coefficient (..., L, P, 4); those outside their level have
    coefficient 0, as those of a location that is not finite. align_corners is False: pixel i's centre is at
    (i + 0.5) / size. With `level` (n,), int64, locations are (n, 2), one on each of these levels.
    """
    sizes = torch.tensor([(h, w, h * w) for h, w in shapes], device=locations.device)
    start = (sizes[:, 2].cumsum(0) - sizes[:, 2]).int()
    if level is None:
        sizes, start = sizes[:, None], start[:, None]
    else:
        sizes, start = sizes[level], start[level]
    (left, right), (left_share, right_share) = _sides(locations[..., 0], sizes[..., 1])
    (top, bottom), (top_share, bottom_share) = _sides(locations[..., 1], sizes[..., 0])
    width = sizes[..., 1].int()
    upper, lower = start + top * width, start + bottom * width
    index = torch.stack([upper + left, upper + right, lower + left, lower + right], -1)
    shares = [top_share * left_share, top_share * right_share, bottom_share * left_share, bottom_share * right_share]
    return index, torch.stack(shares, -1)


def _sides(place: Tensor, size: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Along one axis the two pixels around each place, normalised, and their shares; zeros where outside."""
    place = place * size - 0.5
    low = place.floor()
    high = low + 1
    low_inside, high_inside = (low >= 0) & (low < size), (high >= 0) & (high < size)
    return (
        (torch.where(low_inside, low, 0).int(), torch.where(high_inside, high, 0).int()),
        (torch.where(low_inside, high - place, 0), torch.where(high_inside, place - low, 0)),
    )


def allowed_coefficients(index: Tensor, coefficient: Tensor, mask: Tensor | None) -> Tensor:
    """Coefficients (B, ...) without those of padded pixels; `mask` (B, S) is True where padded.

    The value there is zero, so that the output is the same with and without them; attention to nothing is none.
    """
    if mask is None or not mask.any():
        return coefficient
    padded = mask.gather(1, index.flatten(1).long()).view(index.shape)
    return coefficient.masked_fill(padded, 0)


def scatter(index: Tensor, amount: Tensor, size: int) -> Tensor:
    """Adds `amount` (B, n, ...) up at `index` (B, n, ...), for each B and n: (B, n, size)."""
    dense = amount.new_zeros(*index.shape[:2], size)
    return dense.scatter_add_(2, index.flatten(2).long(), amount.flatten(2))


def corner_products(value: Tensor, grad: Tensor, index: Tensor) -> Tensor:
    """``g_q . v_j``, the gradient of the attention matrix, at the pixels that a query's points lie between.

    value (S, H, D), grad (Q, H, D), of the output before its projection, index (Q, H, K) into S. Returns (Q, H, K).

    The products are the gradient of an embedding bag's weights, which PyTorch computes without gathering the rows.
    """
    S, H, D = value.shape
    rows = (index.long() * H + torch.arange(H, device=index.device)[:, None]).flatten(0, 1)  # into value as (S*H, D)
    weights = value.new_zeros(rows.shape).requires_grad_()
    with torch.enable_grad():
        bags = F.embedding_bag(rows, value.detach().reshape(S * H, D), per_sample_weights=weights, mode="sum")
    (products,) = torch.autograd.grad(bags, weights, grad.detach().reshape(-1, D).to(value.dtype))
    return products.view(index.shape)


def share_of_levels(shapes: Sequence[tuple[int, int]]) -> list[slice]:
    """Where each level's pixels lie among S."""
    ends = torch.tensor([h * w for h, w in shapes]).cumsum(0).tolist()
    return [slice(end - h * w, end) for end, (h, w) in zip(ends, shapes, strict=True)]
