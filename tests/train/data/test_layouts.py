"""Which files --data stands for, and Pascal VOC read as COCO."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from msdeform.train.config.options import Input, Source
from msdeform.train.data.annotations import Annotations, Category
from msdeform.train.data.loader import validation_data

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
    "<xmin>1</xmin><ymin>3</ymin><xmax>{right}</xmax><ymax>10</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images of 40 x 30, one for each split."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for split, name, objects in (
        ("train", "a", OBJECT.format(name="cat", difficult=0, right=20)),
        (
            "val",
            "b",
            OBJECT.format(name="dog", difficult=0, right=20) + OBJECT.format(name="dog", difficult=1, right=9),
        ),
    ):
        Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        size = "<size><width>40</width><height>30</height></size>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name}\n")
    return tmp_path


def test_voc_is_read(voc: Path) -> None:
    data = validation_data(Source(data=voc), Input(), None)
    read = data.annotations
    assert read.categories == [Category(1, "cat"), Category(2, "dog")]
    assert read.boxes.tolist() == [[0, 2, 20, 10]]
    assert read.labels.tolist() == [1]
    assert data.image_ids == [2]
    assert [one["iscrowd"] for one in read.ground_truth()["annotations"]] == [0, 1]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("<xmax>20</xmax>", "<xmax>0</xmax>", "expected xmin <= xmax"),
        ("<xmax>20</xmax>", "<xmax>wide</xmax>", "bndbox/xmax is expected to be a number, got 'wide'"),
        ("<name>cat</name>", "", "expected name in object, found none"),
        ("</annotation>", "", "is not XML"),
        ("<annotation>", "<!DOCTYPE x><annotation>", "expected no document type"),
    ],
)
def test_a_wrong_voc_file_is_named(voc: Path, old: str, new: str, sentence: str) -> None:
    file = voc / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"a\.xml.*{sentence}"):
        Annotations.load(voc / "ImageSets" / "Main" / "train.txt")


def test_exports_of_roboflow_and_cvat_are_recognised(shapes: Path, tmp_path: Path) -> None:
    for split, folder, subset in (("train", "train", "Train"), ("val", "valid", "Validation")):
        truth = shapes / "annotations" / f"instances_{split}2017.json"
        shutil.copytree(shapes / f"{split}2017", tmp_path / "roboflow" / folder)
        shutil.copy(truth, tmp_path / "roboflow" / folder / "_annotations.coco.json")
        shutil.copytree(shapes / f"{split}2017", tmp_path / "cvat" / "images" / subset)
        (tmp_path / "cvat" / "annotations").mkdir(exist_ok=True)
        shutil.copy(truth, tmp_path / "cvat" / "annotations" / f"instances_{subset}.json")
    for layout in ("roboflow", "cvat"):
        assert len(validation_data(Source(data=tmp_path / layout), Input(image_size=64), None)) == 4
    shutil.rmtree(tmp_path / "roboflow" / "valid")
    with pytest.raises(ValueError, match="has no val images, only those of train; export both splits"):
        Source(data=tmp_path / "roboflow").split("val")


def test_an_unknown_layout_is_told_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError, match="^data: expected the layout of COCO .* Pascal VOC.*.*holds pictures"):
        Source(data=tmp_path).split("train")
