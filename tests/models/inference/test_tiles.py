"""Tiles and mirror images: where they are, and what becomes of the boxes found in them."""

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msdeform.models.inference.detections import Detections
from msdeform.models.inference.image_size import ExactSize
from msdeform.models.inference.post_processing import post_process
from msdeform.models.inference.predictor import Predictor
from msdeform.models.inference.tiles import Tiling, merge, views


class Spots(Predictor):
    """Finds each bright spot of at least four pixels of its input, which is a square of 32: one query for each."""

    input_size = ExactSize(32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        from scipy import ndimage

        boxes, logits = torch.full((len(images), 20, 4), 0.5), torch.full((len(images), 20, 1), -20.0)
        for number, image in enumerate(images):
            self.shapes.append(tuple(image.shape))
            labels, _ = ndimage.label(image[0].numpy() > 1)
            for query, (rows, columns) in enumerate(ndimage.find_objects(labels)):
                x0, x1, y0, y1 = columns.start / 32, columns.stop / 32, rows.start / 32, rows.stop / 32
                if (x1 - x0) * (y1 - y0) * 1024 >= 4:
                    boxes[number, query] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
                    logits[number, query] = 2 + x1 / 10  # what is further right is surer
        return {"pred_logits": logits, "pred_boxes": boxes}

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
        return post_process(outputs, target_sizes, top_k)


def spotted(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 255
    return image


SMALL = [(20, 30, 23, 33), (61, 60, 65, 64), (118, 90, 122, 93), (100, 10, 104, 13)]


def by_place(found: Detections) -> list[list[int]]:
    return sorted(found.boxes.round().int().tolist())


def test_small_objects_are_found_in_tiles_and_a_cut_one_comes_whole() -> None:
    image, model = spotted(96, 128, *SMALL), Spots()
    assert len(model.predict(image)) < len(SMALL)
    found = model.predict(image, tiles=32, overlap=0.25)
    assert by_place(found) == sorted(map(list, SMALL))
    assert found.image_size == (96, 128)
    assert len(model.shapes) == 1 + 1 + 4 * 5  # without tiles; the whole image and its tiles
    assert found.scores.diff().le(0).all()
    assert len(model.predict(image, tiles=32, overlap=0.25, top_k=2)) == 2
    for batch_size in (4, 64):
        together = model.predict([image] * 2, tiles=32, overlap=0.25, batch_size=batch_size)
        assert [torch.equal(one.boxes, found.boxes) for one in together] == [True, True]


def test_a_large_object_is_taken_from_the_whole_image() -> None:
    large = (10, 20, 110, 80)
    found = Spots().predict(spotted(96, 128, large), tiles=32)
    # its middle tiles are bright all over: boxes cut on every side
    assert len(found) == 1
    assert found.boxes[0].tolist() == pytest.approx(large, abs=4)


def test_boxes_of_the_mirror_image_are_mirrored_back() -> None:
    model = Spots()
    boxes = [(2, 4, 12, 12), (20, 20, 28, 30)]
    for settings in ({}, {"tiles": 32}):
        found = model.predict(spotted(32, 32, *boxes), flip=True, **settings)
        assert by_place(found) == sorted(map(list, boxes))
        # the better of the two views: each is at the right of one
        assert found.scores[by(found, boxes[0])] == pytest.approx(1 / (1 + math.exp(-2 - 30 / 320)), abs=1e-5)
        assert found.scores[by(found, boxes[1])] == pytest.approx(1 / (1 + math.exp(-2 - 28 / 320)), abs=1e-5)
    model.shapes.clear()
    wide = spotted(32, 80, (60, 4, 70, 14))
    assert by_place(model.predict(wide, tiles=32, flip=True)) == [[60, 4, 70, 14]]
    assert len(model.shapes) == 2 * (1 + 3)


def test_of_two_detections_of_an_object_the_surer_stays() -> None:
    class Twice(Spots):
        """Finds each spot a second time, a pixel to the left and less surely."""

        def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
            (one,) = super().post_process(outputs, target_sizes, top_k)
            boxes = torch.cat([one.boxes, one.boxes - torch.tensor([1.0, 0.0, 1.0, 0.0])])
            return [Detections(boxes, one.labels.repeat(2), torch.cat([one.scores, one.scores - 0.1]), one.image_size)]

    boxes = [(2, 4, 12, 12), (20, 20, 28, 30)]
    image, model = spotted(32, 32, *boxes), Twice()
    assert len(model.predict(image)) == 4
    assert len(model.predict(image, nms=0.9)) == 4  # they overlap by 9/11 and 7/9
    assert len(model.predict(image, nms=0.8)) == 3
    assert by_place(model.predict(image, nms=0.5)) == sorted(map(list, boxes))
    with pytest.raises(ValueError, match="^nms: expected an IoU from 0 to 1, got 7$"):
        model.predict(image, nms=7)
    (one,) = model.predict_each([image], nms=0.5)
    assert len(one.without_duplicates(0.0)) == 2
    other = Detections(one.boxes[[0, 0]], torch.tensor([0, 1]), one.scores, (32, 32), ["a", "b"])
    assert other.without_duplicates(0.5).names == ["a", "b"]  # of two classes


def by(found: Detections, box: tuple[int, ...]) -> int:
    return int((found.boxes - torch.tensor(box)).abs().sum(1).argmin())


@pytest.mark.parametrize("sides", [(96, 128), (100, 129), (32, 33), (500, 20)])
@pytest.mark.parametrize(("size", "overlap"), [(32, 0.2), (32, 0.0), (30, 0.9), (7, 0.5)])
def test_tiles_cover_the_image_with_at_least_this_overlap(sides: tuple[int, int], size: int, overlap: float) -> None:
    height, width = sides
    tiles = Tiling(size, overlap).of(height, width)
    covered = np.zeros(sides, dtype=int)
    for x0, y0, x1, y1 in tiles:
        assert (x1 - x0, y1 - y0) == (min(size, width), min(size, height))
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    starts = sorted({x0 for x0, *_ in tiles})
    # rounded to whole pixels
    assert all(size - (b - a) >= overlap * size - 1 for a, b in pairwise(starts))
    assert len(tiles) == len(set(tiles))


def test_views_share_the_images_pixels() -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    several = views(image, "image", Tiling(40), flip=True)
    assert {view.pixels.untyped_storage().data_ptr() for view in several} == {image.untyped_storage().data_ptr()}
    assert [view.last for view in several] == [False] * (len(several) - 1) + [True]
    assert len(several) == 2 * (1 + 4)


def some(*rows: tuple[tuple[float, ...], int, float, bool]) -> list[tuple[Detections, Tensor]]:
    boxes, labels, scores, cut = zip(*rows, strict=True)
    found = Detections(torch.tensor(boxes), torch.tensor(labels), torch.tensor(scores), (100, 100))
    return [(found, torch.tensor(cut))]


def test_a_cut_box_yields_to_the_whole_one_and_leaves_it_its_score() -> None:
    whole, half, other = (0.0, 0.0, 60.0, 20.0), (0.0, 0.0, 30.0, 20.0), (40.0, 0.0, 70.0, 20.0)
    found = merge(some((half, 0, 0.9, True), (whole, 0, 0.6, False)), 10)
    assert found.boxes.tolist() == [list(whole)]
    assert found.scores.tolist() == pytest.approx([0.9])
    # of another class, hardly covered, or beside a whole box that is much less certain: it stays
    for rows in (
        [(half, 1, 0.9, True), (whole, 0, 0.6, False)],
        [(half, 0, 0.9, True), (other, 0, 0.6, False)],
        [(half, 0, 0.9, True), (whole, 0, 0.3, False)],
    ):
        found = merge(some(*rows), 10)
        assert found.scores.tolist() == pytest.approx([row[2] for row in rows])
        assert found.boxes.tolist() == [list(row[0]) for row in rows]
    # two that are both whole are both kept unless they overlap by more than half
    assert len(merge(some((half, 0, 0.9, False), (whole, 0, 0.6, False)), 10)) == 2
    assert len(merge(some((half, 0, 0.9, False), (half, 0, 0.6, False)), 10)) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tiles": 129}, "tiles: expected at most the longest side of image, which is 128 wide and 96 high, got 129"),
        ({"tiles": 0}, "tiles: expected at least 1 pixel, got 0"),
        ({"tiles": 32, "overlap": 1.0}, "overlap: expected a share of at least 0 and below 1, got 1"),
        ({"tiles": 32, "overlap": -0.1}, "overlap: expected a share of at least 0 and below 1, got -0.1"),
    ],
)
def test_wrong_tiles_are_told_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Spots().predict(spotted(96, 128), **settings)


def test_a_tile_as_wide_as_the_image_is_enough() -> None:
    model = Spots()
    model.predict(spotted(96, 128), tiles=128)
    assert len(model.shapes) == 1  # the tile is the image
    model.predict(spotted(20, 128), tiles=64)
    assert len(model.shapes) == 1 + 1 + 3


def test_an_image_in_a_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^tiles: expected at most the longest side of images\[1\], which is 40 wide"):
        Spots().predict([spotted(96, 128), spotted(30, 40)], tiles=64)
