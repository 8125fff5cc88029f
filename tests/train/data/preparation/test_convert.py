"""Each format converted to each other and back: the same images, classes and boxes."""

import json
import os
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from msdeform.cli import main
from msdeform.train.config.options import Input, Loading, Source
from msdeform.train.data.dataset import CocoDetection
from msdeform.train.data.loader import training_data, validation_data
from msdeform.train.data.preparation.convert import turn_boxes

FORMATS = ("coco", "voc", "yolo")


def convert(data: Path, to: str, out: Path, *more: str) -> Path:
    assert main(["data", "convert", str(data), "--to", to, "--out", str(out), "--no-progress", *more]) == 0
    return out


def read(data: Path) -> dict[str, CocoDetection]:
    source = Source(data=data)
    return {
        "train": training_data(source, Input(augment="none"), Loading(), 0),
        "val": validation_data(source, Input(), None),
    }


def content(data: CocoDetection) -> list[tuple[tuple[int, ...], list[tuple[Any, ...]]]]:
    """Of each image the colour of its first pixel, by which it is known, and its boxes with their classes' names."""
    annotations = data.annotations
    found = []
    for row in range(len(annotations.images)):
        mine = slice(annotations.first[row], annotations.first[row + 1])
        names = [annotations.categories[label].name for label in annotations.labels[mine]]
        boxes = map(tuple, annotations.boxes[mine].tolist())
        colour = tuple(data.pixels(row)[:, 0, 0].tolist())
        found.append((colour, sorted(zip(names, boxes, strict=True))))
    return sorted(found)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """COCO: boxes with decimals, over the edge, a crowd, classes out of order and one without boxes, equal names."""
    root = tmp_path / "odd"
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        images, annotations = [], []
        for row in range(count):
            name = f"{'ab'[row % 2]}/photo 1.png" if row < 2 else f"{split}{row}.jpg"
            file = root / f"{split}2017" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (97, 61), (20 * row, 9, 9)).save(file)
            images.append({"id": row + 1, "file_name": name, "width": 97, "height": 61})
            for _ in range(5 * (row != 3)):
                x, y, w, h = np.round(rng.uniform([0, 0, 2, 2], [90, 55, 30, 30]), 2).tolist()
                one = {"id": len(annotations) + 1, "image_id": row + 1, "bbox": [x, y, w, h], "area": w * h}
                annotations.append({**one, "category_id": int(rng.choice([4, 9])), "iscrowd": 0})
        crowd = {"id": len(annotations) + 1, "image_id": 1, "bbox": [0, 0, 97, 61], "category_id": 4}
        annotations.append({**crowd, "area": 5917, "iscrowd": 1})
        names = {4: "zebra & co", 7: "none", 9: "ape"}
        whole = {"images": images, "annotations": annotations}
        whole["categories"] = [{"id": number, "name": name} for number, name in names.items()]
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(whole))
    return root


@pytest.mark.parametrize(("first", "second"), [*permutations(FORMATS, 2), *zip(FORMATS, FORMATS, strict=True)])
def test_every_format_to_every_other_and_back(odd: Path, tmp_path: Path, first: str, second: str) -> None:
    begun = read(convert(odd, first, tmp_path / "begun"))
    there = read(convert(tmp_path / "begun", second, tmp_path / "there"))
    back = read(convert(tmp_path / "there", first, tmp_path / "back"))
    original = read(odd)
    for split in ("train", "val"):
        for data in (begun[split], there[split], back[split]):
            assert [category.name for category in data.annotations.categories] == ["zebra & co", "none", "ape"]
            assert len(data.annotations.boxes) == len(original[split].annotations.boxes)
        wanted = content(original[split])
        assert [len(boxes) for _, boxes in wanted].count(0) == (split == "train")
        # to the bit
        assert wanted == content(begun[split]) == content(there[split]) == content(back[split])
        crowds = [len(data.annotations.dropped.crowd) for data in (begun[split], there[split], back[split])]
        assert crowds == [int(first != "yolo"), *[int("yolo" not in (first, second))] * 2]


def test_what_a_format_cannot_hold_is_told(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = odd / "annotations" / "instances_val2017.json"
    whole = json.loads(file.read_text())
    for number, size in enumerate(([1, 1], [0, 5]), 900):
        whole["annotations"].append({"id": number, "image_id": 1, "category_id": 4, "bbox": [3, 3, *size]})
    file.write_text(json.dumps(whole))
    convert(odd, "yolo", tmp_path / "yolo")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"data: COCO in {odd}: 4 training images with 15 boxes, 2 validation images with 11 boxes, "
        "3 classes, 1 of them without a box",
        "left out 2 boxes marked as crowd or difficult, which YOLO's format cannot say (in a/photo 1.png)",
        "left out 1 box without area inside the image (in a/photo 1.png)",
        f"wrote YOLO with 6 images and 26 boxes: {tmp_path / 'yolo'}",
    ]
    convert(odd, "voc", tmp_path / "voc")
    said = capsys.readouterr().out
    assert (
        "left out 1 box of one pixel, which Pascal VOC's format does not tell from a point (in a/photo 1.png)\n" in said
    )
    assert "wrote Pascal VOC with 6 images and 27 boxes, 2 of them crowds or difficult: " in said
    names = sorted(path.stem for path in (tmp_path / "voc" / "Annotations").iterdir())
    assert names == ["a_photo 1", "a_photo 1_2", "b_photo 1", "b_photo 1_2", "train2", "train3"]


