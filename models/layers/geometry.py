"""Where Deformable DETR looks: valid ratios, reference points and box proposals (Zhu et al. 2021, appendix A).

Padded images share a map whose valid part differs from image to image. Reference points are therefore kept relative
to the valid part, and multiplied by its share of each level (the valid ratio) just before sampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Levels(NamedTuple):
    """How S flattened pixels lie on L feature maps, one after another, each row by row."""

    shapes: tuple[tuple[int, int], ...]
    """(h, w) of each level"""
    ratios: Tensor
    """(B, L, 2), xy: the unpadded share of each level, see `valid_ratios`"""
    mask: Tensor
    """(B, S), bool, True where padded"""


def at_least_float32(x: Tensor) -> Tensor:
    """At least float32: a bfloat16 location is half a pixel off on a map 134 wide."""
    return x if x.dtype == torch.float64 else x.float()


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of x, with x and 1 - x kept at `eps` or more."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def valid_ratios(masks: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """The unpadded share of each level's width and height: (B, L, 2), xy, of `dtype`, from L masks (B, h, w).

    The first row and the first column tell, since padding is at the right and at the bottom.
    """
    ratios = []
    for mask in masks:
        width = (~mask[:, 0, :]).to(dtype).mean(1)
        height = (~mask[:, :, 0]).to(dtype).mean(1)
        ratios.append(torch.stack([width, height], dim=-1))
    return torch.stack(ratios, dim=1)


def pixel_centres(levels: Levels) -> Tensor:
    """Centres (B, S, 2) of all pixels, xy, as shares of the valid part of their own level (over 1 where padded)."""
    ratios = levels.ratios
    centres = []
    for level, (height, width) in enumerate(levels.shapes):
        y = (torch.arange(height, dtype=ratios.dtype, device=ratios.device) + 0.5) / height
        x = (torch.arange(width, dtype=ratios.dtype, device=ratios.device) + 0.5) / width
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        centres.append(grid.flatten(0, 1)[None] / ratios[:, level, None])
    return torch.cat(centres, dim=1)


def encoder_reference_points(levels: Levels) -> Tensor:
    """Reference points (B, S, L, 2), xy: each pixel's centre, at the same place of the image on every level."""
    return pixel_centres(levels)[:, :, None] * levels.ratios[:, None]


def proposals(levels: Levels) -> tuple[Tensor, Tensor]:
    """A square box on every pixel, of side 0.05 * 2^level: where the two-stage detector starts.

    Returns ``logits`` (B, S, 4) of cxcywh, and ``usable`` (B, S), bool: not padded and every coordinate strictly
    within (0.01, 0.99). Logits that are not usable are +inf.
    """
    centres = pixel_centres(levels)
    sides = torch.cat([centres.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(levels.shapes)])
    boxes = torch.cat([centres, sides[None, :, None].expand(centres.shape[0], -1, 2)], dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~levels.mask
    # a coordinate beyond 1 has no logit: 0.5 stands in before the infinity is written
    logits = torch.logit(torch.where(usable[..., None], boxes, 0.5))
    return logits.masked_fill(~usable[..., None], float("inf")), usable
