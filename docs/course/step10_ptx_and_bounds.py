"""Step 10: the same kernels as PTX on a CPU, and what bounds them.

The interpreter runs Python, not what the compiler made of it. Here Triton compiles the kernels of steps 7 and 8 to PTX,
the assembly language of NVIDIA's GPUs; no GPU is needed for that. A part of MSDeform executes this PTX on the CPU,
instruction by instruction, and counts. The counts say which part of a GPU has the most to do: that part bounds the
kernel's speed.
"""

import itertools
import os

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported: compile

import torch
from step07_first_kernel import first
from step08_lanes_share_points import lanes
from torch import Tensor

from msdeform import ms_deform_attn
from msdeform.bench.operator.bounds import compulsory_bytes
from msdeform.bench.operator.cases import Case, levels
from msdeform.bench.operator.inputs import make_inputs
from msdeform.bench.static.ptx.device import Launch
from msdeform.bench.static.ptx.triton_driver import executing
from msdeform.kernels.triton import launch

# Deformable DETR's encoder, on a small photograph: 8 heads, 32 channels, 4 levels of 4 points, one to four pixels away.
# What one query and head costs depends little on the size of the photograph.
CASE = Case("encoder", levels(160, 213, 8, 16, 32, 64), B=1)
PAIRS = CASE.queries * CASE.H  # of query and head
INPUTS = make_inputs(CASE, torch.float32, torch.device("cpu"), seed=0)
VALUE, LOCATIONS, WEIGHTS = INPUTS.of(False)
COURSE = (VALUE[0], torch.tensor(CASE.sizes, dtype=torch.int32), LOCATIONS[0], WEIGHTS[0])
KERNELS = {
    "step 7": lambda: first(*COURSE),
    "step 8": lambda: lanes(*COURSE),
    "MSDeform": lambda: launch.forward(tuple(itertools.chain(*CASE.sizes)), (VALUE, LOCATIONS, WEIGHTS))[0],
}
GROUPS = {"loads": "ld.global", "shuffles": "shfl", "multiply-adds": "fma", "all": ""}  # by how an instruction begins


def execute(name: str) -> tuple[Tensor, Launch]:
    """Output and counts of a kernel, compiled for an H200 (sm_90) and executed here."""
    with executing(arch=90, count=True) as device:
        output = KERNELS[name]()
    return output, device.launches[0]


def instructions(launched: Launch) -> dict[str, float]:
    """Instructions of warps for one query and head, by group."""
    counted = launched.counters.opcodes
    return {
        group: sum(n for op, n in counted.items() if op.startswith(begin)) / PAIRS for group, begin in GROUPS.items()
    }


def cycles(launched: Launch) -> dict[str, float]:
    """Cycles of one of the GPU's multiprocessors for one query and head, of each part as if it worked alone."""
    clock, multiprocessors, bytes_per_second = 1.98e9, 132, 4.3e12  # of an H200; see docs/kernels.md
    moved = compulsory_bytes(CASE, INPUTS, fused=False, direction="forward") / PAIRS
    return {
        "multiply-adds": CASE.L * CASE.P * 4 * CASE.D / 128,  # 128 a cycle: 4 warps of 32 lanes
        "memory": moved / (bytes_per_second / multiprocessors / clock),
        "L1 cache": launched.counters.wavefronts / PAIRS,  # one line of 128 bytes a cycle
        "issue": launched.counters.warp_instructions / PAIRS / 4,  # four instructions a cycle
    }


if __name__ == "__main__":
    value, locations, weights = (tensor.double() for tensor in (VALUE, LOCATIONS, WEIGHTS))
    truth = ms_deform_attn(value, CASE.sizes, locations, weights, backend="reference")[0]
    results = {name: execute(name) for name in KERNELS}
    print("instructions for a query and head of 16 points:")
    print(f"{'':10}{''.join(f'{group:>15}' for group in GROUPS)}   like the reference, up to 1e-5")
    for name, (output, launched) in results.items():
        counts = "".join(f"{count:15.0f}" for count in instructions(launched).values())
        print(f"{name:<10}{counts}   {torch.allclose(output.double(), truth, rtol=0, atol=1e-5)}")

    print("\nthree instructions of step 8:")
    for begin in ("shfl.sync", "ld.global.v4", "fma.rn"):
        print("  " + next(" ".join(line.split()) for line in results["step 8"][1].ptx.splitlines() if begin in line))

    print("\ncycles of a multiprocessor for a query and head, each part alone:")
    for name, (_, launched) in results.items():
        parts = cycles(launched)
        listed = ", ".join(f"{part} {n:.0f}" for part, n in parts.items())
        print(f"{name:<10}{listed}: {max(parts, key=parts.__getitem__)} bounds it")

    print("\nof these, the L1 cache's:")
    for name, (_, launched) in results.items():
        kinds = launched.counters.wavefronts_by
        print(f"{name:<10}loads {kinds['global load'] / PAIRS:.0f}, shuffles {kinds['shuffle'] / PAIRS:.0f}")
