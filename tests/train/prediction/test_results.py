"""Files of results: read back as they were found, whatever a box does at the border of its image."""

import csv
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from msdeform.models.inference.detections import Detections
from msdeform.train.data.annotations import Category
from msdeform.train.data.voc import read_voc
from msdeform.train.data.yolo import read_yolo
from msdeform.train.prediction.results import WRITERS
from msdeform.train.prediction.sources import Frame, Source, sources_of

CATEGORIES = [Category(17, "cat"), Category(4, "dog, small")]
STILL = Source(Path("photos/one.png"), "photos/one.png", "photos/one")
CLIP = Source(Path("clip.mp4"), "clip.mp4", "clip")
PIXELS = torch.zeros(3, 30, 40, dtype=torch.uint8)
# the second leaves the image, the third is all outside
BOXES = [[1.25, 2.5, 30.75, 20.0], [-3.0, 10.0, 44.0, 35.0], [41.0, 1.0, 45.0, 5.0]]


def detections() -> Detections:
    labels = torch.tensor([1, 0, 0])
    scores = torch.tensor([0.75, 0.5, 0.25])
    return Detections(torch.tensor(BOXES), labels, scores, (30, 40), [CATEGORIES[label].name for label in labels])


def write(out: Path, kind: str, frame: Frame, tracks: list[int | None] | None = None) -> None:
    with WRITERS[kind](out, CATEGORIES) as writer:
        writer.add(frame, detections(), tracks)


def boxes_of(content: dict[str, Any]) -> list[list[float]]:
    return [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in content["annotations"])]


def test_labels_of_yolo_are_read_back_cut_to_the_image(tmp_path: Path) -> None:
    write(tmp_path, "yolo", Frame(STILL, PIXELS, 1))
    lines = (tmp_path / "labels" / "photos" / "one.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "0"]
    assert [float(line.split()[5]) for line in lines] == [0.75, 0.5]
    assert (tmp_path / "classes.txt").read_text() == "cat\ndog, small\n"
    # what readers take: five columns
    (tmp_path / "labels" / "photos" / "one.txt").write_text(
        "".join(f"{' '.join(line.split()[:5])}\n" for line in lines)
    )
    (tmp_path / "images" / "photos").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "photos" / "one.png")
    (tmp_path / "data.yaml").write_text("train: images/photos\nnames: [cat, dog]\n")
    content, wrong, _ = read_yolo(tmp_path / "data.yaml", "train", progress=False)
    assert wrong == []
    assert boxes_of(content) == [pytest.approx(box, abs=1e-6) for box in ([1.25, 2.5, 30.75, 20], [0, 10, 40, 30])]


def test_annotations_of_voc_are_read_back_cut_to_the_image(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    write(root, "voc", Frame(Source(Path("one.png"), "one.png", "one"), PIXELS, 1))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("one\n")
    (root / "annotations").rename(root / "Annotations")
    content, wrong, left_out = read_voc(root / "ImageSets" / "Main" / "train.txt")
    assert wrong == left_out == []
    assert boxes_of(content) == [pytest.approx(box) for box in ([1.25, 2.5, 30.75, 20], [0, 10, 40, 30])]
    assert [one["name"] for one in content["categories"]] == ["cat", "dog, small"]
    assert "<score>0.75</score>" in (root / "Annotations" / "one.xml").read_text()


def test_rows_of_csv_name_frame_time_and_track(tmp_path: Path) -> None:
    frame = Frame(CLIP, PIXELS, 9, 12, Fraction(12, 25), Fraction(25))
    write(tmp_path, "csv", frame, [3, None, 5])
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [row["track_id"] for row in rows] == ["3", "", "5"]
    assert {(row["file_name"], row["frame"], row["time"]) for row in rows} == {("clip.mp4", "12", "0.48")}
    assert [(row["category_id"], row["category_name"]) for row in rows][:2] == [("4", "dog, small"), ("17", "cat")]
    assert [float(rows[1][corner]) for corner in ("x0", "y0", "x1", "y1")] == BOXES[1]
    write(tmp_path, "yolo", frame, [3, None, 5])
    lines = (tmp_path / "labels" / "clip.mp4" / "000012.txt").read_text().splitlines()
    assert [line.split()[5:] for line in lines] == [["0.75", "3"], ["0.5"]]


def test_csv_can_be_followed_while_it_is_written(tmp_path: Path) -> None:
    with WRITERS["csv"](tmp_path, CATEGORIES) as writer:
        writer.add(Frame(STILL, PIXELS, 1), detections(), None)
        assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 4


def test_no_two_files_of_results_have_one_name() -> None:
    names = {Path(name): name for name in ("a.jpg", "a.png", "b.jpg", "a.mp4")}
    assert [one.stem for one in sources_of(names, None)] == ["a.jpg", "a.png", "b.jpg", "a.mp4"]
    names.pop(Path("a.png"))
    assert [one.stem for one in sources_of(names, 2)] == ["a", "b", "a", "webcam2"]
