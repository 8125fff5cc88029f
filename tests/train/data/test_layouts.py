"""Which files --data stands for, and Pascal VOC read as COCO and written."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msdeform.train.config.options import Input, Loading, Source
from msdeform.train.data.annotations import Annotations, Category
from msdeform.train.data.dataset import data_line
from msdeform.train.data.loader import training_data, validation_data
from msdeform.train.data.own import OwnData
from msdeform.train.data.voc import VocObject, read_voc, voc_annotation
from msdeform.train.data.yolo import yolo_line

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
        ("<annotation>", '<?xml version="1.0" encoding="klingon"?><annotation>', "is not XML: unknown encoding"),
        ("<width>40", "<width>inf", "size/width is expected to be a number, got 'inf'"),
        ("<height>30", "<height>nan", "size/height is expected to be a number, got 'nan'"),
        ("<xmax>20", "<xmax>nan", "bndbox/xmax is expected to be a number, got 'nan'"),
    ],
)
def test_a_wrong_voc_file_is_named(voc: Path, old: str, new: str, sentence: str) -> None:
    file = voc / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"a\.xml.*{sentence}"):
        Annotations.load(voc / "ImageSets" / "Main" / "train.txt")


def test_a_voc_file_in_another_encoding_is_read_and_its_entities_are_not(voc: Path) -> None:
    file, names = voc / "Annotations" / "a.xml", voc / "ImageSets" / "Main" / "train.txt"
    text = file.read_text()
    file.write_text(text, encoding="utf-16")
    assert len(Annotations.load(names).boxes) == 1
    file.write_text(f'<!DOCTYPE x [<!ENTITY a "aa">]>{text}', encoding="utf-16")
    with pytest.raises(ValueError, match=r"a\.xml: expected no document type"):
        Annotations.load(names)
    file.write_text(text)
    names.write_bytes(b"\xe9\n")
    with pytest.raises(ValueError, match=r"train\.txt is not text in UTF-8"):
        Annotations.load(names)


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


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photographs in images/; number 3 has two boxes, the others one."""
    (tmp_path / "images").mkdir()
    for row in range(10):
        Image.new("RGB", (40, 30), (row, 0, 0)).save(tmp_path / "images" / f"{row}.jpg")
    return tmp_path


BOXES = {row: [(0, (2.5, 3, 20, 10))] + [(1, (0, 0, 40, 30))] * (row == 3) for row in range(10)}
NAMES = ["cat", "dog"]


def add_voc(folder: Path, rows: Sequence[int] = range(10)) -> None:
    folder.mkdir(exist_ok=True)
    for row in rows:
        objects = [VocObject(NAMES[label], box) for label, box in BOXES[row]]
        (folder / f"{row}.xml").write_bytes(voc_annotation(f"{row}.jpg", (30, 40), objects))


def add_yolo(folder: Path, classes: Path, rows: Sequence[int] = range(10)) -> None:
    folder.mkdir(exist_ok=True)
    classes.write_text("".join(f"{name}\n" for name in NAMES))
    for row in rows:
        (folder / f"{row}.txt").write_text("\n".join(yolo_line(label, box, (30, 40)) for label, box in BOXES[row]))


def add_coco(file: Path, folder: str = "") -> None:
    file.parent.mkdir(exist_ok=True)
    boxes = [(row, label, box) for row in range(10) for label, box in BOXES[row]]
    content = {
        "images": [{"id": row, "file_name": f"{folder}{row}.jpg", "width": 40, "height": 30} for row in range(10)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES)],
        "annotations": [
            {
                "id": number,
                "image_id": row,
                "category_id": label,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            }
            for number, (row, label, box) in enumerate(boxes, 1)
        ],
    }
    file.write_text(json.dumps(content))


def move_images_up(photos: Path) -> None:
    for file in (photos / "images").iterdir():
        file.rename(photos / file.name)
    (photos / "images").rmdir()


