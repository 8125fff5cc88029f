"""Step 9: the backward with and without atomics.

The gradient of a pixel is a sum over all points that read it (step 6), and these points belong to many programs. With
atomics every program adds to the pixel's row in memory. No addition is lost, but nobody knows their order, and as
floats are rounded, another order gives other bits. Without atomics the points are sorted by pixel first. Then one
program owns a pixel, adds up its points in registers, always in the same order, and stores the sum once.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import triton
import triton.language as tl
from step04_heads_and_levels import random_inputs
from step06_gradient import Attention, corners


# An entry is one pixel of one point; the entries of a query and head are neighbours in memory. An entry adds its factor
# times g, the gradient of its query's output, to its row of the result. `schedule` is the order in which programs run.
@triton.jit
def atomic_kernel(g_ptr, rows_ptr, factors_ptr, schedule_ptr, result_ptr, ENTRIES: tl.constexpr, D: tl.constexpr):
    query_and_head = tl.load(schedule_ptr + tl.program_id(0))
    d = tl.arange(0, D)
    g = tl.load(g_ptr + query_and_head * D + d)
    for i in range(ENTRIES):
        entry = query_and_head * ENTRIES + i
        factor = tl.load(factors_ptr + entry)  # zero for a pixel outside
        tl.atomic_add(result_ptr + tl.load(rows_ptr + entry) * D + d, factor * g, mask=factor != 0)


# `order` lists the entries sorted by row: those of one row stand from begins[row] to begins[row + 1].
@triton.jit
def sorted_kernel(
    g_ptr, order_ptr, begins_ptr, factors_ptr, schedule_ptr, result_ptr, ENTRIES: tl.constexpr, D: tl.constexpr
):
    row = tl.load(schedule_ptr + tl.program_id(0))
    d = tl.arange(0, D)
    total = tl.zeros([D], tl.float32)
    i = tl.load(begins_ptr + row)
    end = tl.load(begins_ptr + row + 1)
    while i < end:
        entry = tl.load(order_ptr + i)
        total += tl.load(factors_ptr + entry) * tl.load(g_ptr + entry // ENTRIES * D + d)
        i += 1
    tl.store(result_ptr + row * D + d, total)


Q, H, D, L, P = 20, 2, 4, 2, 4
value, locations, weights = random_inputs(seed=0, Q=Q, H=H, D=D, P=P)
pixels, shares, _, _ = corners(locations)  # each (Q, H, L, P, 4)
rows = (pixels * H + torch.arange(H).view(H, 1, 1, 1)).flatten().int()
factors = (weights[..., None] * shares).flatten().float()
ENTRIES = L * P * 4  # of a query and head
ROWS = len(value) * H
torch.manual_seed(0)
grad_output = torch.rand(Q, H, D)


def by_atomics(schedule: torch.Tensor) -> torch.Tensor:
    """The gradient of value, (S, H, D)."""
    result = torch.zeros(value.shape)  # additions need zeros to begin with
    atomic_kernel[Q * H,](grad_output, rows, factors, schedule, result, ENTRIES, D)
    return result


def by_sorting(schedule: torch.Tensor) -> torch.Tensor:
    """The same without atomics."""
    result = torch.empty(value.shape)  # every row is stored once
    keys = torch.where(factors == 0, ROWS, rows)  # pixels outside come last, and nobody reads them
    order = keys.argsort(stable=True).int()  # stable: the entries of a row stay in the order of their queries
    begins = torch.searchsorted(keys[order], torch.arange(ROWS + 1)).int()
    sorted_kernel[ROWS,](grad_output, order, begins, factors, schedule, result, ENTRIES, D)
    return result


value.requires_grad_()
(truth,) = torch.autograd.grad(Attention.apply(value, locations, weights), value, grad_output.flatten(1).double())
print("                 like step 6, up to 1e-5   same bits in another order of programs")
for name, method, programs in (("with atomics", by_atomics, Q * H), ("without atomics", by_sorting, ROWS)):
    schedule = torch.arange(programs, dtype=torch.int32)
    once, again = method(schedule), method(schedule.flip(0))
    print(f"{name:<17}{torch.allclose(once.double(), truth, rtol=0, atol=1e-5)!s:<26}{torch.equal(once, again)}")

counts = rows[factors != 0].bincount()
print(f"\nrows written here: {counts.sum():,} additions, or {ROWS} stores; a row has {counts.max()} entries at most")
pairs = 2 * 17821 * 8  # of photograph, query or pixel, and head
print(f"in an encoder, two photographs: {pairs * 16 * 4:,} additions, or {pairs:,} stores and a sort")
