"""Attention as a matrix: dense, or of deformable attention sparse, by rows.

Deformable attention is sparse attention: the sum over points of ``weight * bilinear`` is a row of a matrix ``A`` (Q, S)
whose entries are the weights times the coefficients of the four pixels around each point, and ``A @ value`` is the
operator's output (Zhu et al. 2021, equation 3). A fused kernel forms neither; these functions do, in plain PyTorch.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor, nn

from ...models.attention import Shapes

# dense, or sparse by rows; on the CPU, where sparse products of rows from the left are fast in both directions
Matrix = Tensor | csr_array
# how many rows of a sparse matrix are made at a time, which then stay in the cache
_ROWS = 1024


def dense_values(module: nn.MultiheadAttention, value: Tensor) -> Tensor:
    """What probabilities weigh, (B, S, H, D), of values (B, S, C) before their projection."""
    width = module.embed_dim
    weight = module.in_proj_weight[2 * width :] if module._qkv_same_embed_dim else module.v_proj_weight
    bias = None if module.in_proj_bias is None else module.in_proj_bias[2 * width :]
    return F.linear(value, weight, bias).unflatten(-1, (module.num_heads, -1))


def corners(
    locations: Tensor, shapes: Shapes, level: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The four pixels around each location (..., L, P, 2), and their bilinear coefficients.

    Returns index (..., L, P, 4), int32 into S, and coefficient (..., L, P, 4); those outside their level have
    coefficient 0, as those of a location that is not finite. align_corners is False: pixel i's centre is at
    (i + 0.5) / size. With `level` (n,), int64, locations are (n, 2), one on each of these levels.
    Padded pixels, where `mask` (S,) is True, have coefficient 0, too: the value there is zero.
    """
    sizes = torch.tensor([(w, h) for h, w in shapes], device=locations.device)
    start = torch.tensor([part.start for part in share_of_levels(shapes)], device=locations.device).int()
    sizes, start = (sizes[:, None], start[:, None]) if level is None else (sizes[level], start[level])
    place = (locations * sizes - 0.5)[..., None, :]
    low = place.floor()
    sides = torch.cat([low, low + 1], -2)  # (..., L, P, 2 pixels, 2 axes), xy
    inside = (sides >= 0) & (sides < sizes[..., None, :])
    x, y = torch.where(inside, sides, 0).int().unbind(-1)
    across, down = torch.where(inside, 1 - (sides - place).abs(), 0).unbind(-1)
    index = start[..., None, None] + y[..., None] * sizes[..., :1, None].int() + x[..., None, :]
    index, coefficient = index.flatten(-2), (down[..., None] * across[..., None, :]).flatten(-2)
    return index, coefficient if mask is None else coefficient.masked_fill(mask[index.long()], 0)


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


def sparse_matrix(
    weights: Tensor, locations: Tensor, shapes: Shapes, mask: Tensor | None, slopes: Tensor | None = None
) -> csr_array:
    """(Q, S), the mean over heads of one image's attention; with slopes, of the positive part of attention times slope.

    weights (Q, H, L, P), locations (Q, H, L, P, 2), mask (S,) or None; slopes (Q, H, L, P) of points, whose product
    with the weight their coefficients share out, or (Q, H, L, P, 4) of each point's pixels.
    """
    # weights are not negative, so that the positive part is the slope's
    slopes = torch.ones_like(weights) if slopes is None else slopes.clamp(min=0)
    parts = zip(weights.split(_ROWS), locations.split(_ROWS), slopes.split(_ROWS), strict=True)
    entries = zip(*(_entries(*part, shapes, mask) for part in parts), strict=True)
    index, values, counts = (torch.cat(pieces).cpu().numpy() for pieces in entries)
    starts = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    return csr_array((values, index, starts), shape=(len(counts), sum(h * w for h, w in shapes)))


def _entries(
    weights: Tensor, locations: Tensor, slopes: Tensor, shapes: Shapes, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of some rows: where (n,), how much (n,), and how many entries a row has (Q,)."""
    by_pixel = slopes.dim() > weights.dim()
    amount = weights * (slopes.sum(-1) if by_pixel else slopes)
    # the others, with slopes about half of them, would be entries of nothing
    row, _, level, _ = places = amount.nonzero(as_tuple=True)
    index, coefficient = corners(locations[places], shapes, level, mask)
    amount = weights[places][:, None] * slopes[places] if by_pixel else amount[places][:, None]
    entries = amount * coefficient / weights.shape[1]
    return index.flatten(), entries.flatten(), torch.bincount(row, minlength=len(weights)) * 4


def times(x: Tensor, matrix: Matrix) -> Tensor:
    """``x @ matrix`` for rows x (..., Q): (..., S)."""
    if isinstance(matrix, Tensor):
        return x @ matrix
    rows = torch.from_numpy(np.ascontiguousarray((matrix.T @ x.reshape(-1, x.shape[-1]).numpy().T).T))
    return rows.view(*x.shape[:-1], matrix.shape[1])


def applied(matrix: Matrix, u: Tensor) -> Tensor:
    """``matrix @ u`` for u (S,): (Q,)."""
    return matrix @ u if isinstance(matrix, Tensor) else torch.from_numpy(matrix @ u.numpy())


def share_of_levels(shapes: Sequence[tuple[int, int]]) -> list[slice]:
    """Where each level's pixels lie among S."""
    ends = list(itertools.accumulate(h * w for h, w in shapes))
    return [slice(end - h * w, end) for end, (h, w) in zip(ends, shapes, strict=True)]
