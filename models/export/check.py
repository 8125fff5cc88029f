"""What an exported detector is compared with its model on: pictures, and padding that tells every row and column apart.

A map's padding mask takes whole rows and columns of the image's. Three kinds of masks find one that is taken wrongly:

- no padding;
- stripes: in pass k, a row or a column is padded where bit k of its number is set, so that any two rows, and any two
  columns, differ in some pass, and a wrong one on any level changes the mask there;
- boundaries: padding at the right and at the bottom, as `pad_images` makes it, with each number of real rows and of
  real columns beside which the mask of some level changes, coarsest level first.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..families.detector import Detector
from ..inference.images import SUFFIXES, normalise, read_image

Padding = tuple[Tensor, Tensor]
"""Rows (H, 1) and columns (W,) that are padded, bool; one or the other pads a pixel."""


def photographs(path: Path, size: tuple[int, int], most: int | None = None) -> list[Tensor]:
    """The image at `path`, or those in that folder, the first `most` by name, normalised and resized to (3, *size).

    Raises FileNotFoundError for a folder without images, and what `read_image` raises.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"images: folder {path} holds no image ({', '.join(SUFFIXES)})")
    return [normalise(F.resize(read_image(file), list(size), antialias=True)) for file in files[:most]]


def like_a_photograph(size: tuple[int, int], seed: int = 0) -> Tensor:
    """A normalised image (3, *size) of noise whose amplitude falls with frequency, as in photographs, and of edges.

    White noise is the same everywhere: all queries of a two-stage detector have nearly one score in it.
    """
    height, width = size
    random = torch.Generator().manual_seed(seed)
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    amplitude = 1 / (fy.square() + fx.square()).sqrt().clamp(min=1 / max(size))
    phases = torch.randn(4, *amplitude.shape, generator=random, dtype=torch.complex64)
    waves = torch.fft.irfft2(phases * amplitude, s=size)
    waves = waves / waves.std(dim=(1, 2), keepdim=True)
    image = waves[:1] + 0.3 * waves[1:]  # colours of a photograph differ less than its brightness
    for _ in range(12):
        y, x = (int(torch.randint(side, (), generator=random)) for side in size)
        h, w = (int(torch.randint(2, max(3, side // 3), (), generator=random)) for side in size)
        image[:, y : y + h, x : x + w] += torch.randn(3, 1, 1, generator=random)
    return image.clamp(-2, 2.5)


def map_sizes(model: Detector, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(h, w) of each feature map that a DETR makes of images of (height, width), finest first."""
    projections = model.get_submodule("conv" if hasattr(model, "conv") else "input_proj")
    found: list[tuple[int, int]] = []
    watched = list(projections) if isinstance(projections, torch.nn.ModuleList) else [projections]
    hooks = [
        part.register_forward_hook(lambda _module, _inputs, made: found.append((made.shape[-2], made.shape[-1])))
        for part in watched
    ]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *size, dtype=model.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def boundaries(full: int, maps: Sequence[int]) -> list[int]:
    """Numbers of real rows, 1 to `full`, on both sides of each change of the mask of a map of so many rows.

    Row i of a map of h rows is that of row floor(i * full / h): padded with so many real rows, real with one more.
    Those of the smallest map come first.
    """
    found: dict[int, None] = {}
    for short in sorted(maps):
        for i in range(1, short):
            start = i * full // short
            found.update({start: None, start + 1: None})
    return [real for real in found if 1 <= real <= full]


def paddings(size: tuple[int, int], maps: Sequence[tuple[int, int]]) -> tuple[list[Padding], list[Padding]]:
    """Masks to compare with: no padding and stripes; and boundaries.

    A boundary of rows and one of columns are tried together, the shorter list again and again.
    """
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    first = [(rows < 0, columns < 0)]
    first += [(rows >> bit & 1 == 1, columns >> bit & 1 == 1) for bit in range((max(size) - 1).bit_length())]
    real_rows = boundaries(size[0], [height for height, _ in maps]) or [size[0]]
    real_columns = boundaries(size[1], [width for _, width in maps]) or [size[1]]
    pairs = zip(cycle(real_rows), cycle(real_columns), strict=False)
    return first, [(rows >= y, columns >= x) for y, x in islice(pairs, max(len(real_rows), len(real_columns)))]
