"""Step 7: a first Triton kernel.

A kernel is the work of one program; a GPU runs thousands of programs at once. Here a program computes one query and
head: it takes the points one after another, reads four rows of D numbers for each, and adds them up in registers. No
sample is ever stored. Triton's interpreter runs the same Python on a CPU, so no GPU is needed.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # has to be there before Triton is imported; step 10 compiles instead

import torch
import triton
import triton.language as tl
from torch import Tensor

import msdeform


@triton.jit
def first_kernel(
    value_ptr,  # (S, H, D)
    shapes_ptr,  # (L, 2), int32: height and width of each level
    locations_ptr,  # (Q, H, L, P, 2)
    weights_ptr,  # (Q, H, L, P)
    output_ptr,  # (Q, H, D)
    H,
    D: tl.constexpr,  # known when the kernel is compiled, so that Triton can choose registers
    L: tl.constexpr,
    P: tl.constexpr,
):
    q, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, D)  # all channels at once: a vector of D numbers
    total = tl.zeros([D], tl.float32)
    point = (q * H + head) * L * P
    start = 0
    for level in range(L):
        height = tl.load(shapes_ptr + 2 * level)
        width = tl.load(shapes_ptr + 2 * level + 1)
        for _ in range(P):
            weight = tl.load(weights_ptr + point)
            x = tl.load(locations_ptr + 2 * point) * width - 0.5
            y = tl.load(locations_ptr + 2 * point + 1) * height - 0.5
            for corner in tl.static_range(4):  # Triton writes this loop out, four times
                column = tl.floor(x) + corner % 2
                row = tl.floor(y) + corner // 2
                share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row))
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                pixel = start + row.to(tl.int32) * width + column.to(tl.int32)
                # a masked load reads nothing outside the level, and gives zeros there
                total += weight * share * tl.load(value_ptr + (pixel * H + head) * D + d, mask=inside, other=0.0)
            point += 1
        start += height * width
    tl.store(output_ptr + (q * H + head) * D + d, total)


def first(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The output (Q, H*D) of one photograph, in float32. A grid of Q x H programs, each of one warp: 32 threads."""
    Q, H, L, P = weights.shape
    D = value.shape[-1]
    output = value.new_empty(Q, H, D)
    first_kernel[Q, H](value, shapes, locations, weights, output, H, D, L, P, num_warps=1)
    return output.flatten(1)


def float32_inputs(sizes: tuple[tuple[int, int], ...], Q: int, H: int, D: int, P: int) -> tuple[Tensor, ...]:
    """Value, shapes, locations (some outside) and weights for a kernel."""
    torch.manual_seed(0)
    L = len(sizes)
    value = torch.rand(sum(h * w for h, w in sizes), H, D)
    weights = torch.rand(Q, H, L * P).softmax(-1).view(Q, H, L, P)
    return value, torch.tensor(sizes, dtype=torch.int32), torch.rand(Q, H, L, P, 2) * 1.2 - 0.1, weights


if __name__ == "__main__":
    sizes, Q, H, D, P = ((6, 8), (3, 4)), 10, 2, 32, 4
    value, shapes, locations, weights = float32_inputs(sizes, Q, H, D, P)
    ours = first(value, shapes, locations, weights)
    print(f"{Q} x {H} programs, each {len(sizes) * P} points x 4 pixels x {D} channels: output {tuple(ours.shape)}")
    value, locations, weights = (tensor.double()[None] for tensor in (value, locations, weights))  # a batch of one
    truth = msdeform.ms_deform_attn(value, sizes, locations, weights, backend="reference")[0]
    print(f"like the reference in float64, up to 1e-6: {torch.allclose(ours.double(), truth, rtol=0, atol=1e-6)}")
