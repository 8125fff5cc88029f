"""Where the labels of boxes stand in a picture: inside it, none over another."""

from collections.abc import Sequence

import numpy as np

Rectangle = tuple[float, float, float, float]
"""x0, y0, x1, y1 with y downwards."""

# positions that are compared with all placed labels at once
_CHUNK = 4096


def place_labels(
    boxes: Sequence[Rectangle], sizes: Sequence[tuple[float, float]], picture: Rectangle
) -> list[Rectangle | None]:
    """A rectangle for the label of each box; no two intersect, and none leaves the picture.

    The first box's label is placed first. It stands where it is expected, above the box at its left, if there is room;
    else at the nearest free place, the box's other edges and corners before all others. A label finds no place, and
    gets None, only where those placed before leave no free rectangle of its size in the picture: it is then left out,
    and a smaller one after it may still be placed.

    Args:
        boxes: that the labels belong to, in any unit; they may leave the picture.
        sizes: width and height of each label, in the same unit.
        picture: that labels must not leave.

    Raises:
        ValueError: boxes and sizes differ in number.
    """
    if len(boxes) != len(sizes):
        raise ValueError(f"sizes: expected one for each of {len(boxes)} boxes, got {len(sizes)}")
    placed: list[Rectangle | None] = []
    taken = np.empty((0, 4))
    failed: list[tuple[float, float]] = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        hopeless = any(width >= wide and height >= high for wide, high in failed)
        corner = None if hopeless else _free_corner(box, width, height, picture, taken)
        if corner is None:
            failed.append((width, height))
            placed.append(None)
            continue
        x, y = corner
        placed.append((x, y, x + width, y + height))
        taken = np.concatenate([taken, [placed[-1]]])
    return placed


def _free_corner(
    box: Rectangle, width: float, height: float, picture: Rectangle, taken: np.ndarray
) -> tuple[float, float] | None:
    """The upper left corner of the nearest free rectangle of that size; None where there is none."""
    left, top, right, bottom = picture
    last_x, last_y = right - width, bottom - height
    if last_x < left or last_y < top:
        return None
    x0, x1 = (min(max(x, left), right) for x in (min(box[0], box[2]), max(box[0], box[2])))
    y0, y1 = (min(max(y, top), bottom) for y in (min(box[1], box[3]), max(box[1], box[3])))
    wanted = [
        (x0, y0 - height), (x1 - width, y0 - height), (x0, y0), (x1 - width, y0),
        (x0, y1), (x1 - width, y1), (x0, y1 - height), (x1 - width, y1 - height),
    ]  # fmt: skip
    # a free rectangle can be pushed left and up until something stops it: these are all places where that can be
    columns = np.concatenate([[left, last_x, x0, x1 - width, x1, x0 - width], taken[:, 2], taken[:, 0] - width])
    rows = np.concatenate([[top, last_y, y0 - height, y0, y1, y1 - height], taken[:, 3], taken[:, 1] - height])
    columns = np.unique(columns[(columns >= left) & (columns <= last_x)])
    rows = np.unique(rows[(rows >= top) & (rows <= last_y)])
    everywhere = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    # from the middle of the label to the nearest place on the box
    middle = everywhere + np.array([width, height]) / 2
    away = np.abs(middle - middle.clip([x0, y0], [x1, y1])).sum(-1) + 0.01 * np.abs(everywhere - [x0, y0]).sum(-1)
    inside = [(min(max(x, left), last_x), min(max(y, top), last_y)) for x, y in wanted]
    corners = np.concatenate([inside, everywhere[away.argsort(kind="stable")]])
    for start in range(0, len(corners), _CHUNK):
        x, y = corners[start : start + _CHUNK].T[..., None]
        hit = (x < taken[:, 2]) & (x + width > taken[:, 0]) & (y < taken[:, 3]) & (y + height > taken[:, 1])
        free = np.flatnonzero(~hit.any(-1))
        if len(free):
            return float(x[free[0], 0]), float(y[free[0], 0])
    return None


def lead(label: Rectangle, box: Rectangle) -> tuple[float, float, float, float] | None:
    """The line from a label that stands apart from its box to the box: x, y, x, y; None where they touch."""
    x0, y0, x1, y1 = min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])
    if label[0] <= x1 and label[2] >= x0 and label[1] <= y1 and label[3] >= y0:
        return None
    x, y = (label[0] + label[2]) / 2, (label[1] + label[3]) / 2
    return min(max(x, label[0]), label[2]), y, min(max(x, x0), x1), min(max(y, y0), y1)
