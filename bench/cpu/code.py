"""``msdeform bench cpu-code``: how many instructions the CPU kernels spend on a point, counted in their machine code.

The code is that of this processor. What is counted is the usual way through one query and head: every instruction of
the two loops over heads, one that computes where points lie and one that reads pixels, those of the loop over points as
often as it turns. Branches to what is rare (numbers that are not finite) are not followed, and no pixel is fetched
ahead, as where all levels are small. Where the processor's counters can be read, they count the same.
"""

import platform
import re
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from ...kernels.cpu import backward, emit, forward
from ...kernels.cpu.points import AT_ONCE, Kind
from ..harness.tables import aligned
from ..options import CpuCodeOptions

_LABEL = re.compile(r"^(\.LBB\d+_\d+):")
_JUMP = re.compile(r"^\s+j(\w+)\s+(\.LBB\d+_\d+)")


class Counts(NamedTuple):
    """Instructions of one query and head."""

    all: float
    vector: float
    """with registers of vectors"""
    loads: float
    """vectors read from memory, by instructions of their own or with arithmetic"""
    stores: float


def code_rows(options: CpuCodeOptions) -> list[tuple[str, ...]]:
    """A line for each number of channels, dtype and direction."""
    counted = ("instructions a point", "of vectors", "vector loads", "vector stores")
    lines: list[tuple[str, ...]] = [("channels", "dtype", "direction", *counted)]
    wanted = backward.Wanted(True, False, True, True)
    for D, dtype in product(options.channels, options.dtypes):
        kind = Kind(dtype, "float32", "float32", "float32", "float32", D, 4, 4, 2)
        backwards = backward.emit(kind, wanted, shared=False, summed=kind.rounded)
        for direction, emitter in (("forward", forward.emit(kind)), ("backward", backwards)):
            counts = count(emit.assembly(emitter.finish()), kind.padded // AT_ONCE)
            lines.append((str(D), dtype, direction, *(f"{number / kind.LP:.1f}" for number in counts)))
    return lines


def count(assembly: str, turns: int) -> Counts:
    """The usual way through one query and head.

    Args:
        assembly: of a kernel, AT&T syntax.
        turns: of the loop over points.
    """
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in assembly.splitlines():
        label = _LABEL.match(line)
        if label:
            blocks.append((label[1], []))
        elif re.match(r"^\s+[a-z]", line):
            blocks[-1][1].append(line)
            if _JUMP.match(line):
                blocks.append(("", []))
    place = {label: i for i, (label, _) in enumerate(blocks)}

    def jumps(i: int) -> list[int]:
        return [place[found[2]] for found in map(_JUMP.match, blocks[i][1]) if found and found[2] in place]

    loops = [i for i in range(len(blocks)) if i in jumps(i) and len(blocks[i][1]) > 4 * AT_ONCE]
    fetching = [i for i in loops if any("prefetch" in line for line in blocks[i][1])]
    reading = [i for i in loops if i not in fetching]
    if not reading:
        raise ValueError("assembly: expected a loop over points")
    total = [0.0] * 4
    for inner in (*fetching[:1], reading[0]):
        ends = [(i, target) for i in range(inner + 1, len(blocks)) for target in jumps(i) if target <= inner]
        last, first = ends[0]  # of the loop over heads around it
        for i in range(first, last + 1):
            times = turns if i in reading else 0 if i in fetching else 1
            for j, number in enumerate(_count(blocks[i][1])):
                total[j] += times * number
    return Counts(*total)


def _count(instructions: Sequence[str]) -> tuple[int, int, int, int]:
    vectors = [line for line in instructions if re.search(r"%[xyz]mm", line)]
    stores = [line for line in vectors if line.rstrip().endswith(")")]
    loads = [line for line in vectors if "(" in line and line not in stores]
    return len(instructions), len(vectors), len(loads), len(stores)


def run(options: CpuCodeOptions) -> int:
    """``msdeform bench cpu-code``."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise ValueError(f"cpu-code: reads the machine code of x86 processors, and this one is {platform.machine()}")
    print(aligned(code_rows(options), 3))
    return 0
