"""Pixels removed by filling them in from their neighbours, so that the hole's shape tells the detector nothing."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from .measures import Array, Curve, checked, falling

# the paper goes on to 0.9; few objects take half of their image, and the largest systems take most of the time
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
_NEIGHBOURS = {
    (down, across): 1 / 12 if down and across else 1 / 6
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if down or across
}


class _Normal(Protocol):
    def standard_normal(self, size: tuple[int, int]) -> Array: ...


def impute(image: Array, removed: Array, *, noise: float = 0.0, generator: _Normal | None = None) -> Array:
    """An image whose removed pixels are the weighted means of their eight neighbours, and some noise.

    Rong et al. 2022 (ROAD), "A consistent and efficient evaluation strategy for attribution methods": noisy linear
    imputation. Neighbours above, below and beside weigh twice what those across do; neighbours may be removed
    themselves, so a sparse system of equations is solved.

    Args:
        image: (C, H, W), of any unit.
        removed: (H, W) bool.
        noise: standard deviation of the noise, in the image's unit.
        generator: of the noise; numpy's of seed 0 by default.

    Returns:
        (C, H, W) float64

    Raises:
        ValueError: shapes that do not fit, or no pixel is left.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import spsolve

    if removed.shape != image.shape[1:]:
        raise ValueError(f"removed: expected {image.shape[1:]} like image, got {removed.shape}")
    if removed.all():
        raise ValueError("removed: expected a pixel that is left to fill in the others from, got none")
    filled = np.array(image, dtype=np.float64)
    count = int(removed.sum())
    if not count:
        return filled
    rows, columns = np.nonzero(removed)
    unknown = np.full(removed.shape, -1)
    unknown[rows, columns] = np.arange(count)
    weights, known = np.zeros(count), np.zeros((count, len(filled)))
    entries: list[tuple[Array, Array, Array]] = []
    for (down, across), weight in _NEIGHBOURS.items():
        y, x = rows + down, columns + across
        there = np.nonzero((y >= 0) & (y < removed.shape[0]) & (x >= 0) & (x < removed.shape[1]))[0]
        y, x = y[there], x[there]
        weights[there] += weight
        gone = removed[y, x]
        known[there[~gone]] += weight * filled[:, y[~gone], x[~gone]].T
        entries.append((there[gone], unknown[y[gone], x[gone]], np.full(int(gone.sum()), -weight)))
    entries.append((np.arange(count), np.arange(count), weights))
    at, of, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = coo_array((values, (at, of)), shape=(count, count)).tocsc()
    # in scipy's own order: that for symmetric matrices takes a hundred times as long where pixels left are scattered
    found = spsolve(matrix, known).reshape(count, -1).T
    if noise:
        generator = np.random.default_rng(0) if generator is None else generator
        found = found + noise * generator.standard_normal((len(filled), count))
    filled[:, rows, columns] = found
    return filled


def road(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    heat: Array,
    *,
    shares: Sequence[float] = SHARES,
    order: Literal["hottest", "coldest"] = "hottest",
    noise: float = 0.01,
    batch_size: int = 8,
    seed: int = 0,
) -> Curve:
    """The score while the hottest pixels, or the coldest, are filled in from their neighbours (ROAD).

    Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution methods". As deletion, but what
    stands where pixels were is no image of its own, and does not show the map's outline to the detector. The mean of
    ``scores``, or ``auc``, is from 0 to 1 of a score that is: with the hottest first low is good, with the coldest
    first high.

    Args:
        score: of images (B, 3, H, W) uint8, B scores.
        image: (3, H, W) uint8.
        heat: (H, W), at least 0.
        shares: of the image's pixels, rising, each less than 1.
        order: which pixels go first.
        noise: of what is filled in, as a share of 255, before it is rounded.
        batch_size: images to a call of `score`.
        seed: of the noise, and of the order of pixels equally hot.

    Raises:
        ValueError: shapes that do not fit, or shares that do not rise from 0 to less than 1.
    """
    if order not in ("hottest", "coldest"):
        raise ValueError(f"order: expected hottest or coldest, got {order!r}")
    if len(shares) < 2 or not (shares[0] >= 0 and shares[-1] < 1 and (np.diff(shares) > 0).all()):
        raise ValueError(f"shares: expected at least two, rising from 0 to less than 1, got {tuple(shares)}")
    heat = checked(heat, tuple(image.shape[1:]))
    ranked = falling(heat if order == "hottest" else -heat, seed)
    counts = [int(heat.size * share) for share in shares]
    pixels = image.cpu().numpy()
    scores = []
    for start in range(0, len(counts), batch_size):
        batch = [
            impute(pixels, ranked < count, noise=255 * noise, generator=np.random.default_rng([seed, count]))
            for count in counts[start : start + batch_size]
        ]
        scores.append(score(torch.from_numpy(np.clip(np.rint(batch), 0, 255).astype(np.uint8)).to(image.device)))
    return Curve(np.array(counts) / heat.size, torch.cat(scores).double().cpu().numpy())
