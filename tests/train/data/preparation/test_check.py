"""Mistakes of every kind in one data set: each is found, with its image, class and box, and nothing else is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msdeform.cli import main
from msdeform.train.data.preparation.check import Finding, check
from msdeform.train.data.preparation.options import CheckOptions
from msdeform.train.visual.findings import draw_findings

Write = Callable[..., Path]


def noise(file: Path, seed: int, size: tuple[int, int] = (60, 80)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """COCO: four training and two validation images of 80 x 60, with the given boxes (image, class, xywh) added."""

    def write(*boxes: tuple[int, int, list[float]], names: tuple[str, ...] = ("cat", "dog"), **more: Any) -> Path:
        for split, count in (("train", 4), ("val", 2)):
            images = []
            for row in range(count):
                noise(tmp_path / f"{split}2017" / f"{row}.png", 10 * (split == "val") + row)
                images.append({"id": row, "file_name": f"{row}.png", "width": 80, "height": 60})
            mine = [(row, 1 + row % 2, [10, 10, 30, 20]) for row in range(count)]
            mine += [(row, 1, [5 * number, 30, 20, 20]) for row in range(count) for number in range(3)]
            mine += boxes if split == "train" else ()
            annotations = [
                {"id": number, "image_id": image, "category_id": label, "bbox": box}
                for number, (image, label, box) in enumerate(mine, 1)
            ]
            categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
            content = {"images": images, "annotations": annotations, "categories": categories}
            file = tmp_path / "annotations" / f"instances_{split}2017.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(content | (more if split == "train" else {})))
        return tmp_path

    return write


def found(data: Path, **options: Any) -> list[Finding]:
    settings = {"few": 1, "progress": False, **options}
    return check(CheckOptions(data=data, **settings))[1]


def kinds(data: Path, **options: Any) -> list[str]:
    return [finding.kind for finding in found(data, **options)]


def test_nothing_is_found_where_nothing_is_wrong(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    data = write()
    assert found(data) == []
    assert main(["data", "check", str(data), "--few", "2", "--strict", "--no-progress"]) == 0
    assert capsys.readouterr().out.endswith("\n\nnothing suspicious was found\n")


@pytest.mark.parametrize(
    ("image", "label", "box", "kind", "sentence"),
    [
        (2, 2, [30, 20, 0, 5], "no area", "0 x 5 pixels at 30, 20"),
        (2, 2, [90, 20, 7, 5], "no area", "7 x 5 pixels at 90, 20, outside 80 x 60"),
        (2, 2, [70, 20, 15, 9], "outside", "15 x 9 pixels at 70, 20, 5 pixels over the edge of 80 x 60"),
        (2, 2, [-3, 20, 15, 9], "outside", "15 x 9 pixels at -3, 20, 3 pixels over the edge of 80 x 60"),
        (2, 2, [70, 20, 3.5, 9], "tiny", "3.5 x 9 pixels at 70, 20"),
        (2, 2, [0, 0, 80, 59], "giant", "80 x 59 pixels at 0, 0, 98% of the image"),
        (2, 1, [10.5, 10, 30, 20.2], "duplicate", "at 10.5, 10"),
        (2, 1, [12, 10, 29, 20], "coinciding", "with another of its class, IoU 0.90"),
        (2, 2, [10, 10, 30, 20], "coinciding", "with cat, IoU 1.00"),
    ],
)
def test_a_suspicious_box_is_found_with_its_image_and_class(
    write: Write, image: int, label: int, box: list[float], kind: str, sentence: str
) -> None:
    (one,) = found(write((image, label, box)))
    assert (one.kind, one.split, one.image, one.label) == (kind, "train", "2.png", ["cat", "dog"][label - 1])
    assert one.sentence == sentence
    assert one.as_json()["box"] == pytest.approx(box)
    assert (one.other is not None) == (kind in ("duplicate", "coinciding"))


@pytest.mark.parametrize(
    ("box"), [[78, 20, 3.5, 9], [70, 20, 4, 4], [0, 0, 80, 56], [13, 10, 30, 20], [10, 10, 30, 26]]
)
def test_what_is_near_the_limits_is_not_suspicious(write: Write, box: list[float]) -> None:
    expected = ["tiny"] if box[2] == 3.5 else []
    assert kinds(write((2, 1, box))) == expected


def test_wrong_annotations_and_images_are_all_found(write: Write) -> None:
    data = write((9, 1, [1, 1, 9, 9]), (1, 7, [1, 1, 9, 9]), (1, 1, [1, 1, -9, 9]), (3, 1, [4, 4, 0, 0]))
    (data / "train2017" / "0.png").unlink()
    noise(data / "train2017" / "1.png", 40, (80, 60))
    file = data / "train2017" / "2.png"
    file.write_bytes(file.read_bytes()[:-3000])
    findings = found(data)
    told = [(finding.kind, finding.sentence) for finding in findings]
    assert [kind for kind, _ in told] == ["wrong"] * 3 + ["image"] * 3 + ["no area"]
    for (_, sentence), part in zip(
        told,
        [
            "is of image 9, which the file does not list",
            "of image 1 has category 7, expected one of 1, 2",
            "of image 1: bbox is expected to be [x, y, width, height], got a negative size",
            "0.png does not exist",
            "1.png is 60 wide and 80 high, but",
            "2.png cannot be decoded",
            "0 x 0 pixels at 4, 4",
        ],
        strict=True,
    ):
        assert part in sentence


def test_the_same_image_in_both_splits_twice_in_one_and_under_two_ids(write: Write) -> None:
    data = write()
    for split, row in (("val", 1), ("train", 3)):
        (data / f"{split}2017" / f"{row}.png").write_bytes((data / "train2017" / "0.png").read_bytes())
    findings = found(data)
    assert [(one.kind, one.split, one.image, one.sentence) for one in findings] == [
        ("train and val", "val", "1.png", "the same as train 0.png"),
        ("same image", "train", "3.png", "the same as train 0.png"),
    ]
    images = [{"id": row, "file_name": f"{row % 3}.png", "width": 80, "height": 60} for row in range(4)]
    findings = found(write(images=images))
    assert [(one.kind, one.image) for one in findings] == [("listed twice", "0.png"), ("not listed", "3.png")]
    # one folder for both splits
    file = data / "annotations" / "instances_val2017.json"
    shared = json.loads(file.read_text())
    for image in shared["images"]:
        image["file_name"] = f"../train2017/{image['file_name']}"
    write()
    file.write_text(json.dumps(shared))
    assert kinds(data) == ["train and val"] * 2 + ["not listed"] * 2


def test_classes_are_compared_counted_and_their_names_read(write: Write) -> None:
    data = write(names=("cat", "dog", "Traffic light", "traffic-light "))
    findings = found(data, few=3)
    assert [(one.kind, one.label, one.sentence) for one in findings] == [
        ("alike", None, "'Traffic light' and 'traffic-light '"),
        ("few", "dog", "2 boxes"),
        ("few", "Traffic light", "0 boxes"),
        ("few", "traffic-light ", "0 boxes"),
    ]
    renamed = write(categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "wolf"}])
    assert [one.sentence for one in found(renamed) if one.kind == "classes"] == [
        "of id 2, train has 'wolf' and val has 'dog'"
    ]
    only = write(annotations=[{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 40, 40]}])
    findings = found(only, few=0)
    assert [(one.kind, one.label, one.image) for one in findings] == [
        ("one class", "cat", None),
        *[("no boxes", None, f"{row}.png") for row in (1, 2, 3)],
    ]


def test_a_split_that_cannot_be_read_does_not_end_it(write: Write) -> None:
    data = write()
    file = data / "annotations" / "instances_val2017.json"
    file.write_text("{")
    (one,) = found(data)
    assert (one.kind, one.split) == ("unreadable", "val")
    assert "is not JSON" in one.sentence
    (data / "annotations" / "instances_train2017.json").write_text("[]")
    assert kinds(data) == ["unreadable"] * 2


def test_ten_of_each_are_printed_and_all_written(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(*[(row % 4, 2, [60 + row, 5, 2, 2]) for row in range(14)], (0, 1, [2, 2, 0, 0]))
    words = ["data", "check", str(data), "--few", "0", "--no-progress", "--out", str(tmp_path / "out" / "sheet.png")]
    assert main([*words, "--json", str(tmp_path / "all.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"data: COCO in {data}: 4 training images with 30 boxes, 2 validation images with 8")
    assert lines[2:4] == [
        "boxes without area, which are left out of training: 1",
        "  train 0.png cat: 0 x 0 pixels at 2, 2",
    ]
    assert lines[5] == "tiny boxes: 14"
    assert lines[16:] == [
        "  and 4 more",
        "",
        "15 findings",
        f"all of them: {tmp_path / 'all.json'}",
        f"pictures:    {tmp_path / 'out' / 'sheet.png'}",
    ]
    written = json.loads((tmp_path / "all.json").read_text())
    assert written["counts"] == {"no area": 1, "tiny": 14}
    assert len(written["findings"]) == 15
    assert written["findings"][1]["box"] == [60, 5, 2, 2]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 1000
    assert main([*words, "--strict"]) == 1


def test_the_picture_shows_the_box(write: Write) -> None:
    parts, findings = check(CheckOptions(data=write((2, 1, [40, 30, 0, 0])), few=0, progress=False))
    sheet = draw_findings(parts, findings)
    assert sheet is not None
    drawn = np.asarray(sheet).astype(int)
    red = (drawn[..., 0] > 180) & (drawn[..., 1] < 60) & (drawn[..., 2] < 60)
    # of noise about one pixel in a hundred is as red; a ring around the point is all so
    assert red[145:156, 145:156].sum() > 20
    assert draw_findings(parts, []) is None


def test_one_set_is_checked_whole_and_yolo_labels_too(tmp_path: Path) -> None:
    for row in range(3):
        noise(tmp_path / "images" / f"{row}.png", row)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{row}.txt").write_text("0 0.5 0.5 0.5 0.5\n" * (1 + (row == 2)))
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.0 0.5\n0 0.5 2 1 1\n1 0.2 0.2 0.2 0.2\n")
    (tmp_path / "labels" / "7.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    findings = found(tmp_path)
    assert [(one.kind, one.split, one.image) for one in findings] == [
        ("wrong", "all", None),
        ("wrong", "all", None),
        ("no area", "all", "images/0.png"),
        ("duplicate", "all", "images/2.png"),
    ]
    assert "0.txt, line 2: expected coordinates" in findings[0].sentence
    assert findings[1].sentence.endswith("7.txt labels an image that does not exist")
    assert {one.split for one in found(tmp_path, val_share=0.34)} == {"train", "val"}


def test_the_two_bad_boxes_of_bccd_are_named(bccd: Path) -> None:
    findings = [one for one in found(bccd, few=10) if one.kind != "coinciding"]
    assert [(one.line(), one.box) for one in findings] == [
        ("train BloodImage_00343.jpg RBC: 0 x 0 pixels at 180, 328", (180, 328, 180, 328)),
        ("val BloodImage_00338.jpg RBC: 0 x 0 pixels at 503, 336", (503, 336, 503, 336)),
    ]
