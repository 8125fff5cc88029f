"""Prediction on files: pictures, results in COCO's format, and what a user is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msdeform import cli
from msdeform.models.inference.images import read_image
from msdeform.train.commands.options import PredictOptions
from msdeform.train.commands.predict import predict
from msdeform.train.config.options import TrainOptions
from msdeform.train.data.annotations import Annotations
from msdeform.train.data.yolo import image_ids
from msdeform.train.engine.checkpoint import save_checkpoint
from msdeform.train.engine.state import Training
from msdeform.train.evaluation.results import read_results
from msdeform.train.prediction.sources import named_files
from msdeform.train.visual.boxes import Box, class_colour, draw_boxes, side_by_side


@pytest.fixture
def checkpoint(options: TrainOptions, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, Training(options).state())
    return path


def results(options: PredictOptions) -> list[dict[str, Any]]:
    """What predict writes to predictions.json."""
    done = predict(options)
    found = json.loads((done.out / "predictions.json").read_text())
    assert done.detections == len(found)
    return found


def test_pictures_and_results_are_written(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions"
    settings = {"out": out, "device": "cpu", "progress": False}
    everything = results(PredictOptions((shapes / "val2017",), checkpoint=checkpoint, confidence=0.0, **settings))
    names = sorted(file.name for file in (shapes / "val2017").iterdir())
    assert sorted(file.name for file in out.glob("*.jpg")) == names
    assert {result["image_id"] for result in everything} == {int(name.removesuffix(".jpg")) for name in names}
    assert {result["category_id"] for result in everything} == {1, 2, 3}
    threshold = float(np.median([result["score"] for result in everything]))
    some = results(PredictOptions((shapes / "val2017",), checkpoint=checkpoint, confidence=threshold, **settings))
    assert some == [result for result in everything if result["score"] >= threshold]


def test_each_class_has_the_checkpoints_minimum_score_unless_one_is_given(
    checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(shapes / "val2017"), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    words += ["--device", "cpu", "--no-progress"]

    def scores(*more: str) -> dict[int, list[float]]:
        assert cli.main([*words, *more]) == 0
        found = json.loads((tmp_path / "out" / "predictions.json").read_text())
        return {kind: [one["score"] for one in found if one["category_id"] == kind] for kind in (1, 2, 3)}

    everything = scores("--confidence", "0")
    thresholds = [float(np.median(everything[1])), 1.0, 0.0]
    state = torch.load(checkpoint, weights_only=True)
    assert state["thresholds"] is None  # of a run that was not evaluated
    save_checkpoint(checkpoint, {**state, "thresholds": thresholds})
    capsys.readouterr()
    kept = scores()
    assert kept == {1: [s for s in everything[1] if s >= thresholds[0]], 2: [], 3: everything[3]}
    assert 0 < len(kept[1]) < len(everything[1])
    assert "detections of at least the checkpoint's thresholds, 0.00 to 1.00: pictures," in capsys.readouterr().out
    assert scores("--confidence", "0") == everything
    save_checkpoint(checkpoint, {**state, "thresholds": [1.0, 1.0, 1.0]})
    assert not any(scores().values())
    said = capsys.readouterr().out
    assert "0 detections of at least the checkpoint's thresholds, 1.00: pictures," in said
    assert "nothing was detected with at least 1; the best is" in said


def test_category_ids_are_the_data_sets_own(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    for category, number in zip(state["categories"], (17, 4, 90), strict=True):
        category["id"] = number
    save_checkpoint(checkpoint, state)
    options = PredictOptions(
        (shapes / "val2017",), 0.0, tmp_path / "out", checkpoint=checkpoint, device="cpu", progress=False
    )
    assert {result["category_id"] for result in results(options)} == {17, 4, 90}


def test_files_and_folders_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    assert list(named_files((tmp_path, tmp_path / "b.jpg"))) == [tmp_path / "a.PNG", tmp_path / "b.jpg"]
    monkeypatch.chdir(tmp_path)
    assert named_files((Path("b.jpg"), tmp_path / "b.jpg", tmp_path / ".." / tmp_path.name / "b.jpg")) == {
        Path("b.jpg"): "b.jpg"
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        named_files((tmp_path / "empty",))
    with pytest.raises(FileNotFoundError, match=r"image .*c\.jpg does not exist"):
        named_files((tmp_path / "c.jpg",))
    with pytest.raises(ValueError, match="at least one image"):
        named_files(())


def test_ids_are_cocos_where_names_are() -> None:
    assert image_ids([Path("000000000139.jpg"), Path("7.jpg")]) == [139, 7]
    assert image_ids([Path("cat.jpg"), Path("7.jpg")]) == [1, 2]
    assert image_ids([Path("a/7.jpg"), Path("b/7.jpg")]) == [1, 2]


def test_a_broken_image_is_left_out_and_listed(
    checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    good = sorted((shapes / "val2017").iterdir())[0]
    for name in ("a/one.jpg", "b/one.jpg"):
        (photos / name).parent.mkdir(parents=True)
        shutil.copy(good, photos / name)
    (photos / "x.jpg").write_bytes(b"\xff\xd8\xff")
    words = ["predict", str(photos), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert cli.main([*words, "--no-progress", "--confidence", "1"]) == 1
    said = capsys.readouterr()
    assert "the best is " in said.out
    assert said.err.startswith("1 file could not be read, or not all of it:\n  image ")
    assert json.loads((out / "predictions.json").read_text()) == []
    images = json.loads((out / "images.json").read_text())
    assert [image["file_name"] for image in images["images"]] == ["a/one.jpg", "b/one.jpg"]
    assert [image["file_name"] for image in images["unreadable"]] == ["x.jpg"]
    assert images["complete"] is True
    assert (out / "a" / "one.jpg").is_file()
    assert (out / "b" / "one.jpg").is_file()
    assert list(named_files((photos / "*" / "*.jpg",))) == [photos / "a" / "one.jpg", photos / "b" / "one.jpg"]


def test_what_it_wrote_is_measured_by_file_name(
    checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, image in enumerate(annotations["images"]):
        shutil.copy(shapes / "val2017" / image["file_name"], photos / f"photo{9 - number}.jpg")
        image["file_name"] = f"photo{9 - number}.jpg"
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(annotations))
    predict(PredictOptions((photos,), 0.0, tmp_path / "out", checkpoint=checkpoint, device="cpu", progress=False))
    file = tmp_path / "out" / "predictions.json"
    written = json.loads(file.read_text())
    ids = {image["file_name"]: image["id"] for image in annotations["images"]}
    assert any(one["image_id"] != ids[one["file_name"]] for one in written)
    read = read_results(file, Annotations.load(truth))
    assert read[:, 0].tolist() == [ids[one["file_name"]] for one in written]
    # converted weights know the names of classes, and not the ids that the data gives them
    assert capsys.readouterr().err == ""
    file.write_text(json.dumps([{**one, "category_id": one["category_id"] - 1} for one in written]))
    assert (read_results(file, Annotations.load(truth)) == read).all()
    assert capsys.readouterr().err.endswith("matched by name\n")
    for change, sentence in (
        ({"file_name": "no.jpg"}, "image no.jpg, which"),
        ({"category_id": 77, "category_name": None}, "category 77 is not one of"),
        ({"category_name": "cow"}, "class 'cow' is not one of"),
    ):
        file.write_text(json.dumps([{**written[0], **change}]))
        words = ["eval", "--results", str(file), "--val-images", str(photos), "--val-annotations", str(truth)]
        assert cli.main(words) == 1
        assert sentence in capsys.readouterr().err


def test_what_was_done_is_written_when_interrupted(
    checkpoint: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint.parent / "config.yaml").touch()
    files: list[Path] = []

    def read_two(path: Path) -> torch.Tensor:
        files.append(path)
        if len(files) > 2:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr("msdeform.train.prediction.sources.read_image", read_two)
    with pytest.raises(KeyboardInterrupt):
        predict(PredictOptions((shapes / "val2017",), 0.0, checkpoint=checkpoint, device="cpu", progress=False))
    out = checkpoint.parent / "predictions"  # of the run, where --out does not say
    assert len({one["image_id"] for one in json.loads((out / "predictions.json").read_text())}) == 2
    images = json.loads((out / "images.json").read_text())
    assert (len(images["images"]), images["complete"]) == (2, False)
    assert len(list(out.glob("*.jpg"))) == 2


def test_photographs_are_neither_passed_over_nor_written_over(
    checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "one.jpg"
    shutil.copy(next((shapes / "val2017").iterdir()), photo)
    before = photo.read_bytes()
    monkeypatch.chdir(tmp_path)
    settings = {"checkpoint": checkpoint, "confidence": 0.0, "device": "cpu", "progress": False}
    for images in (Path("photos"), photo):
        with pytest.raises(ValueError, match=r"^out: expected another folder than photos, where .*one.jpg would be"):
            predict(PredictOptions((images,), out=Path("photos"), **settings))
    # a folder above the photographs is no place of predictions; one among them is, and is passed over
    for out in (Path(), Path("photos/found"), Path("photos/found")):
        assert predict(PredictOptions((Path("photos"),), out=out, **settings)).detections
    assert len(json.loads(Path("photos/found/images.json").read_text())["images"]) == 1
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"), [("confidence", 1.5), ("image_size", 8), ("tiles", 0), ("overlap", 1.0), ("every", 0)]
)
def test_wrong_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected"):
        PredictOptions((Path("x"),), checkpoint=Path("x"), **{field: value})


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