@pytest.mark.parametrize("name", ["", " "])
def test_names_that_would_not_be_read_back_are_refused(
    odd: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (odd / "annotations").iterdir():
        whole = json.loads(file.read_text())
        whole["categories"][0]["name"] = name
        file.write_text(json.dumps(whole))
    for to in ("voc", "yolo"):
        assert main(["data", "convert", str(odd), "--to", to, "--out", str(tmp_path / to)]) == 1
        assert "has each name on a line of its own; rename it" in capsys.readouterr().err
        assert not (tmp_path / to).exists()
    convert(odd, "coco", tmp_path / "coco")


@pytest.mark.parametrize("name", ["ca\nt", "c\0t", "cat\u2028dog", "\ud800"])
@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_what_a_terminal_would_obey_is_written_out(odd: Path, tmp_path: Path, to: str, name: str) -> None:
    for file in (odd / "annotations").iterdir():
        whole = json.loads(file.read_text())
        whole["categories"][0]["name"] = name
        file.write_text(json.dumps(whole))
    convert(odd, to, tmp_path / to)
    written = "".join(path.read_text() for path in (tmp_path / to).rglob("*") if path.suffix in (".xml", ".yaml"))
    assert name.encode("unicode_escape").decode() in written
    assert name not in written


@pytest.mark.parametrize("to", FORMATS)
def test_one_set_stays_one_or_is_divided(odd: Path, tmp_path: Path, to: str) -> None:
    whole = odd / "annotations" / "instances_train2017.json"
    whole.rename(odd / "train2017" / "result.json")
    convert(odd / "train2017", to, tmp_path / "whole")
    with pytest.raises(ValueError, match="one set of images"):
        Source(data=tmp_path / "whole").split("train")
    data = validation_data(Source(data=tmp_path / "whole", val_share=1.0), Input(), None)
    assert sum(len(boxes) for _, boxes in content(data)) == 15
    read(convert(tmp_path / "whole", to, tmp_path / "divided", "--val-share", "0.5"))


def test_links_take_no_space(odd: Path, tmp_path: Path) -> None:
    convert(odd, "voc", tmp_path / "voc", "--images", "link")
    linked = tmp_path / "voc" / "JPEGImages" / "train2.jpg"
    assert os.path.samefile(linked, odd / "train2017" / "train2.jpg")


def test_a_folder_that_holds_something_is_not_written_to(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    words = ["data", "convert", str(odd), "--to", "voc", "--out", str(tmp_path / "out"), "--no-progress"]
    assert main(words) == 1
    assert "--out: expected an absent or an empty folder" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_bad_image_ends_it_or_is_left_out_and_nothing_is_half_written(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (odd / "train2017" / "train2.jpg").write_text("no picture")
    words = ["data", "convert", str(odd), "--to", "yolo", "--out", str(tmp_path / "out"), "--no-progress"]
    assert main(words) == 1
    assert "train2.jpg cannot be decoded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--bad-data", "skip"]) == 0
    assert "left out: image " in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "images" / "train").iterdir())) == 3


@pytest.mark.parametrize("tag", range(1, 9))
def test_boxes_turn_as_the_image_does(tmp_path: Path, tag: int) -> None:
    stored = Image.new("L", (40, 20))
    ImageDraw.Draw(stored).rectangle((3, 5, 9, 16), fill=255)
    box = np.array([[3.0, 5, 10, 17]])
    exif = Image.Exif()
    exif[0x0112] = tag
    stored.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = ImageOps.exif_transpose(image)
    assert turn_boxes(box, (20, 40), tag).tolist() == [[*map(float, upright.getbbox() or ())]]


@pytest.mark.parametrize(("tag", "to"), [*product((3, 6, 7, 8), ("coco", "voc"))])
def test_photographs_that_a_tag_turns_keep_their_boxes(tmp_path: Path, tag: int, to: str) -> None:
    yolo = tmp_path / "yolo"
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (yolo / folder / split).mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = tag
        Image.new("RGB", (40, 20)).save(yolo / "images" / split / "a.jpg", exif=exif)
        (yolo / "labels" / split / "a.txt").write_text("0 0.3 0.25 0.2 0.1\n")
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    upright = read(yolo)["train"]
    stored = read(convert(yolo, to, tmp_path / to))["train"]
    back = read(convert(tmp_path / to, "yolo", tmp_path / "back"))["train"]
    assert content(back) == content(upright)
    (box,) = stored.annotations.boxes
    assert turn_boxes(box[None].astype(float), (20, 40), tag) == pytest.approx(upright.annotations.boxes, abs=1e-5)
    assert stored.pixels(0).shape == (3, 20, 40)


def test_bccd_is_the_same_in_every_format(bccd: Path, tmp_path: Path) -> None:
    original = read(bccd)
    convert(bccd, "yolo", tmp_path / "yolo", "--images", "link" if _same_disk(bccd, tmp_path) else "copy")
    convert(tmp_path / "yolo", "coco", tmp_path / "coco", "--images", "link")
    convert(tmp_path / "coco", "voc", tmp_path / "voc", "--images", "link")
    for name in ("yolo", "coco", "voc"):
        found = read(tmp_path / name)
        for split, count in (("train", 2804), ("val", 1137)):
            assert content(found[split]) == content(original[split])
            assert len(found[split].annotations.boxes) == count
            # the points are not converted
            assert found[split].annotations.dropped.degenerate == []


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev and os.access(one, os.W_OK)
