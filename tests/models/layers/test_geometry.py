import math

import pytest
import torch

from msdeform.models.layers.geometry import (
    Levels,
    at_least_float32,
    encoder_reference_points,
    inverse_sigmoid,
    proposals,
    valid_ratios,
)

SHAPES = ((4, 6), (2, 3))
# valid height and width of each level, for two images
VALID = (((4, 6), (2, 3)), ((3, 4), (2, 2)))


@pytest.fixture
def levels():
    masks = []
    for level, (h, w) in enumerate(SHAPES):
        mask = torch.ones(len(VALID), h, w, dtype=torch.bool)
        for image, sizes in enumerate(VALID):
            mask[image, : sizes[level][0], : sizes[level][1]] = False
        masks.append(mask)
    flat = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    return Levels(SHAPES, valid_ratios(masks, torch.float64), flat)


def pixels(image):
    """(level, row, column, valid height and width) of each flattened pixel."""
    return [
        (level, i, j, *VALID[image][level]) for level, (h, w) in enumerate(SHAPES) for i in range(h) for j in range(w)
    ]


def test_valid_ratios(levels):
    for image, sizes in enumerate(VALID):
        for level, (h, w) in enumerate(sizes):
            expected = [w / SHAPES[level][1], h / SHAPES[level][0]]
            assert levels.ratios[image, level].tolist() == pytest.approx(expected, rel=1e-12)


def test_encoder_reference_points(levels):
    points = encoder_reference_points(levels)
    assert points.shape == (2, 30, 2, 2)
    for image in range(2):
        for s, (_, i, j, valid_h, valid_w) in enumerate(pixels(image)):
            for level, (h, w) in enumerate(SHAPES):
                share_x, share_y = (j + 0.5) / valid_w, (i + 0.5) / valid_h
                expected = [share_x * VALID[image][level][1] / w, share_y * VALID[image][level][0] / h]
                assert points[image, s, level].tolist() == pytest.approx(expected, rel=1e-12)


def test_proposals(levels):
    logits, usable = proposals(levels)
    seen = set()
    for image in range(2):
        for s, (level, i, j, valid_h, valid_w) in enumerate(pixels(image)):
            box = [(j + 0.5) / valid_w, (i + 0.5) / valid_h, 0.05 * 2**level, 0.05 * 2**level]
            expected = i < valid_h and j < valid_w and all(0.01 < x < 0.99 for x in box)
            assert bool(usable[image, s]) == expected
            seen.add(expected)
            if expected:
                assert logits[image, s].tolist() == pytest.approx([math.log(x / (1 - x)) for x in box], rel=1e-12)
            else:
                assert (logits[image, s] == float("inf")).all()
    assert seen == {True, False}


def test_proposals_too_close_to_the_border_or_too_large_are_not_usable():
    # centres at 1/400 from the border; and on the sixth level boxes of 1.6 of the image
    wide = Levels(((1, 200),), torch.ones(1, 1, 2), torch.zeros(1, 200, dtype=torch.bool))
    logits, usable = proposals(wide)
    assert usable[0].tolist() == [False, False] + [True] * 196 + [False, False]
    assert not logits.isnan().any()
    deep = Levels(((1, 1),) * 6, torch.ones(1, 6, 2), torch.zeros(1, 6, dtype=torch.bool))
    assert proposals(deep)[1][0].tolist() == [True] * 5 + [False]


def test_inverse_sigmoid_is_bounded():
    x = torch.tensor([-1.0, 0.0, 0.3, 1.0, 2.0], dtype=torch.float64)
    bound = math.log(1e5)
    assert inverse_sigmoid(x).tolist() == pytest.approx([-bound, -bound, math.log(3 / 7), bound, bound], rel=1e-9)


def test_widen():
    assert [
        at_least_float32(torch.zeros(1, dtype=d)).dtype for d in (torch.bfloat16, torch.float32, torch.float64)
    ] == [
        torch.float32,
        torch.float32,
        torch.float64,
    ]