@pytest.mark.parametrize(
    ("kind", "beside", "add"),
    [
        ("voc", False, lambda folder: add_voc(folder / "annotations")),
        ("voc", False, lambda folder: add_voc(folder / "images")),
        ("voc", True, add_voc),
        ("voc", True, lambda folder: add_voc(folder / "Annotations")),
        ("yolo", False, lambda folder: add_yolo(folder / "labels", folder / "classes.txt")),
        ("yolo", False, lambda folder: add_yolo(folder / "labels", folder / "labels" / "classes.txt")),
        ("yolo", False, lambda folder: add_yolo(folder / "images", folder / "images" / "classes.txt")),
        ("yolo", True, lambda folder: add_yolo(folder, folder / "classes.txt")),
        ("coco", False, lambda folder: add_coco(folder / "result.json", "images/")),
        ("coco", False, lambda folder: add_coco(folder / "annotations.json")),
        ("coco", False, lambda folder: add_coco(folder / "annotations" / "anything.json")),
        ("coco", True, lambda folder: add_coco(folder / "annotations.json")),
    ],
)
def test_one_set_of_images_is_recognised_and_divided(
    photos: Path, kind: str, beside: bool, add: Callable[[Path], None]
) -> None:
    if beside:
        move_images_up(photos)
    add(photos)
    if kind == "voc" and not beside and (photos / "images" / "1.xml").is_file():
        photos = photos / "images"  # the folder that an annotation tool was pointed at
    with pytest.raises(ValueError, match=r"one set of images .* not divided .*: --val-share 0\.2 holds out a fifth"):
        Source(data=photos).split("train")
    source = Source(data=photos, val_share=0.2)
    train, val = training_data(source, Input(), Loading(), 0), validation_data(source, Input(), None)
    assert (len(train), len(val)) == (8, 2)
    assert train.annotations.format == val.annotations.format == kind
    named = [Path(image.name).name for data in (train, val) for image in data.annotations.images]
    assert sorted(named) == [f"{row}.jpg" for row in range(10)]
    assert [category.name for category in val.annotations.categories] == NAMES
    boxes = np.concatenate([train.annotations.boxes, val.annotations.boxes]).tolist()
    assert sorted(boxes) == [[0, 0, 40, 30]] + [[2.5, 3, 20, 10]] * 10
    # a class of one image is there to be trained on
    assert train.annotations.labels.tolist().count(1) == 1
    line = data_line(photos, train, val)
    assert line.endswith(f"in {photos}: 8 training images with 9 boxes, 2 validation images with 2 boxes, 2 classes")
    again = validation_data(Source(data=photos, val_share=0.2), Input(), None)
    assert again.image_ids == val.image_ids


def test_splits_in_folders_of_xml_files_are_recognised(photos: Path) -> None:
    for split, rows in (("train", range(7)), ("valid", range(7, 10))):
        add_voc(photos / split, rows)
        for row in rows:
            (photos / "images" / f"{row}.jpg").rename(photos / split / f"{row}.jpg")
    assert len(training_data(Source(data=photos), Input(), Loading(), 0)) == 7
    assert len(validation_data(Source(data=photos), Input(), None)) == 3


def test_splits_in_folders_of_labels_need_no_description(photos: Path) -> None:
    for split, rows in (("train", range(7)), ("val", range(7, 10))):
        (photos / "labels").mkdir(exist_ok=True)
        add_yolo(photos / "labels" / split, photos / "classes.txt", rows)
        (photos / "images" / split).mkdir()
        for row in rows:
            (photos / "images" / f"{row}.jpg").rename(photos / "images" / split / f"{row}.jpg")
    assert len(training_data(Source(data=photos), Input(), Loading(), 0)) == 7
    assert len(validation_data(Source(data=photos), Input(), None)) == 3
    with pytest.raises(ValueError, match=r"val_share: expected none, as .* is divided already \(classes\.txt\)"):
        Source(data=photos, val_share=0.2).split("train")


def test_one_split_alone_is_divided_on_request(shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes / "train2017", tmp_path / "train")
    truth = shapes / "annotations" / "instances_train2017.json"
    shutil.copy(truth, tmp_path / "train" / "_annotations.coco.json")
    with pytest.raises(ValueError, match=r"has no val images, .*; --val-share 0\.2 holds out a fifth"):
        Source(data=tmp_path).split("val")
    by_folder = Source(data=tmp_path, val_share=0.25)
    named = Source(train_images=shapes / "train2017", train_annotations=truth, val_share=0.25)
    assert len(validation_data(by_folder, Input(), None)) == 2
    assert validation_data(named, Input(), None).image_ids == validation_data(by_folder, Input(), None).image_ids
    with pytest.raises(ValueError, match="val_share: expected none beside --val-images"):
        Source(data=tmp_path, val_images=shapes / "val2017", val_share=0.25).split("val")
    # an evaluation takes the share of the run, of the same data alone
    assert Source(data=tmp_path).divided_as(by_folder) == by_folder
    assert Source(data=tmp_path, val_share=1.0).divided_as(by_folder).val_share == 1
    assert Source(data=shapes).divided_as(by_folder).val_share is None


