"""The views of an image that are detected one by one, its tiles and their mirror images, and one result out of theirs.

Boxes of all views are merged by non-maximum suppression within each class: of two that overlap by more than half
(IoU), the one with the higher score stays. A box that ends at a border within the image is probably cut there, so it
counts half its score, and yields to a box that covers most of it, which takes its score if that is higher.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .detections import Detections

# of two boxes of a class that overlap by more, one goes: IoU, or share of a cut box that the other covers
OVERLAP = 0.5
# a box that ends this close to a border of its tile, in parts of the tile's side, is taken for cut
NEAR = 0.01
# what the score of a cut box counts
CUT = 0.5


@dataclass(frozen=True)
class Tiling:
    """How images are cut into overlapping squares. Raises ValueError."""

    size: int
    """Side of a tile in pixels of the image."""
    overlap: float = 0.2
    """Least share of a tile's side that it has in common with the next."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"tiles: expected at least 1 pixel, got {self.size}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap: expected a share of at least 0 and below 1, got {self.overlap:g}")

    def check(self, height: int, width: int, name: str = "image") -> None:
        """Raises ValueError for an image that is smaller than a tile along both sides."""
        if self.size > max(height, width):
            raise ValueError(
                f"tiles: expected at most the longest side of {name}, which is {width} wide and {height} high, "
                f"got {self.size}"
            )

    def of(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """The tiles of an image, xyxy in pixels, row by row, evenly apart; as high or wide as an image that is less."""
        return [
            (x, y, min(x + self.size, width), min(y + self.size, height))
            for y in self._starts(height)
            for x in self._starts(width)
        ]

    def _starts(self, side: int) -> list[int]:
        beyond = side - self.size
        if beyond <= 0:
            return [0]
        steps = math.ceil(beyond / max(1, int(self.size * (1 - self.overlap))))
        return [round(beyond * step / steps) for step in range(steps + 1)]


@dataclass(frozen=True)
class View:
    """A part of an image, or all of it."""

    pixels: Tensor
    """(3, h, w) uint8, not mirrored."""
    name: str
    """What errors call the image."""
    image_size: tuple[int, int]
    """(height, width) of the whole image."""
    place: tuple[int, int, int, int]
    """xyxy in the image."""
    mirrored: bool = False
    last: bool = False
    """Is it the last of its image?"""

    def in_image(self, boxes: Tensor, labels: Tensor, scores: Tensor) -> Detections:
        """Detections of this view, their boxes (N, 4) shifted to where they are in the image, and mirrored back."""
        left, top, right, _ = self.place
        if self.mirrored:
            boxes = torch.stack([right - left - boxes[:, 2], boxes[:, 1], right - left - boxes[:, 0], boxes[:, 3]], 1)
        return Detections(boxes + boxes.new_tensor([left, top, left, top]), labels, scores, self.image_size)

    def cut(self, boxes: Tensor) -> Tensor:
        """Which boxes (N, 4) in pixels of the image end at a border of this view within the image: (N,) bool."""
        left, top, right, bottom = self.place
        near_x, near_y = (right - left) * NEAR, (bottom - top) * NEAR
        height, width = self.image_size
        cut = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        if left > 0:
            cut |= boxes[:, 0] <= left + near_x
        if top > 0:
            cut |= boxes[:, 1] <= top + near_y
        if right < width:
            cut |= boxes[:, 2] >= right - near_x
        if bottom < height:
            cut |= boxes[:, 3] >= bottom - near_y
        return cut


def views(image: Tensor, name: str, tiling: Tiling | None, flip: bool) -> list[View]:
    """The image (3, H, W), then its tiles, each followed by its mirror image with ``flip``; none of them copies.

    Raises ValueError for an image that is smaller than a tile.
    """
    height, width = image.shape[1:]
    whole = (0, 0, width, height)
    places = [whole]
    if tiling is not None:
        tiling.check(height, width, name)
        places += [place for place in tiling.of(height, width) if place != whole]
    several = [
        View(image[:, y0:y1, x0:x1], name, (height, width), (x0, y0, x1, y1), mirrored)
        for x0, y0, x1, y1 in places
        for mirrored in ((False, True) if flip else (False,))
    ]
    several[-1] = replace(several[-1], last=True)
    return several


def merge(parts: Sequence[tuple[Detections, Tensor]], top_k: int) -> Detections:
    """The best ``top_k`` detections of an image out of those of its views, in its pixels, with which are cut (N,)."""
    boxes, labels, scores = (torch.cat([found[key] for found, _ in parts]) for key in ("boxes", "labels", "scores"))
    cut = torch.cat([cut for _, cut in parts])
    weighed = torch.where(cut, scores * CUT, scores)
    kept = batched_nms(boxes.float(), weighed.float(), labels, OVERLAP)
    whole = kept[~cut[kept]]
    if cut.any() and len(whole):
        halves = cut.nonzero()[:, 0]
        yields = _covered(boxes[halves], boxes[whole]) > OVERLAP
        yields &= (labels[halves][:, None] == labels[whole]) & (weighed[halves][:, None] <= scores[whole])
        kept = torch.cat([whole, kept[~torch.isin(kept, halves[yields.any(1)]) & cut[kept]]])
        # the box that stays has the higher score of the two: no minimum score can lose what one of them reached
        to = whole[(scores[whole] * yields).argmax(1)][yields.any(1)]
        scores = scores.scatter_reduce(0, to, scores[halves[yields.any(1)]], "amax")
    best = kept[scores[kept].argsort(descending=True, stable=True)[:top_k]]
    return Detections(boxes[best], labels[best], scores[best], parts[0][0].image_size)


def _covered(boxes: Tensor, others: Tensor) -> Tensor:
    """The share of each box's area that each of the others covers: (N, M)."""
    sides = torch.minimum(boxes[:, None, 2:], others[:, 2:]) - torch.maximum(boxes[:, None, :2], others[:, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return sides.clamp(min=0).prod(2) / area.clamp(min=1e-9)[:, None]
