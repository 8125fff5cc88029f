"""Prediction on files: pictures, results in COCO's format, and what a user is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msdeform.train.checkpoint import save_checkpoint
from msdeform.train.config import TrainOptions
from msdeform.train.drawing import Box, class_colour, draw_boxes, side_by_side
from msdeform.train.predict import PredictOptions, find_images, image_ids, predict
from msdeform.train.training import Training


@pytest.fixture
def checkpoint(options: TrainOptions, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, Training(options).state())
    return path


def test_pictures_and_results_are_written(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions"
    settings = {"out": out, "device": "cpu", "progress": False}
    everything = predict(PredictOptions((shapes / "val2017",), checkpoint, confidence=0.0, **settings))
    assert json.loads((out / "predictions.json").read_text()) == everything
    names = sorted(file.name for file in (shapes / "val2017").iterdir())
    assert sorted(file.name for file in out.glob("*.jpg")) == names
    assert {result["image_id"] for result in everything} == {int(name.removesuffix(".jpg")) for name in names}
    assert {result["category_id"] for result in everything} == {1, 2, 3}
    threshold = float(np.median([result["score"] for result in everything]))
    some = predict(PredictOptions((shapes / "val2017",), checkpoint, confidence=threshold, **settings))
    assert some == [result for result in everything if result["score"] >= threshold]


def test_category_ids_are_the_data_sets_own(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    for category, number in zip(state["categories"], (17, 4, 90), strict=True):
        category["id"] = number
    save_checkpoint(checkpoint, state)
    results = predict(
        PredictOptions((shapes / "val2017",), checkpoint, 0.0, tmp_path / "out", device="cpu", progress=False)
    )
    assert {result["category_id"] for result in results} == {17, 4, 90}


def test_files_and_folders_are_found_once(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    assert find_images((tmp_path, tmp_path / "b.jpg")) == [tmp_path / "a.PNG", tmp_path / "b.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        find_images((tmp_path / "empty",))
    with pytest.raises(FileNotFoundError, match=r"image .*c\.jpg does not exist"):
        find_images((tmp_path / "c.jpg",))
    with pytest.raises(ValueError, match="at least one image"):
        find_images(())


def test_ids_are_cocos_where_names_are() -> None:
    assert image_ids([Path("000000000139.jpg"), Path("7.jpg")]) == [139, 7]
    assert image_ids([Path("cat.jpg"), Path("7.jpg")]) == [1, 2]
    assert image_ids([Path("a/7.jpg"), Path("b/7.jpg")]) == [1, 2]


def test_a_broken_image_ends_it_without_results(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"x\.jpg cannot be decoded"):
        predict(PredictOptions((tmp_path / "x.jpg",), checkpoint, out=tmp_path / "out", device="cpu", progress=False))
    assert not (tmp_path / "out" / "predictions.json").exists()


@pytest.mark.parametrize(("field", "value"), [("confidence", 1.5), ("image_size", 8)])
def test_wrong_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field.replace('_', '-')}: expected"):
        PredictOptions((), Path("x"), **{field: value})


def test_boxes_are_drawn_where_they_are() -> None:
    image = Image.new("RGB", (60, 50))
    picture = np.asarray(draw_boxes(image, [Box((10, 20, 40, 45), 2, "")], magnify=2.0))
    assert picture.shape == (100, 120, 3)
    colour = np.array(class_colour(2))
    drawn = np.argwhere((picture == colour).all(-1))
    # a box without a text still has its (empty) label above
    below = drawn[drawn[:, 0] >= 40]
    assert below.min(0).tolist() == [40, 20]
    assert below.max(0).tolist() == [90, 80]
    assert not np.asarray(image).any()  # the original is untouched


def test_classes_have_colours_of_their_own() -> None:
    assert len({class_colour(label) for label in range(80)}) == 80


def test_pairs_are_laid_out_in_a_grid() -> None:
    red, blue = Image.new("RGB", (20, 10), (255, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 255))
    sheet = np.asarray(side_by_side([(red, blue)] * 3, ("left", "right"), columns=2))
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (sheet == np.array(colour)).all(-1).sum() == 3 * 200
