"""Does a map say how much of the score is lost with which part of the image? Parts are removed, whatever the map says.

What a detector loses does not depend on the map, so `remove` asks it once for all maps of a detection, and
`sensitivity_n` and `infidelity` of each map cost nothing more.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .measures import Array, checked


class Removals(NamedTuple):
    """What is lost with parts of an image."""

    patches: Array
    """(H, W) int, the patch of each pixel, from 0 on"""
    removed: Array
    """(N, patches) bool: the patches that are removed together"""
    drops: Array
    """(N,): the score of the whole image less that of what is left"""

    def sums(self, heat: Array) -> Array:
        """(N,): what a map (H, W) gives to the parts that are removed."""
        return self.removed @ np.bincount(self.patches.ravel(), np.ravel(heat), self.removed.shape[1])


def squares(shape: Sequence[int], grid: int = 14) -> Array:
    """(H, W) int: patches of a grid of `grid` by `grid`, row by row. Single pixels change no detector's mind.

    Raises ValueError for an image with fewer pixels than patches along a side.
    """
    if not 1 <= grid <= min(shape):
        raise ValueError(f"grid: expected 1 to {min(shape)} patches along a side of this image, got {grid}")
    down, across = (np.arange(size) * grid // size for size in shape)
    return down[:, None] * grid + across


def random_subsets(patches: int, sizes: Sequence[int], count: int, seed: int = 0) -> Array:
    """(len(sizes) * count, patches) bool: `count` random subsets of each of these numbers of patches."""
    if not all(1 <= size < patches for size in sizes):
        raise ValueError(f"sizes: expected 1 to {patches - 1} of {patches} patches, got {', '.join(map(str, sizes))}")
    generator = np.random.default_rng(seed)
    order = generator.permuted(np.tile(np.arange(patches), (len(sizes) * count, 1)), axis=1)
    return order < np.repeat(sizes, count)[:, None]


def random_squares(grid: int, count: int, seed: int = 0) -> Array:
    """(count, grid * grid) bool: squares of patches, of sides of 1 to half of the grid, at random places."""
    generator = np.random.default_rng(seed)
    side = generator.integers(1, max(1, grid // 2) + 1, count)
    corner = (generator.random((2, count)) * (grid - side + 1)).astype(int)
    place = np.arange(grid)
    down, across = ((start[:, None] <= place) & (place < (start + side)[:, None]) for start in corner)
    return (down[:, :, None] & across[:, None, :]).reshape(count, -1)


def remove(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    patches: Array,
    removed: Array,
    *,
    baseline: Tensor,
    batch_size: int = 8,
) -> Removals:
    """What a detection's score loses with each set of patches.

    Args:
        score: of images (B, 3, H, W) uint8, B scores.
        image: (3, H, W) uint8.
        patches: (H, W) int, such as `squares` gives.
        removed: (N, patches) bool, such as `random_subsets` or `random_squares` give; several can be put together.
        baseline: (3, H, W) uint8, what stands where patches are removed, such as `measures.filled` gives.
        batch_size: images to a call of `score`.

    Raises:
        ValueError: shapes that do not fit.
    """
    if baseline.shape != image.shape:
        raise ValueError(f"baseline: expected {tuple(image.shape)} like image, got {tuple(baseline.shape)}")
    if patches.shape != tuple(image.shape[1:]):
        raise ValueError(f"patches: expected {tuple(image.shape[1:])} like image, got {patches.shape}")
    if removed.ndim != 2 or removed.shape[1] <= patches.max():
        raise ValueError(f"removed: expected (N, {patches.max() + 1}), a column for each patch, got {removed.shape}")
    places = torch.from_numpy(patches).to(image.device)
    sets = torch.from_numpy(removed).to(image.device)
    whole = score(image[None])
    scores = [
        score(torch.stack([torch.where(one[places], baseline, image) for one in sets[start : start + batch_size]]))
        for start in range(0, len(sets), batch_size)
    ]
    return Removals(patches, removed, (whole - torch.cat(scores)).double().cpu().numpy())


def sensitivity_n(removals: Removals, heat: Array) -> float:
    """Do sums of the map over what is removed go with the score that is lost? Their correlation (Sensitivity-n).

    Ancona et al. 2018, "Towards better understanding of gradient-based attribution methods": Pearson's correlation
    over subsets of n parts, the mean over several n. From -1 to 1, and 1 is best: of a score that is a sum over
    pixels, the map of its terms has it, for every n. 0 for a flat map; near 0 for a random one.

    Args:
        removals: of random subsets of some numbers of patches; those of a number of patches are compared.
        heat: (H, W), at least 0.

    Returns:
        The mean; NaN where nothing that was removed made a difference.

    Raises:
        ValueError: a map that is none, or of another shape.
    """
    sums = removals.sums(checked(heat, removals.patches.shape))
    counts = removals.removed.sum(1)
    found = []
    for count in np.unique(counts):
        given, drops = sums[counts == count], removals.drops[counts == count]
        if len(drops) < 2 or _constant(drops):
            continue
        found.append(0.0 if _constant(given) else float(np.corrcoef(given, drops)[0, 1]))
    return float(np.mean(found)) if found else np.nan


def infidelity(removals: Removals, heat: Array, *, scaled: bool = True) -> float:
    """How far sums of the map over what is removed are from the score that is lost (infidelity).

    Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations": the mean squared difference, with whole
    squares of the image removed. A heat map has no unit, so it is brought to the score's by the factor, at least 0,
    with the least error, and the error is given as a share of what a map of nothing would have: from 0, which is best,
    to 1.

    Args:
        removals: of squares, as `random_squares` gives, or of any other parts.
        heat: (H, W), at least 0; with `scaled` False of any sign.
        scaled: False for attributions in the score's own unit, such as a gradient times the difference that removal
            makes: then it is the mean squared difference itself, in the score's unit squared, and has no largest value.

    Returns:
        The error; NaN where it is a share, and nothing that was removed made a difference.

    Raises:
        ValueError: a map that is none, or of another shape.
    """
    drops = removals.drops
    if not scaled:
        if np.shape(heat) != removals.patches.shape:
            raise ValueError(f"heat: expected {removals.patches.shape}, got {np.shape(heat)}")
        return float(np.square(removals.sums(heat) - drops).mean())
    sums = removals.sums(checked(heat, removals.patches.shape))
    nothing = float(np.square(drops).mean())
    if nothing == 0:
        return np.nan
    power = float(sums @ sums)  # 0 of a map that is nothing wherever something was removed
    factor = max(0.0, float(sums @ drops)) / power if power else 0.0
    return float(np.square(factor * sums - drops).mean()) / nothing


def _constant(values: Array) -> bool:
    # what only rounding tells apart has no order
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())
