"""D-RISE (Petsiuk et al. 2021): what of the image a detection needs, found by looking at it through random masks.

A mask is a grid of cells, each open or closed with probability 1/2, shifted at random by less than a cell and made
smooth by bilinear interpolation (Petsiuk et al. 2018). What it closes takes ImageNet's mean colour, which is zero for
the detector. The published map is the mean of the masks, each weighed by how much of the detection is left under it.
That is, up to noise, the mean score everywhere plus the covariance of score and mask, so this map is the covariance's
positive part: the same order of pixels, without the floor that would make shares of the map meaningless, and without
the noise of masks that happen to cover a place more often.

How much is left is `measures.detection_score`, IoU times probability, where the paper multiplies IoU, objectness and
the cosine of class probabilities: see there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.trace import AttentionTrace, QueryPrediction
from ..options import SAMPLES
from .black_box import ask, images_at_once, score_of

GRID = 8
"""Cells along the shorter side of the image."""
OPEN = 0.5
"""Share of cells that are open."""


@dataclass(frozen=True, eq=False)
class GridMasks:
    """Random masks of an image, for any resolution of it."""

    nodes: Tensor
    """(N, rows, columns) float32, 1 where open: values at the corners of the cells."""
    shifts: Tensor
    """(N, 2), how far the grid is moved up and to the left, in cells, from 0 to 1."""
    cells: tuple[float, float]
    """The image's height and width, in cells."""

    @classmethod
    def draw(cls, count: int, height: int, width: int, seed: int = 0, grid: int = GRID) -> "GridMasks":
        """Masks of square cells for an image of this height and width; always the same for a seed."""
        generator = torch.Generator().manual_seed(seed)
        cell = min(height, width) / grid
        cells = height / cell, width / cell
        # one more for the shift, and one for the far corner of the last cell
        shape = (count, *(math.ceil(length) + 2 for length in cells))
        nodes = (torch.rand(shape, generator=generator) < OPEN).float()
        return cls(nodes, torch.rand(count, 2, generator=generator), cells)

    def __len__(self) -> int:
        return len(self.nodes)

    def on(self, height: int, width: int, rows: slice = slice(None)) -> Tensor:
        """The masks `rows`, from 0, closed, to 1, at the pixels of an image: (n, height, width)."""
        down, across = self._sides(height, width, rows)
        return down @ self.nodes[rows] @ across.mT

    def weighed(self, weights: Tensor, height: int, width: int) -> Tensor:
        """The sum of all masks, each times its weight (N,): (height, width)."""
        total = torch.zeros(height, width)
        for start in range(0, len(self), 64):  # whole masks of a photograph would take a GB
            rows = slice(start, start + 64)
            down, across = self._sides(height, width, rows)
            left = weights[rows, None, None] * (down @ self.nodes[rows])  # (n, height, columns)
            total += left.transpose(0, 1).flatten(1) @ across.transpose(1, 2).flatten(0, 1)
        return total

    def _sides(self, height: int, width: int, rows: slice) -> tuple[Tensor, Tensor]:
        """What each node is worth at each row of pixels, (n, height, rows), and at each column."""
        found = []
        for axis, length in enumerate((height, width)):
            place = (torch.arange(length) + 0.5) / length * self.cells[axis] + self.shifts[rows, axis, None]
            node = torch.arange(self.nodes.shape[axis + 1])
            found.append((1 - (place[..., None] - node).abs()).clamp(min=0))
        return found[0], found[1]


@dataclass(frozen=True, eq=False)
class Answers:
    """What the detector answered to an image under masks."""

    masks: GridMasks
    probabilities: Tensor
    """(N, Q, classes), in half precision: of 900 queries and 500 masks 90 classes take 80 MB."""
    boxes: Tensor
    """(N, Q, 4) xyxy, shares of the image."""


# all detections of an image share its masks; forgotten with the trace
_ANSWERS: WeakKeyDictionary[AttentionTrace, tuple[tuple[int, int, int], Answers]] = WeakKeyDictionary()


def _nothing() -> None:
    """No progress is shown."""


def answers(
    trace: AttentionTrace,
    samples: int = SAMPLES,
    *,
    seed: int = 0,
    grid: int = GRID,
    advance: Callable[[], None] = _nothing,
) -> Answers:
    """What the trace's detector answers to its image under random masks; the last asked for are kept with the trace.

    Args:
        samples: how many masks, each a forward pass.
        seed: of the masks.
        grid: cells along the image's shorter side.
        advance: called once for every mask that is done.

    Raises ValueError for less than 2 samples.
    """
    if samples < 2:
        raise ValueError(f"samples: expected at least 2 masked images, got {samples}")
    asked = (samples, seed, grid)
    if trace not in _ANSWERS or _ANSWERS[trace][0] != asked:
        masks = GridMasks.draw(samples, trace.height, trace.width, seed, grid)
        parts, batch = [], images_at_once(trace)
        h, w = trace.pixels.shape[1:]
        for start in range(0, samples, batch):
            shown = masks.on(h, w, slice(start, start + batch)).to(trace.pixels)
            probabilities, boxes = ask(trace, trace.pixels * shown[:, None])
            parts.append((probabilities.half().cpu(), boxes.float().cpu()))
            for _ in shown:
                advance()
        # of a detector that finds more in one image than in another
        most = max(boxes.shape[1] for _, boxes in parts)
        probabilities, boxes = (
            torch.cat([torch.nn.functional.pad(part, (0, 0, 0, most - part.shape[1])) for part in each])
            for each in zip(*parts, strict=True)
        )
        _ANSWERS[trace] = asked, Answers(masks, probabilities, boxes)
    return _ANSWERS[trace][1]


def drise(
    trace: AttentionTrace, prediction: QueryPrediction, *, samples: int = SAMPLES, seed: int = 0, grid: int = GRID
) -> Tensor:
    """D-RISE's map of a detection, (H, W) float32: see the head of this file. Arguments and errors as of `answers`."""
    known = answers(trace, samples, seed=seed, grid=grid)
    return scored(known.masks, score_of(trace, prediction, known.probabilities.float(), known.boxes), trace)


def scored(masks: GridMasks, scores: Tensor, image: AttentionTrace) -> Tensor:
    """The map (H, W) of scores (N,) under masks: the positive part of their covariance, over the share that is open.

    So it is by how much the score is above its mean, on average, where a pixel is seen.
    """
    weights = (scores - scores.mean()) / (OPEN * len(masks))
    return masks.weighed(weights, image.height, image.width).clamp(min=0)
