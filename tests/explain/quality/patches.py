"""Maps of the planted detectors with their patches somewhere else: as hot as the right ones, and wrong."""

import numpy as np

from tests.explain.planted import BOARD, PATCH


def shuffled(heat: np.ndarray, seed: int) -> np.ndarray:
    """A map (64, 64) whose patches of 8 x 8 pixels are permuted."""
    patches = heat.reshape(BOARD, PATCH, BOARD, PATCH).swapaxes(1, 2).reshape(-1, PATCH, PATCH)
    moved = np.random.default_rng(seed).permutation(patches).reshape(BOARD, BOARD, PATCH, PATCH)
    return moved.swapaxes(1, 2).reshape(heat.shape)
