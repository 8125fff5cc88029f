"""Step 4: heads and levels.

A backbone makes several maps of a photograph, fine and coarse: the levels. A query reads all of them, each at P points
of its own, so small things are found on the fine map and large ones on the coarse map. And it does so H times: every
head has its own channels, places and weights. This is the whole operator, as loops that hide nothing:

    output[q, h] = sum over l, p of  weight[q, h, l, p] * bilinear(value of level l and head h, location[q, h, l, p])
"""

import math

import torch
from torch import Tensor

import msdeform


def ms_deform_attn(value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """The output (Q, H*D) of one photograph.

    Args:
        value: (S, H, D): the S pixels of all levels, one level after the other, each row by row.
        shapes: (height, width) of each level.
        locations: (Q, H, L, P, 2): x and y, 0 at one edge of a level and 1 at the other.
        weights: (Q, H, L, P).
    """
    Q, H, L, P = weights.shape
    output = value.new_zeros(Q, H, value.shape[-1])
    for q in range(Q):
        for head in range(H):
            start = 0  # the level's first pixel among the S
            for level in range(L):
                height, width = shapes[level]
                for p in range(P):
                    x, y = (locations[q, head, level, p] * torch.tensor([width, height]) - 0.5).tolist()
                    for row in (math.floor(y), math.floor(y) + 1):
                        for column in (math.floor(x), math.floor(x) + 1):
                            if 0 <= row < height and 0 <= column < width:
                                share = (1 - abs(x - column)) * (1 - abs(y - row))
                                pixel = start + row * width + column
                                # all D channels of the head at once: the place is the same for them
                                output[q, head] += weights[q, head, level, p] * share * value[pixel, head]
                start += height * width
    return output.flatten(1)


def random_inputs(seed: int, Q: int = 5, H: int = 2, D: int = 4, P: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (some outside) and weights for the levels SHAPES."""
    generator = torch.Generator().manual_seed(seed)
    S, L = sum(h * w for h, w in SHAPES), len(SHAPES)
    value = torch.rand(S, H, D, generator=generator, dtype=torch.float64)
    locations = torch.rand(Q, H, L, P, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    # the softmax runs over levels and points together: a head may spend all its weight on one level
    weights = torch.rand(Q, H, L * P, generator=generator, dtype=torch.float64).softmax(-1)
    return value, locations, weights.view(Q, H, L, P)


SHAPES = ((4, 6), (2, 3))

if __name__ == "__main__":
    # Numbers that tell where they stand: head, level, row and column, one digit each. One query at the middle.
    value = torch.tensor(
        [
            [[1000.0 * head + 100 * level + 10 * row + column] for head in (1, 2)]
            for level, (height, width) in enumerate(SHAPES)
            for row in range(height)
            for column in range(width)
        ]
    )  # (30, 2, 1)
    locations = torch.full((1, 2, 2, 1, 2), 0.5)  # one location, and so one place in the photograph, on both levels
    for level, (height, width) in enumerate(SHAPES):
        x, y = 0.5 * width - 0.5, 0.5 * height - 0.5
        print(f"level {level}: {height} x {width} pixels; location 0.5 is x = {x}, y = {y}")
    for fine in (1.0, 0.0, 0.75):
        weights = torch.tensor([fine, 1 - fine]).view(1, 1, 2, 1).expand(1, 2, 2, 1)
        heads = ms_deform_attn(value, SHAPES, locations, weights)[0].tolist()
        print(f"weight {fine:.2f} on level 0, {1 - fine:.2f} on level 1: head 0 gives {heads[0]}, head 1 {heads[1]}")

    value, locations, weights = random_inputs(seed=0)
    ours = ms_deform_attn(value, SHAPES, locations, weights)
    theirs = msdeform.ms_deform_attn(value[None], SHAPES, locations[None], weights[None])[0]  # [None]: a batch of one
    print(f"\nrandom inputs: output {tuple(ours.shape)}, like msdeform.ms_deform_attn up to 1e-12:", end=" ")
    print(torch.allclose(ours, theirs, rtol=0, atol=1e-12))
