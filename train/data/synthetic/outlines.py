"""From a mask to COCO polygons: walk along the edges between pixels inside and outside."""

import numpy as np


def mask_polygons(mask: np.ndarray) -> list[list[float]]:
    """The outer borders of a mask's parts, as COCO's ``segmentation`` wants them.

    Args:
        mask: (H, W) bool.

    Returns:
        One flat list [x0, y0, x1, y1, ...] for each part, along pixel corners, so that a mask without holes is given
        back to the pixel. COCO polygons know no holes: those are left out (filled).
    """
    if not mask.any():
        return []
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    # a border edge is directed so that the inside lies on its right: start corner -> end corners
    ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
    steps = {"top": (-1, 0), "bottom": (1, 0), "left": (0, -1), "right": (0, 1)}
    corners = {
        "top": ((0, 0), (1, 0)),
        "right": ((1, 0), (1, 1)),
        "bottom": ((1, 1), (0, 1)),
        "left": ((0, 1), (0, 0)),
    }
    for side, (dy, dx) in steps.items():
        neighbour = np.roll(padded, (-dy, -dx), axis=(0, 1))
        (ax, ay), (bx, by) = corners[side]
        edges = np.argwhere(padded & ~neighbour) + np.array([top - 1, left - 1])
        for y, x in edges.tolist():
            ends.setdefault((x + ax, y + ay), []).append((x + bx, y + by))
    return [[float(number) for corner in loop for number in corner] for loop in _loops(ends) if _signed_area(loop) > 0]


def _loops(ends: dict[tuple[int, int], list[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
    loops = []
    while ends:
        start = next(iter(ends))
        here, heading, loop = start, (0, 0), []
        while True:
            choices = ends[here]
            # where two parts touch at a corner, turn right: they stay two parts
            onward = choices[0] if len(choices) == 1 else _rightmost(here, heading, choices)
            choices.remove(onward)
            if not choices:
                del ends[here]
            step = (onward[0] - here[0], onward[1] - here[1])
            if step != heading:
                loop.append(here)  # only corners where the border turns
            here, heading = onward, step
            if here == start:
                break
        loops.append(loop)
    return loops


def _rightmost(here: tuple[int, int], heading: tuple[int, int], choices: list[tuple[int, int]]) -> tuple[int, int]:
    """The corner that lies furthest to the right of where the walk is heading."""
    # the cross product is positive for a right turn, because y points down
    return max(choices, key=lambda to: heading[0] * (to[1] - here[1]) - heading[1] * (to[0] - here[0]))


def _signed_area(loop: list[tuple[int, int]]) -> float:
    """Positive for outer borders, negative for the borders of holes."""
    x, y = np.array(loop, dtype=np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
