"""``msdeform data show``: numbers that are counted right, and pictures whose names can be read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from msdeform.cli import main
from msdeform.train.commands import show
from msdeform.train.commands.show import CAPTION, CELL, GAP, draw_samples, draw_sheet
from msdeform.train.config.options import Input, Loading, Source
from msdeform.train.data.annotations import Annotations
from msdeform.train.data.dataset import CocoDetection
from msdeform.train.data.loader import training_data
from msdeform.train.data.transforms import to_model
from msdeform.train.visual.statistics import draw_charts, statistics, summary

Write = Callable[..., Path]


@pytest.fixture
def counted(annotation_file: Write, tmp_path: Path) -> CocoDetection:
    """Three images: of two boxes of a dog and one of a cat, of one cat, and of none but a crowd."""
    images = [
        {"id": number, "file_name": f"{number}.png", "width": width, "height": 200}
        for number, width in ((7, 300), (8, 300), (9, 100))
    ]
    for image in images:
        Image.new("RGB", (image["width"], 200)).save(tmp_path / image["file_name"])
    boxes = (
        {"bbox": [0, 0, 10, 20]},
        {"bbox": [0, 0, 32, 32]},
        {"bbox": [0, 0, 200, 100], "category_id": 5},
        {"bbox": [0, 0, 95, 96], "category_id": 5, "image_id": 8},
        {"iscrowd": 1, "image_id": 9},
        {"bbox": [0, 0, 0, 5], "image_id": 9},
    )
    categories = [{"id": 5, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 6, "name": "emu"}]
    path = annotation_file(*boxes, images=images, categories=categories)
    return CocoDetection(tmp_path, Annotations.load(path), to_model)


def test_classes_and_sizes_are_counted(counted: CocoDetection) -> None:
    found = statistics(counted)
    assert found["classes"] == [
        {"id": 3, "name": "dog", "boxes": 2, "images": 1, "small": 1, "medium": 1, "large": 0},
        {"id": 5, "name": "cat", "boxes": 2, "images": 2, "small": 0, "medium": 1, "large": 1},
        {"id": 6, "name": "emu", "boxes": 0, "images": 0, "small": 0, "medium": 0, "large": 0},
    ]
    assert (found["images"], found["boxes"], found["small"], found["medium"], found["large"]) == (3, 4, 1, 2, 1)
    assert found["images_without_boxes"] == [9]
    assert found["boxes_per_image"] == {"min": 0, "median": 1, "mean": 1.333, "max": 3}
    assert found["box_aspect_ratio"]["max"] == 2
    assert found["image_aspect_ratio"] == {"min": 0.5, "median": 1.5, "mean": 1.167, "max": 1.5}
    assert found["image_sizes"] == [
        {"width": 300, "height": 200, "images": 2},
        {"width": 100, "height": 200, "images": 1},
    ]
    assert found["dropped"] == {"crowd": [9], "degenerate": [9], "wrong": [], "images": []}
    lines = summary(found)
    assert lines[0] == "boxes per image: median 1, at most 3; 1 of 3 images have none"
    assert lines[1] == "image sizes: 300 x 200 (2), 100 x 200 (1)"
    assert lines[-1] == "1 class without a box: emu"


def test_only_images_on_offer_are_counted_and_each_once(counted: CocoDetection) -> None:
    again = CocoDetection(counted.folder, counted.annotations, to_model, subset=[1, 1, 2])
    found = statistics(again)
    assert (found["images"], found["boxes"]) == (2, 1)
    assert [entry["boxes"] for entry in found["classes"]] == [0, 1, 0]


def test_a_sheet_has_each_image_as_often_as_asked(shapes: Path) -> None:
    data = training_data(Source(data=shapes), Input(image_size=64), Loading(), seed=0)
    names = [category.name for category in data.annotations.categories]
    wide, high = CELL + GAP, CELL + CAPTION + GAP
    assert draw_sheet(names, draw_samples(data, count=6, repeat=1, seed=0)).size == (3 * wide + GAP, 2 * high + GAP)
    sheet = draw_sheet(names, draw_samples(data, count=2, repeat=3, seed=0), repeat=3)
    assert sheet.size == (3 * wide + GAP, 2 * high + GAP)
    cells = [
        sheet.crop((GAP + x * wide, GAP + y * high, (x + 1) * wide, GAP + y * high + CELL)).tobytes()
        for y in range(2)
        for x in range(3)
    ]
    assert len(set(cells)) > 3  # each augmented anew
    assert draw_sheet(names, draw_samples(data, 2, 3, seed=0), repeat=3).tobytes() == sheet.tobytes()
    assert draw_sheet(names, draw_samples(data, 2, 3, seed=1), repeat=3).tobytes() != sheet.tobytes()


def test_captions_name_the_files(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    monkeypatch.setattr(show, "_captioned", lambda picture, caption: captions.append(caption) or picture)
    data = training_data(Source(data=shapes), Input(image_size=64), Loading(), seed=0)
    samples, names = draw_samples(data, count=2, repeat=1, seed=0), [c.name for c in data.annotations.categories]
    first, second = (target["image_id"] for _, target in samples)
    draw_sheet(names, samples, files={first: "sub/BloodImage_00001.jpg", second: f"{'long' * 10}.png"})
    assert captions[0].startswith("BloodImage_00001.jpg: 56 x 56, 2 boxes")
    assert captions[1].startswith("...")
    assert "long.png: " in captions[1]
    draw_sheet(names, samples)
    assert captions[2].startswith(f"image {first}: ")


def test_the_command_writes_pictures_and_numbers(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shown"
    words = ["data", "show", "--data", str(shapes), "--out", str(out), "--count", "2", "--image-size", "64"]
    assert main([*words, "--split", "val"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["images.png", "statistics.json", "statistics.png"]
    found = json.loads((out / "statistics.json").read_text())
    assert found["images"] == 4
    text = capsys.readouterr().out
    assert all(name in text for name in ("disc", "square", "triangle", "boxes per image: median"))
    assert Image.open(out / "statistics.png").size[0] > 1000
    assert main([*words, "--gaussian"]) == 0
    assert (out / "gaussians.npz").is_file()
    assert str(out / "gaussians.npz") in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "--gaussian", "--sigma", "0"])
    assert "sigma: expected a part" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        main(["data", "show", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "none")])
    assert "--data: expected a file or folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_charts_of_little_are_drawn(counted: CocoDetection, tmp_path: Path) -> None:
    one = CocoDetection(counted.folder, counted.annotations, to_model, subset=[1])
    draw_charts(statistics(one), one, tmp_path / "charts.png")
    assert Image.open(tmp_path / "charts.png").size[0] > 1000
