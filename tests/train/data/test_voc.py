"""Pascal VOC's annotations, as they are written and read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.train.data.voc import VocObject, read_voc, voc_annotation

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