def test_several_formats_are_told_and_one_can_be_named(photos: Path) -> None:
    add_voc(photos / "annotations", range(9))
    add_yolo(photos / "labels", photos / "classes.txt")
    with pytest.raises(
        ValueError,
        match=r"holds Pascal VOC \(annotations/\*\.xml\) and YOLO \(classes\.txt\); name .* --data-format voc or yolo",
    ):
        Source(data=photos, val_share=0.2).split("train")
    for name in ("voc", "yolo"):
        source = Source(data=photos, val_share=0.2, data_format=name)
        assert validation_data(source, Input(), None).annotations.format == name
    with pytest.raises(ValueError, match=r"data_format: expected the format of .*, which is Pascal VOC .*, got coco"):
        Source(data=photos, data_format="coco").split("train")
    (photos / "one.json").write_text('{"images": [], "annotations": [], "categories": []}')
    (photos / "two.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match=r"expected one COCO file .*, found one\.json, two\.json"):
        Source(data=photos).split("train")


def test_labels_without_names_of_classes_and_of_absent_images_are_told(photos: Path) -> None:
    add_yolo(photos / "labels", photos / "classes.txt")
    (photos / "images" / "4.jpg").unlink()
    source = Source(data=photos, val_share=0.2)
    with pytest.raises(ValueError, match=r"labels/4\.txt labels an image that does not exist; so do 0 others"):
        validation_data(source, Input(), None)
    kept = validation_data(source, Input(bad_data="skip"), None)
    assert kept.annotations.dropped.wrong == [f"{photos / 'labels' / '4.txt'} labels an image that does not exist"]
    (photos / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"holds YOLO labels, but not the names of their classes: expected classes"):
        source.split("train")


def test_a_photograph_without_its_xml_is_passed_over_and_an_xml_without_its_photograph_told(photos: Path) -> None:
    add_voc(photos / "annotations", range(9))
    source = Source(data=photos, val_share=0.2)
    assert len(training_data(source, Input(), Loading(), 0)) == 7
    (photos / "images" / "0.jpg").unlink()
    every = Source(data=photos, val_share=1.0)
    with pytest.raises(FileNotFoundError, match=r"images/0\.jpg does not exist, but .*annotations lists it"):
        validation_data(every, Input(), None)


def test_a_click_is_no_box(voc: Path) -> None:
    file = voc / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("<xmin>1<", "<xmin>9<", 2).replace("<xmax>20<", "<xmax>9<"))
    file.write_text(file.read_text().replace("<ymin>3<", "<ymin>10<"))
    add = OBJECT.format(name="dog", difficult=0, right=30)
    file.write_text(file.read_text().replace("</annotation>", f"{add}</annotation>"))
    data = validation_data(Source(data=voc), Input(), None)
    assert data.annotations.boxes.tolist() == [[0, 2, 30, 10]]
    assert "left out 1 box with no area inside the image (in b.jpg)" in data.annotations.dropped.sentences()[-1]
    # nor is it counted as missed, nor called a crowd
    assert [one["bbox"] for one in data.annotations.ground_truth()["annotations"]] == [[0, 2, 30, 8]]


def test_bad_files_of_voc_are_left_out_on_request(voc: Path) -> None:
    file = voc / "Annotations" / "a.xml"
    whole = file.read_text()
    file.write_text(whole.replace("<xmax>20</xmax>", "<xmax>0</xmax>"))
    source, skip = Source(data=voc), Input(bad_data="skip")
    read = Annotations.load(source.split("train")[1], bad_data="skip")
    assert len(read.images) == 1
    assert re.search(r"a\.xml: expected xmin <= xmax .* \(image 1\)$", read.dropped.wrong[0])
    for wrong in (whole[:40], whole.replace("<width>40</width>", "")):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=r"train has no images"):
            training_data(source, skip, Loading(), 0)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.xml does not exist, but .*train\.txt lists it"):
        training_data(source, Input(), Loading(), 0)
    assert len(validation_data(source, skip, None)) == 1


