"""Polygons of masks: walked back into a mask they are the mask."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_fill_holes

from msdeform.train.data.synthetic.outlines import mask_polygons


def filled(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return coco_mask.decode(runs).astype(bool)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_give_the_mask_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 31), dtype=bool)
    for _ in range(4):  # rectangles, apart or overlapping
        y, x = rng.integers(0, 18, 2)
        mask[y : y + rng.integers(2, 6), x : x + rng.integers(2, 12)] = True
    # COCO's polygons know no holes; a gap that reaches the outside only over a corner is none
    expected = binary_fill_holes(mask, structure=np.ones((3, 3)))
    assert np.array_equal(filled(mask_polygons(mask), *mask.shape), expected)


def test_two_parts_that_touch_at_a_corner_stay_two() -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[1:3, 1:3] = mask[3:5, 3:5] = True
    assert sorted(mask_polygons(mask)) == [[1, 1, 3, 1, 3, 3, 1, 3], [3, 3, 5, 3, 5, 5, 3, 5]]


def test_a_hole_is_left_out() -> None:
    mask = np.ones((5, 5), dtype=bool)
    mask[2, 2] = False
    assert [sorted(zip(p[::2], p[1::2], strict=True)) for p in mask_polygons(mask)] == [
        [(0, 0), (0, 5), (5, 0), (5, 5)]
    ]


def test_an_empty_mask_has_no_polygon() -> None:
    assert mask_polygons(np.zeros((4, 4), dtype=bool)) == []
