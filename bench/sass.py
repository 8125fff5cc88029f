"""How many instructions a warp executes, read from machine code: the longest way through a kernel's control flow.

A kernel's blocks and branches come from its disassembly. Where the way forks the longer side counts, which in these
kernels is the one that reads all four corners and makes every gradient; a loop counts as often as it runs. Functions
that are called (the slow way of a 64-bit division, once a thread) are not followed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

_LABEL = re.compile(r"^(\.L_\w+):")
_FLOOR = r"(F2I|FRND)\S*FLOOR"
_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<opcode>[A-Z][A-Za-z0-9_.]*)(?P<rest>.*)")


@dataclass
class Block:
    """Instructions that run one after another, and where they may go on."""

    opcodes: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """A loop, and what it costs to go round it once."""

    header: int
    body: set[int]
    inner: "list[Loop]" = field(default_factory=list)
    opcodes: list[str] = field(default_factory=list)
    """of the whole body, inner loops included, once"""

    def count(self, pattern: str) -> int:
        return sum(re.match(pattern, opcode) is not None for opcode in self.opcodes)


# how often loops beside each other run, given how deep they lie
Trips = Callable[[list[Loop], int], list[int]]


def kernels(listing: str) -> dict[str, list[Block]]:
    """Blocks of each kernel in what ``nvdisasm -c`` prints."""
    sections = re.split(r"//-+ \.text\.(\S+)", listing)
    return {name: _blocks(text) for name, text in zip(sections[1::2], sections[2::2], strict=True)}


def _blocks(text: str) -> list[Block]:
    blocks, labels, jumps = [Block()], {}, {}
    open_ended = [True]  # does a block go on to the next one?
    for line in text.splitlines():
        if label := _LABEL.match(line.strip()):
            if blocks[-1].opcodes:
                blocks.append(Block())
                open_ended.append(True)
            labels[label[1]] = len(blocks) - 1
        elif found := _LINE.search(line):
            opcode, rest = found["opcode"], found["rest"]
            if opcode == "NOP":
                continue
            blocks[-1].opcodes.append(opcode)
            name = opcode.split(".")[0]
            ends = name in ("EXIT", "RET") or (name == "BRA" and opcode != "BRA.DIV")
            if not ends:
                continue
            target = re.search(r"`\((\.L_\w+)\)", rest)
            if name == "BRA" and target is not None:
                jumps[len(blocks) - 1] = target[1]
            # a branch may hold its condition as an operand: BRA P1, `(.L_x_1)
            conditional = found["guard"] is not None or re.match(r"\s*!?U?P\d", rest) is not None
            open_ended[-1] = conditional
            blocks.append(Block())
            open_ended.append(True)
    for index, block in enumerate(blocks):
        if index in jumps and jumps[index] in labels:
            block.targets.append(labels[jumps[index]])
        if open_ended[index] and index + 1 < len(blocks):
            block.targets.append(index + 1)
    return blocks


def executed(blocks: list[Block], trips: Trips) -> float:
    """Instructions of one warp on the longest way from the first block to an end."""
    reachable = _reachable(blocks, 0)
    loops = _nest(blocks, _loops(blocks, reachable))
    return _longest(blocks, 0, reachable, loops, trips, 0)


def _reachable(blocks: list[Block], start: int) -> set[int]:
    seen, waiting = {start}, [start]
    while waiting:
        for target in blocks[waiting.pop()].targets:
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def _loops(blocks: list[Block], reachable: set[int]) -> list[Loop]:
    """A loop is a branch back, to a block at or before its own in the listing, and all between that leads there."""
    before: dict[int, list[int]] = {index: [] for index in reachable}
    for index in reachable:
        for target in blocks[index].targets:
            before[target].append(index)
    found: dict[int, Loop] = {}
    for index in sorted(reachable):
        for header in blocks[index].targets:
            if header > index:
                continue
            loop = found.setdefault(header, Loop(header, {header}))
            waiting = [index]
            while waiting:
                block = waiting.pop()
                if block not in loop.body:
                    loop.body.add(block)
                    waiting += before[block]
    for loop in found.values():
        loop.opcodes = [opcode for block in sorted(loop.body) for opcode in blocks[block].opcodes]
    return sorted(found.values(), key=lambda loop: len(loop.body))


def _nest(blocks: list[Block], loops: list[Loop]) -> list[Loop]:
    """The outermost loops, with the others inside them; `loops` come smallest first."""
    outer: list[Loop] = []
    for i, loop in enumerate(loops):
        parent = next((other for other in loops[i + 1 :] if loop.header in other.body), None)
        (outer if parent is None else parent.inner).append(loop)
    return sorted(outer, key=lambda loop: loop.header)


def _longest(blocks: list[Block], start: int, body: set[int], loops: list[Loop], trips: Trips, depth: int) -> float:
    """The longest way through `body` from `start`, which does not come back to `start`."""
    inside = {block: loop for loop in loops for block in loop.body if loop.header != start}
    times = dict(zip((loop.header for loop in loops), trips(loops, depth), strict=True))
    cost: dict[int, float] = {}  # of a block, or of a whole loop under its header
    after: dict[int, set[int]] = {}

    def node(block: int) -> int:
        return inside[block].header if block in inside else block

    for block in body:
        cost.setdefault(node(block), 0.0)
        after.setdefault(node(block), set()).update(
            node(target)
            for target in blocks[block].targets
            if target in body and target != start and node(target) != node(block)
        )
        if block not in inside:
            cost[block] = len(blocks[block].opcodes)
    for loop in loops:
        inner = sorted(loop.inner, key=lambda one: one.header)
        once = _longest(blocks, loop.header, loop.body, inner, trips, depth + 1)
        cost[loop.header] = times[loop.header] * once

    # from the end: a listing is in an order in which only loops go back, and those are single nodes here
    best: dict[int, float] = {}

    def furthest(block: int) -> float:
        waiting = [block]
        while waiting:
            one = waiting[-1]
            left = [target for target in after[one] if target not in best]
            if left:
                waiting += left
                continue
            best[one] = cost[one] + max((best[target] for target in after[one]), default=0.0)
            waiting.pop()
        return best[block]

    return furthest(node(start))


def sampling_trips(L: int, P: int, lanes: int = 32) -> Trips:
    """How often the loops of a kernel run that goes over levels, then points, and adds up over `lanes` by halves.

    A loop over points may have been unrolled, with what is left over in a loop beside it: each point takes the floor of
    two coordinates, which tells how many points a round takes. Other loops, over channels, run once: a lane has one.
    """

    def trips(loops: list[Loop], depth: int) -> list[int]:
        points = [_points(loop) for loop in loops]
        most = max(points, default=0)
        result = []
        for loop, each in zip(loops, points, strict=True):
            if each:
                result.append(P // each if each == most else P % most // each)
            elif any(_points(inner) for inner in loop.inner):
                result.append(L)
            elif loop.count("SHFL") and not loop.inner:
                result.append((lanes - 1).bit_length() // loop.count("SHFL"))
            else:  # one beside that over the levels checks their sizes
                beside = any(_points(inner) for other in loops for inner in other.inner)
                result.append(L if beside and not loop.inner else 1)
        return result

    return trips


def _points(loop: Loop) -> int:
    """Of how many points a round of a loop over points takes the floors; 0 for any other loop."""
    return 0 if any(inner.count(_FLOOR) for inner in loop.inner) else loop.count(_FLOOR) // 2
