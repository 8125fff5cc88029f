"""Predictions beside ground truth: what counts as found, what is drawn, and on what."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from msdeform.models.inference.detections import Detections
from msdeform.models.inference.image_size import Size
from msdeform.models.layers.boxes import match_boxes
from msdeform.train.config.options import TrainOptions
from msdeform.train.data.annotations import Annotations, ImageEntry, ImageList
from msdeform.train.data.dataset import CocoDetection
from msdeform.train.data.transforms import evaluation_transform
from msdeform.train.engine.state import Training
from msdeform.train.visual import sheets
from msdeform.train.visual.boxes import Box, draw_boxes, side_by_side
from msdeform.train.visual.sheets import predictions_beside_truth

NAMES = ["disc", "square", "triangle"]


class Seer:
    """Sees the same boxes in every image."""

    def __init__(self, boxes: list[list[float]], labels: list[int], scores: list[float]) -> None:
        self.found = (torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), torch.tensor(scores))

    def predict(self, image: Tensor, *, confidence: float, size: Size | None) -> Detections:
        boxes, labels, scores = self.found
        assert confidence == 0.0
        return Detections(boxes, labels, scores, image.shape[1:], [str(label) for label in labels.tolist()])


@pytest.fixture
def data(tmp_path: Path) -> CocoDetection:
    """A wide and a high image; a square (class 1) of 40 pixels in each, and a disc in the second."""
    for name, size in (("wide.png", (120, 60)), ("high.png", (60, 90))):
        Image.new("RGB", size, (128, 128, 128)).save(tmp_path / name)
    annotations = Annotations(
        path=tmp_path / "instances.json",
        images=ImageList([ImageEntry(5, "wide.png", 60, 120), ImageEntry(9, "high.png", 90, 60)]),
        categories=[],
        boxes=np.array([[10, 10, 50, 50], [10, 10, 50, 50], [0, 60, 20, 80]], dtype=np.float32),
        labels=np.array([1, 1, 0]),
        first=np.array([0, 1, 3]),
        dropped=None,  # type: ignore[arg-type]
    )
    return CocoDetection(tmp_path, annotations, evaluation_transform(Size(64, 64)))


def test_a_box_is_found_once_by_the_surest_of_its_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    labels = torch.tensor([1, 2])
    found = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 4], [21, 0, 31, 10]])
    # a second time; another class; too little overlap (0.4); right
    assert match_boxes(found, torch.tensor([1, 1, 1, 2, 2]), boxes, labels) == [0, None, None, None, 1]
    assert match_boxes(found[:1], torch.tensor([1]), boxes[:0], labels[:0]) == [None]
    assert match_boxes(found[:0], torch.tensor([], dtype=torch.int64), boxes, labels) == []
    # of two that overlap enough, the one that overlaps most
    close = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    assert match_boxes(close[1:], torch.tensor([1]), close, torch.tensor([1, 1])) == [1]


def test_pairs_show_found_missed_and_false(data: CocoDetection, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[Box]] = []

    def keep(image: Image.Image, boxes: list[Box], *rest: float) -> Image.Image:
        drawn.append(list(boxes))
        return draw_boxes(image, boxes, *rest)

    monkeypatch.setattr(sheets, "draw_boxes", keep)
    seer = Seer([[11, 11, 50, 50], [30, 20, 60, 50], [0, 0, 5, 5]], [1, 2, 0], [0.9, 0.4, 0.2])
    predictions_beside_truth(seer, NAMES, data, [1, 0])  # type: ignore[arg-type]
    [there, seen, *_] = drawn
    assert [(box.text, box.dashed) for box in there] == [("square", False), ("disc", True)]
    # the one with a score of 0.2 is not drawn; the surest comes last, and so lies on top
    assert [(box.text, box.dashed) for box in seen] == [("triangle 0.40", True), ("square 0.90", False)]
    assert there[0].colour == seen[1].colour
    assert len({there[0].colour, there[1].colour, seen[0].colour}) == 3


def test_early_on_the_best_few_are_drawn_and_the_sheet_says_so() -> None:
    def scored(*scores: float) -> Detections:
        return Detections(torch.zeros(len(scores), 4), torch.zeros(len(scores)), torch.tensor(scores), (9, 9))

    unsure = [scored(0.2, 0.1, 0.05), scored(0.29, 0.1)]
    assert sheets._sure(unsure, [2, 0]) == ([2, 1], "best few, none reaches 0.3")
    assert sheets._sure([*unsure, scored(0.3, 0.2)], [2, 0, 1]) == ([0, 0, 1], "score at least 0.3")


def test_a_sheet_of_a_real_model_on_images_of_any_shape(
    data: CocoDetection, changed: Callable[..., TrainOptions]
) -> None:
    model = Training(changed()).model.eval()
    sheet = predictions_beside_truth(model, NAMES, data, [0, 1], size=Size(64, 64))
    width, height = sheet.size
    assert width > 4 * sheets.SIDE
    assert sheets.SIDE < height < sheets.SIDE + 80
    assert not model.training
    with pytest.raises(ValueError, match="rows: expected at least one image to draw, got none"):
        predictions_beside_truth(model, NAMES, data, [])


def test_a_dashed_line_shows_on_its_own_colour() -> None:
    red = (255, 0, 0)
    picture = np.asarray(draw_boxes(Image.new("RGB", (80, 80), red), [Box((10, 30, 70, 70), 0, "", red, dashed=True)]))
    top = (picture[30, 10:71] == np.array(red)).all(-1)
    assert 10 < top.sum() < 50  # dashes of its colour, and between them dark
    assert (picture[50, 20:60] == np.array(red)).all()


def test_no_line_crosses_a_text_and_none_starts_above_the_picture() -> None:
    white = Image.new("RGB", (100, 100), (255, 255, 255))
    first = Box((10, 40, 60, 80), 0, "first", (0, 255, 0))
    alone = np.asarray(draw_boxes(white, [first], font_size=12))[29:39, 10:36]
    crossed = Box((20, 0, 25, 99), 0, "", (255, 0, 0))
    assert (np.asarray(draw_boxes(white, [first, crossed], font_size=12))[29:39, 10:36] == alone).all()
    outside = np.asarray(draw_boxes(white, [Box((10, -30, 60, 80), 0, "text", (0, 255, 0))]))
    assert (outside[0, 11:30] == np.array((0, 255, 0))).all()


def test_a_sheet_has_lines_as_high_as_their_pictures_and_a_key() -> None:
    low, high = Image.new("RGB", (40, 10)), Image.new("RGB", (20, 40))
    plain = side_by_side([(low, low), (high, high)], ("left", "right"), columns=1)
    assert plain.size == (98, 26 + 10 + 40 + 2 * 6)
    keyed = side_by_side([(low, low)], ("left", "right"), 3, [(Box((0, 0, 0, 0), 0, "", (9, 9, 9)), "word")] * 2)
    assert keyed.size == (98, 26 + 10 + 6 + 2 + 2 * 24)  # too narrow for both in a line
