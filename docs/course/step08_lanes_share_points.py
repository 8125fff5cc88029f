"""Step 8: lanes share the points.

A warp of step 7 is 32 threads, or lanes, on 32 channels. All of them compute the same place, pixel number and shares:
the same work 32 times. Here eight lanes with four channels each work on a query, and divide the points: lane i prepares
point i. When a point's turn comes, its lane hands five numbers to the other seven lanes, and all lanes read the rows.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import triton
import triton.language as tl
from step07_first_kernel import first, float32_inputs
from torch import Tensor

QUERIES, LANES, CHANNELS = 4, 8, 4  # of a program, of a query, of a lane: 4 x 8 lanes are a warp, 8 x 4 channels a row


@triton.jit
def hat(distance):
    """A pixel's share in one direction: 1 at the pixel, 0 from a distance of one pixel on."""
    return tl.maximum(1.0 - tl.abs(distance), 0.0)


@triton.jit
def lanes_kernel(
    value_ptr,
    shapes_ptr,
    locations_ptr,
    weights_ptr,
    output_ptr,
    Q,
    H,
    L: tl.constexpr,
    P: tl.constexpr,
    QUERIES: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    D: tl.constexpr = LANES * CHANNELS
    head = tl.program_id(1)
    q = tl.minimum(tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), Q - 1)  # the last query may be computed twice
    lane = tl.arange(0, LANES)
    d = (lane[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :])[:, None, :]
    total = tl.zeros([LANES, QUERIES, CHANNELS], tl.float32)
    start = 0
    for level in range(L):
        height = tl.load(shapes_ptr + 2 * level)
        width = tl.load(shapes_ptr + 2 * level + 1)
        # each lane prepares its own point: tiles [LANES, QUERIES]; with P = 4, lanes 4 to 7 repeat lanes 0 to 3
        point = ((q * H + head)[None, :] * L + level) * P + (lane % P)[:, None]
        weight = tl.load(weights_ptr + point)
        x = tl.load(locations_ptr + 2 * point) * width - 0.5
        y = tl.load(locations_ptr + 2 * point + 1) * height - 0.5
        # the 2 x 2 pixels are moved into the level: then no load needs a mask, and the hat gives 0 to a wrong pixel
        column = tl.minimum(tl.maximum(tl.floor(x), 0.0), width - 2.0)
        row = tl.minimum(tl.maximum(tl.floor(y), 0.0), height - 2.0)
        pixel = start + row.to(tl.int32) * width + column.to(tl.int32)
        left, right = weight * hat(x - column), weight * hat(x - column - 1)
        upper, lower = hat(y - row), hat(y - row - 1)
        c00, c01, c10, c11 = left * upper, right * upper, left * lower, right * lower
        for i in tl.static_range(P):
            of_i = tl.full([LANES, QUERIES], i, tl.int32)  # every lane receives the numbers of lane i
            row_ptr = value_ptr + ((tl.gather(pixel, of_i, 0) * H + head) * D)[:, :, None] + d
            total += tl.gather(c00, of_i, 0)[:, :, None] * tl.load(row_ptr)
            total += tl.gather(c01, of_i, 0)[:, :, None] * tl.load(row_ptr + H * D)
            total += tl.gather(c10, of_i, 0)[:, :, None] * tl.load(row_ptr + width * H * D)
            total += tl.gather(c11, of_i, 0)[:, :, None] * tl.load(row_ptr + width * H * D + H * D)
        start += height * width
    tl.store(output_ptr + ((q * H + head) * D)[None, :, None] + d, total)


def lanes(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The output (Q, 32*H) of one photograph, in float32, for levels of at least 2 x 2 pixels."""
    Q, H, L, P = weights.shape
    output = torch.empty(Q, H, LANES * CHANNELS)
    grid = (triton.cdiv(Q, QUERIES), H)
    tensors = (value, shapes, locations, weights, output)
    lanes_kernel[grid](*tensors, Q, H, L, P, QUERIES, LANES, CHANNELS, num_warps=1)
    return output.flatten(1)


if __name__ == "__main__":
    inputs = float32_inputs(((6, 8), (3, 4)), Q=10, H=2, D=32, P=4)
    print(f"like step 7, up to 1e-6: {torch.allclose(lanes(*inputs), first(*inputs), rtol=0, atol=1e-6)}")
    L = P = 4
    print(f"\na query and head with {L * P} points of 32 channels; how often a lane prepares a point:")
    print(f"  step 7: {L * P} points x 32 lanes               = {L * P * 32}")
    print(f"  here:   {L} levels x {LANES} lanes, a point each   = {L * LANES}")
