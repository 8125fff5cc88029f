"""Target maps: at the right pixels, on one scale, and the same in the picture and in the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msdeform.train.commands.show import CAPTION, CELL, GAP, draw_sheet
from msdeform.train.data.dataset import Sample
from msdeform.train.visual.boxes import class_colour
from msdeform.train.visual.gaussians import OPACITY, draw_scale, gaussian_maps, paint, save_maps


@pytest.fixture
def sample() -> Sample:
    """A grey image of 40 x 20 with a box of class 2, 20 wide and 10 high, in the middle of its left half."""
    target = {"boxes": torch.tensor([[0.25, 0.5, 0.5, 0.5]]), "labels": torch.tensor([2]), "image_id": 7}
    return torch.full((3, 20, 40), 100, dtype=torch.uint8), target


def test_a_map_is_one_in_the_middle_and_as_wide_as_sigma_says() -> None:
    boxes = np.array([[0.25, 0.5, 0.5, 0.4]])
    [only] = gaussian_maps(boxes, np.array([2]), (101, 202), sigma=0.25).values()
    assert only.shape == (101, 202)
    assert np.unravel_index(only.argmax(), only.shape) == (50, 50)
    assert only.max() == pytest.approx(1.0, abs=1e-5)
    # one sigma is 25.25 pixels along x and 10.1 along y
    assert np.interp(50.5 + 25.25, np.arange(202) + 0.5, only[50]) == pytest.approx(np.exp(-0.5), abs=1e-3)
    assert np.interp(50.5 + 10.1, np.arange(101) + 0.5, only[:, 50]) == pytest.approx(np.exp(-0.5), abs=2e-3)


def test_boxes_of_a_class_share_a_map_that_never_exceeds_one() -> None:
    boxes = np.array([[0.3, 0.5, 0.4, 0.4], [0.3, 0.5, 0.4, 0.4], [0.7, 0.5, 0.2, 0.2]])
    maps = gaussian_maps(boxes, np.array([1, 1, 0]), (51, 51), sigma=0.25)
    assert sorted(maps) == [0, 1]
    assert maps[1].max() <= 1
    alone = gaussian_maps(boxes[:1], np.array([1]), (51, 51), sigma=0.25)
    assert np.array_equal(maps[1], alone[1])
    assert gaussian_maps(np.zeros((0, 4)), np.zeros(0, int), (5, 6), 0.25) == {}


def test_a_map_is_painted_in_its_class_colour() -> None:
    grey = Image.new("RGB", (2, 1), (100, 100, 100))
    first = np.array([[1.0, 0.0]], np.float32)
    painted = np.asarray(paint(grey, {3: first, 5: first[:, ::-1] * 0.5}))
    for pixel, label, opaque in ((0, 3, OPACITY), (1, 5, OPACITY / 2)):
        expected = 60 * (1 - opaque) + np.array(class_colour(label)) * opaque
        assert painted[0, pixel] == pytest.approx(expected, abs=1)
    assert np.asarray(paint(grey, {})).max() == 60


def test_maps_stand_beside_their_boxes_over_a_scale(sample: Sample) -> None:
    names = ["a", "b", "c"]
    sheet = draw_sheet(names, [sample], sigma=0.25)
    scale = draw_scale([2], ["c"], sheet.width)
    assert sheet.size == (2 * (CELL + GAP) + GAP, CELL + CAPTION + 2 * GAP + scale.height)
    # the middle of the box: its colour in the map, the image in the picture beside it
    x, y = round(GAP + CELL / 4), GAP + CELL // 2
    assert sheet.getpixel((x, y)) == (100, 100, 100)
    expected = 60 * (1 - OPACITY) + np.array(class_colour(2)) * OPACITY
    assert sheet.getpixel((x + CELL + GAP, y)) == pytest.approx(expected, abs=2)
    assert len(scale.crop((6, 30, 116, 31)).getcolors()) > 50
    repeated = draw_sheet(names, [sample] * 3, repeat=3, sigma=0.25)
    assert repeated.width == 6 * (CELL + GAP) + GAP


def test_the_numbers_are_those_of_the_samples(sample: Sample, tmp_path: Path) -> None:
    pixels, target = sample
    empty = (pixels, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": 8})
    save_maps([sample, empty], 0.25, tmp_path / "maps.npz")
    found = np.load(tmp_path / "maps.npz")
    assert found["boxes_0"].tolist() == [[0, 5, 20, 15]]
    assert found["classes_0"].tolist() == [2]
    expected = gaussian_maps(target["boxes"].numpy(), target["labels"].numpy(), (20, 40), 0.25)[2]
    assert found["maps_0"][0] == pytest.approx(expected, abs=1e-3)
    assert found["maps_1"].shape == (0, 20, 40)
    assert (found["image_id_0"], found["image_id_1"], found["sigma"]) == (7, 8, 0.25)