def test_bccd_is_trained_on_without_its_two_boxes_that_are_points(bccd: Path) -> None:
    train = training_data(Source(data=bccd), Input(), Loading(), 0)
    val = validation_data(Source(data=bccd), Input(), None)
    assert data_line(bccd, train, val) == (
        f"data: Pascal VOC in {bccd}: 205 training images with 2,804 boxes, 87 validation images with 1,137 boxes, "
        "3 classes"
    )
    sentences = [*train.sentences(), *val.sentences()]
    assert sentences == [
        "train.txt: left out 1 box with no area inside the image (in BloodImage_00343.jpg)",
        "val.txt: left out 1 box with no area inside the image (in BloodImage_00338.jpg)",
    ]


SIZE = (480, 651)


def read_back(folder: Path, *objects: VocObject) -> tuple[Any, list[str], list[str]]:
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "Annotations" / "a.xml").write_bytes(voc_annotation("a.jpg", SIZE, objects))
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return read_voc(folder / "ImageSets" / "Main" / "train.txt")


def test_boxes_are_read_back_as_they_were(tmp_path: Path) -> None:
    boxes = np.round(np.random.default_rng(0).uniform(0, 400, (200, 4)), 2)
    boxes[:, 2:] = np.round(boxes[:, :2] + boxes[:, 2:] / 2 + 2, 2)
    given = [VocObject("a & b <c>", box) for box in boxes.tolist()]
    found, _, _ = read_back(tmp_path, *given, VocObject("ö", (0, 0, 651, 480), difficult=True, score=0.25))
    read = np.array([one["bbox"] for one in found["annotations"]])
    wanted = np.round(np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]), 2)
    assert read[:-1].tolist() == wanted.tolist()
    assert found["annotations"][-1]["bbox"] == [0, 0, 651, 480]
    assert [one["iscrowd"] for one in found["annotations"]] == [0] * 200 + [1]
    assert [one["name"] for one in found["categories"]] == ["a & b <c>", "ö"]
    assert (found["images"][0]["height"], found["images"][0]["width"]) == SIZE


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_detectors_boxes_are_read_back_in_its_precision(tmp_path: Path, kind: type[np.floating]) -> None:
    boxes = np.random.default_rng(1).uniform(1, 300, (100, 4)).astype(kind)
    boxes[:, 2:] += boxes[:, :2]
    found, _, _ = read_back(tmp_path, *(VocObject("a", box) for box in boxes))
    read = np.array([one["bbox"] for one in found["annotations"]])
    assert read[:, :2] + read[:, 2:] == pytest.approx(boxes[:, 2:], abs=3e-9)
    assert (read[:, :2].astype(np.float32) == boxes[:, :2].astype(np.float32)).all()


def test_numbers_are_written_as_people_write_them(tmp_path: Path) -> None:
    text = voc_annotation("a.jpg", (20, 40), [VocObject("cat", (0, 2.5, 10, 20))]).decode()
    assert [line.strip() for line in text.splitlines() if "<x" in line or "<y" in line] == [
        "<xmin>1</xmin>",
        "<ymin>3.5</ymin>",
        "<xmax>10</xmax>",
        "<ymax>20</ymax>",
    ]


def test_data_sets_of_a_script_are_counted_too() -> None:
    items = [(np.zeros((20, 30, 3), np.uint8), {"boxes": [[1, 2, 20, 10]], "labels": [0]})] * 3

    class Three(list[Any]):
        classes = ("cat",)

    own = OwnData(Three(items), Three(items[:1]))
    train, val = (
        own.images(split, own.annotations(split, progress=False), None, progress=False) for split in ("train", "val")
    )
    assert data_line(None, train, val) == (
        "data: data sets given from Python: 3 training images with 3 boxes, 1 validation image with 1 box, "
        "1 class (cat)"
    )


def test_a_name_too_long_for_a_file_is_told_where_annotations_are_read(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "x" * 5000, "width": 4, "height": 3}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"mine\.json: image 1: expected the path of a file, got [ -~]{1,300}$"):
        training_data(Source(data=tmp_path, val_share=0.5), Input(), Loading(), seed=0)


def test_a_list_with_control_characters_is_refused(voc: Path) -> None:
    (voc / "ImageSets/Main/train.txt").write_text("a\x1b[2J")
    with pytest.raises(ValueError, match=r"train\.txt, line 1: expected a name, got control characters in [ -~]+$"):
        read_voc(voc / "ImageSets/Main/train.txt", skip=True)
