"""A second, independent statement of the operator: an explicit gather of the four corners, in float64.

It shares nothing with the reference (no grid_sample, no clamping, one sample at a time in the literal form), is
differentiable twice, and is slow.
"""

import torch
from torch import Tensor

Sizes = tuple[tuple[int, int], ...]


def literal(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """ms_deform_attn by loops over everything but the channels. Finite locations only."""
    B, _, H, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    starts = [sum(h * w for h, w in sizes[:level]) for level in range(L)]
    rows = []
    for b in range(B):
        for q in range(Q):
            for head in range(H):
                total = torch.zeros(D, dtype=value.dtype)
                for level, (h, w) in enumerate(sizes):
                    for p in range(P):
                        x = locations[b, q, head, level, p, 0] * w - 0.5
                        y = locations[b, q, head, level, p, 1] * h - 0.5
                        for column in (int(x.floor()), int(x.floor()) + 1):
                            for row in (int(y.floor()), int(y.floor()) + 1):
                                if 0 <= column < w and 0 <= row < h:
                                    coefficient = (1 - (x - column).abs()) * (1 - (y - row).abs())
                                    pixel = value[b, starts[level] + row * w + column, head]
                                    total = total + weights[b, q, head, level, p] * coefficient * pixel
                rows.append(total)
    return torch.stack(rows).view(B, Q, H * D)


def literal_fused(value: Tensor, sizes: Sizes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """fused_ms_deform_attn from the definitions of location and softmax, then :func:`literal`."""
    L, P = logits.shape[3:]
    exponentials = logits.exp()
    weights = exponentials / exponentials.sum((3, 4), keepdim=True)
    locations = torch.empty_like(offsets)
    per_level = []
    for level, (h, w) in enumerate(sizes):
        reference = references[:, :, None, None, level]  # (B, Q, 1, 1, 2 or 4)
        if references.shape[-1] == 2:
            per_level.append(reference + offsets[:, :, :, level] / torch.tensor([w, h], dtype=offsets.dtype))
        else:
            per_level.append(reference[..., :2] + offsets[:, :, :, level] / P * reference[..., 2:] * 0.5)
    locations = torch.stack(per_level, 3)
    assert locations.shape[3] == L
    return literal(value, sizes, locations, weights)
