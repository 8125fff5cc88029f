"""Labels of boxes: none over another, none outside the picture, none left out while there is room."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from msdeform.train.visual.boxes import Box, draw_boxes
from msdeform.train.visual.label_placement import Rectangle, lead, place_labels

PICTURE = (0.0, 0.0, 640.0, 480.0)


def random_boxes(count: int, seed: int) -> list[Rectangle]:
    """Many leave the picture, and many coincide nearly."""
    random = np.random.default_rng(seed)
    centres = random.uniform([-20, -20], [660, 500], (max(1, count // 3), 2))[
        random.integers(0, max(1, count // 3), count)
    ]
    half = random.uniform(2, 120, (count, 2))
    centres = centres + random.normal(0, 4, (count, 2))
    return [tuple(box) for box in np.concatenate([centres - half, centres + half], 1).tolist()]


def assert_apart_and_inside(labels: list[Rectangle], picture: Rectangle = PICTURE) -> None:
    for number, (x0, y0, x1, y1) in enumerate(labels):
        assert picture[0] <= x0 < x1 <= picture[2] + 1e-9
        assert picture[1] <= y0 < y1 <= picture[3] + 1e-9
        for a0, b0, a1, b1 in labels[:number]:
            assert x0 >= a1 or x1 <= a0 or y0 >= b1 or y1 <= b0, (labels[number], (a0, b0, a1, b1))


@pytest.mark.parametrize("count", [1, 45, 100])
@pytest.mark.parametrize("seed", range(5))
def test_random_boxes_have_labels_apart_and_inside(count: int, seed: int) -> None:
    boxes = random_boxes(count, seed)
    sizes = [(float(w), 14.0) for w in np.random.default_rng(seed).integers(20, 90, count)]
    found = [label for label in place_labels(boxes, sizes, PICTURE) if label is not None]
    assert len(found) == count
    assert np.allclose([(x1 - x0, y1 - y0) for x0, y0, x1, y1 in found], sizes)
    assert_apart_and_inside(found)


def test_all_room_is_used() -> None:
    """Twelve labels of one size fill the picture when the first stand at its edges, where such boxes put them."""
    boxes = [(0.0, 0.0, 10.0, 10.0)] * 13
    found = place_labels(boxes, [(30.0, 10.0)] * 12 + [(5.0, 5.0)], (0, 0, 90, 40))
    assert None not in found[:12]
    assert found[12] is None, "no room: left out"
    assert_apart_and_inside([label for label in found if label is not None], (0, 0, 90, 40))
    found = place_labels(boxes[:3], [(95.0, 5.0), (5.0, 50.0), (90.0, 40.0)], (0, 0, 90, 40))
    assert found == [None, None, (0, 0, 90, 40)], "what is larger than the picture has no room, what fills it has"


def test_one_label_stands_above_its_box() -> None:
    assert place_labels([(50, 60, 90, 80)], [(30, 10)], PICTURE) == [(50, 50, 80, 60)]
    (label,) = place_labels([(600, 2, 650, 80)], [(70, 10)], PICTURE)
    assert label == (570, 0, 640, 10), "at the upper right corner it is moved into the picture, and not cut"


def test_a_label_apart_from_its_box_is_led_to_it() -> None:
    assert lead((0, 0, 10, 10), (5, 5, 20, 20)) is None
    assert lead((0, 0, 10, 10), (30, 40, 60, 60)) == (5, 5, 30, 40)


def test_a_label_for_each_box() -> None:
    with pytest.raises(ValueError, match="sizes: expected one for each of 1 boxes, got 0"):
        place_labels([(0, 0, 1, 1)], [], PICTURE)


def test_labels_of_pictures_are_whole_wherever_boxes_are() -> None:
    """45 labels, each of a colour of its own, without letters: of each the whole rectangle is in the picture."""
    boxes = random_boxes(45, seed=7)
    colours = [(5 * number + 20, 255 - 5 * number, 128) for number in range(45)]
    drawn = [Box(box, 0, "       ", colour) for box, colour in zip(boxes, colours, strict=True)]
    picture = np.asarray(draw_boxes(Image.new("RGB", (640, 480), (0, 0, 0)), drawn, font_size=12, line=1))
    left, top, right, bottom = ImageFont.load_default(12).getbbox("       ")
    wide, high = int(right - left), int(bottom - top) + 4
    for colour in colours:
        own = (picture == colour).all(-1)
        windows = np.lib.stride_tricks.sliding_window_view(own, (high, wide))
        assert windows.all((-1, -2)).any(), colour
