"""Attention as a matrix: dense, or of deformable attention as the points that it samples.

Deformable attention is sparse attention: the sum over points of ``weight * bilinear`` is a row of a matrix ``A`` (Q, S)
whose entries are the weights times the coefficients of the four pixels around each point, and ``A @ value`` is the
operator's output (Zhu et al. 2021, equation 3). So the operator multiplies by ``A`` from the left, and its derivative
with respect to the value from the right: the kernels do both, and the matrix is never formed.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.api import ms_deform_attn
from ...models.attention import Shapes


@dataclass(frozen=True, eq=False)
class PointMatrix:
    """A matrix (Q, S) for one image, mean over heads: a row has what each point adds to the four pixels around it."""

    weights: Tensor
    """(Q, H, L, P), not negative."""
    locations: Tensor
    """(Q, H, L, P, 2)"""
    shapes: Shapes
    mask: Tensor | None
    """(S,), True where padded: columns of zeros."""
    slopes: Tensor | None = None
    """(Q, H, L, P), what the weights are multiplied by where it is positive, in each product anew: a factor of every
    layer at 800x1333 would be 70 MB."""

    def __matmul__(self, columns: Tensor) -> Tensor:
        """Times columns (S, n): (Q, n)."""
        value = columns if self.mask is None else columns.masked_fill(self.mask[:, None], 0)
        return self._operator(self._for_heads(value)).unflatten(-1, (self.weights.shape[1], -1)).mean(1)

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        """Rows (n, Q) times it: (n, S), by the derivative of the product with respect to the columns."""
        size = sum(h * w for h, w in self.shapes)
        value = self._for_heads(rows.new_zeros(size, len(rows))).requires_grad_()
        with torch.enable_grad():
            out = self._operator(value)
        (found,) = torch.autograd.grad(out, value, self._for_heads(rows.T)[0].flatten(1))
        found = found[0].mean(1).T
        return found if self.mask is None else found.masked_fill(self.mask, 0)

    def _for_heads(self, values: Tensor) -> Tensor:
        """(N, n), the same for every head: (1, N, H, n)."""
        return values[None, :, None].expand(-1, -1, self.weights.shape[1], -1).contiguous()

    def _operator(self, value: Tensor) -> Tensor:
        amounts = self.weights if self.slopes is None else self.weights * self.slopes.clamp(min=0)
        return ms_deform_attn(value, self.shapes, self.locations[None], amounts[None])[0]


Matrix = Tensor | PointMatrix


def dense_values(module: nn.MultiheadAttention, value: Tensor) -> Tensor:
    """What probabilities weigh, (B, S, H, D), of values (B, S, C) before their projection."""
    width = module.embed_dim
    weight = module.in_proj_weight[2 * width :] if module._qkv_same_embed_dim else module.v_proj_weight
    bias = None if module.in_proj_bias is None else module.in_proj_bias[2 * width :]
    return F.linear(value, weight, bias).unflatten(-1, (module.num_heads, -1))


def corners(locations: Tensor, shapes: Shapes, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The four pixels around each location (..., L, P, 2), and their bilinear coefficients.

    Returns index (..., L, P, 4), int32 into S, and coefficient (..., L, P, 4); those outside their level have
    coefficient 0, as those of a location that is not finite. align_corners is False: pixel i's centre is at
    (i + 0.5) / size. Padded pixels, where `mask` (S,) is True, have coefficient 0, too: the value there is zero.
    """
    sizes = torch.tensor([[(w, h)] for h, w in shapes], device=locations.device)
    start = torch.tensor([[part.start] for part in share_of_levels(shapes)], device=locations.device).int()
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


def point_matrix(
    weights: Tensor, locations: Tensor, shapes: Shapes, mask: Tensor | None, slopes: Tensor | None = None
) -> PointMatrix:
    """(Q, S), the mean over heads of one image's attention; with slopes, of the positive part of attention times slope.

    weights (Q, H, L, P), locations (Q, H, L, P, 2), mask (S,) or None; slopes (Q, H, L, P) of points, whose product
    with the weight their coefficients share out, or (Q, H, L, P, 4) of each point's pixels.
    """
    if slopes is not None and slopes.dim() > weights.dim():
        # each pixel is a point of its own, on the pixel's centre
        index, coefficient = corners(locations, shapes)
        weights, slopes = (weights[..., None] * coefficient).flatten(-2), slopes.flatten(-2)
        locations = _centres(index, shapes).to(locations.dtype).flatten(-3, -2)
    return PointMatrix(weights, locations, shapes, mask, slopes)


def _centres(index: Tensor, shapes: Shapes) -> Tensor:
    """Centres, xy normalised to their level, of pixels index (..., L, P, 4) into S: (..., L, P, 4, 2) float64."""
    sizes = torch.tensor([[[(w, h)]] for h, w in shapes], device=index.device)
    start = torch.tensor([[[part.start]] for part in share_of_levels(shapes)], device=index.device)
    within, width = index - start, sizes[..., 0]
    return (torch.stack([within % width, within // width], -1) + 0.5).double() / sizes


def times(x: Tensor, matrix: Matrix) -> Tensor:
    """``x @ matrix`` for rows x (..., Q): (..., S)."""
    return (x.flatten(0, -2) @ matrix).unflatten(0, x.shape[:-1]) if x.dim() > 1 else (x[None] @ matrix)[0]


def applied(matrix: Matrix, u: Tensor) -> Tensor:
    """``matrix @ u`` for u (S,): (Q,)."""
    return (matrix @ u[:, None])[:, 0]


def share_of_levels(shapes: Sequence[tuple[int, int]]) -> list[slice]:
    """Where each level's pixels lie among S."""
    ends = list(itertools.accumulate(h * w for h, w in shapes))
    return [slice(end - h * w, end) for end, (h, w) in zip(ends, shapes, strict=True)]
