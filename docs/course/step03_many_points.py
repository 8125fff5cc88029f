"""Step 3: many points with weights.

A query has a reference point, which says where it stands. Each of its points is the reference plus an offset, and has
a weight; a softmax makes the weights add up to 1. The output is the weighted sum of the samples:

    output = sum over points p of  weight[p] * bilinear(value, reference + offset[p])

With the same offsets and weights for every query this is a convolution. Here every query brings its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(value: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Step 2 for many places at once, in pixels: x and y (...) -> samples (...)."""
    height, width = value.shape
    total = torch.zeros_like(x)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            # a pixel's share falls from 1 to 0 over the distance of one pixel, in both directions
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = value[row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            total = total + torch.where(inside, share * pixel, 0.0)
    return total


def attend(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """references (Q, 2) and offsets (Q, P, 2) in pixels, logits (Q, P) -> output (Q)."""
    places = references[:, None] + offsets
    return (logits.softmax(-1) * sample(value, places[..., 0], places[..., 1])).sum(-1)


value = 10 * torch.arange(6.0)[:, None] + torch.arange(8.0)

# one query, at row 2, column 3, with four points
reference = torch.tensor([[3.0, 2.0]])
offsets = torch.tensor([[[-1.5, 0.5], [0.25, -0.75], [2.0, 1.0], [4.75, 0.0]]])
logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).log()  # so that the weights are 0.4, 0.3, 0.2, 0.1
print("  offset           place            sample  weight")
for (dx, dy), weight in zip(offsets[0], logits.softmax(-1)[0], strict=True):
    x, y = reference[0, 0] + dx, reference[0, 1] + dy
    print(f"  ({dx:+5.2f}, {dy:+5.2f})   ({x:5.2f}, {y:5.2f})   {sample(value, x, y):6.3f}  {weight:6.1f}")
print(f"output {attend(value, reference, offsets, logits).item():.3f}")

# The places move smoothly, and so does the output: this is what makes them learnable.
print("\nthe second point moves to the right:")
for step in (0.0, 0.1, 0.2, 0.3):
    moved = offsets.clone()
    moved[0, 1, 0] += step
    print(f"  by {step:.1f}: output {attend(value, reference, moved, logits).item():.3f}")

# Every pixel as a query, nine points in a square, equal weights: the mean of a 3 x 3 window.
ys, xs = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
references = torch.stack([xs, ys], -1).view(48, 2)
square = torch.tensor([(dx, dy) for dy in (-1.0, 0.0, 1.0) for dx in (-1.0, 0.0, 1.0)])
ours = attend(value, references, square.expand(48, 9, 2), torch.zeros(48, 9)).view(6, 8)
mean = F.conv2d(value[None, None], torch.full((1, 1, 3, 3), 1 / 9), padding=1)[0, 0]
print(f"\nfixed offsets, fixed weights: equal to a 3 x 3 convolution: {torch.allclose(ours, mean, atol=1e-4)}")
