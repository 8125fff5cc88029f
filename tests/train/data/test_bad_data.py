"""Wrong annotations and images: they end the run in a sentence, or are left out and listed."""

import json
import multiprocessing
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from msdeform.train.config.options import Input, Loading, Source
from msdeform.train.data.annotations import Annotations, ImageEntry, ImageList
from msdeform.train.data.dataset import BadImageError, CocoDetection
from msdeform.train.data.loader import Order, training_data, training_loader, validation_data
from msdeform.train.data.transforms import to_model

Write = Callable[..., Path]

SKIP = Input(image_size=64, bad_data="skip")


@pytest.fixture
def many(tmp_path: Path) -> Source:
    """Six images, id 10 to 15, of 40 x 30 noise, the first with two boxes, the last with none, others with one."""
    content: dict[str, Any] = {"images": [], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    (tmp_path / "images").mkdir()
    for row in range(6):
        pixels = np.random.default_rng(row).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{row}.png")
        content["images"].append({"id": 10 + row, "file_name": f"{row}.png", "width": 40, "height": 30})
        for _ in range((2, 1, 1, 1, 1, 0)[row]):
            number = len(content["annotations"]) + 1
            box = [2 * row, 2, 20, 10]
            content["annotations"].append({"id": number, "image_id": 10 + row, "category_id": 1, "bbox": box})
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return Source(
        train_images=path.parent / "images",
        train_annotations=path,
        val_images=path.parent / "images",
        val_annotations=path,
    )


def truncate(source: Source, *rows: int) -> None:
    for row in rows:
        path = source.train_images / f"{row}.png"
        path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize(
    "wrong",
    [
        {"bbox": [1, 2, -3, 4]},
        {"bbox": [1, 2, 3]},
        {"bbox": None},
        {"bbox": [1, 2, "3", 4]},
        {"bbox": [1, 2, float("nan"), 4]},
        {"category_id": 4},
        {"category_id": [4]},
        {"image_id": 8},
    ],
)
def test_a_wrong_annotation_is_left_out_with_its_ids(annotation_file: Write, wrong: dict[str, Any]) -> None:
    path = annotation_file(wrong, {}, {"iscrowd": 1})
    with pytest.raises(ValueError, match="annotation 1"):
        Annotations.load(path)
    read = Annotations.load(path, bad_data="skip")
    assert read.boxes.tolist() == [[1, 2, 11, 12]]
    assert len(read.dropped.wrong) == 1
    assert re.search(r"annotation 1 (of image 7|is of image 8)", read.dropped.wrong[0])
    # nor do metrics count it, but they know of the crowd
    assert [(a["bbox"], a["iscrowd"]) for a in read.ground_truth()["annotations"]] == [
        ([1, 2, 10, 10], crowd) for crowd in (0, 1)
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_id": "\x1b[31mred"},
        {"category_id": "a\nb"},
        {"id": "\u2028", "bbox": 3},
        {"bbox": ["x" * 5000] * 4},
        {"category_id": "x" * 5000},
    ],
)
def test_what_a_file_says_is_told_on_one_short_line(annotation_file: Write, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="annotation ") as caught:
        Annotations.load(annotation_file(wrong))
    assert re.fullmatch("[ -~]{1,700}", str(caught.value))


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[31m.png", "x" * 5000])
def test_a_file_name_that_no_line_can_show_is_refused(annotation_file: Write, name: str) -> None:
    path = annotation_file(images=[{"id": 7, "file_name": name, "width": 40, "height": 30}])
    with pytest.raises(ValueError, match=r"image 7: expected the path of a file, got [ -~]{1,300}$"):
        Annotations.load(path)


def test_the_first_of_many_are_listed_and_the_others_counted(annotation_file: Write) -> None:
    read = Annotations.load(annotation_file(*[{"category_id": 4}] * 12, {}), bad_data="skip")
    lines = read.dropped.sentences()
    assert lines[0] == "left out 12 wrong annotations:"
    assert "annotation 10 of image 7 has category 4, expected one of 3, 5" in lines[10]
    assert lines[11] == "  and 2 more"
    assert len(read.dropped.wrong) == 12


def test_what_the_metrics_need_is_completed(annotation_file: Write) -> None:
    path = annotation_file({"bbox": [0, 0, 4, 5]}, {"area": 3.5, "id": 0})
    truth = Annotations.load(path).ground_truth()
    # an id of 0 would be taken for no match
    assert [(a["id"], a["area"], a["iscrowd"]) for a in truth["annotations"]] == [(1, 20, 0), (2, 3.5, 0)]
    assert [image["id"] for image in truth["images"]] == [7]


@pytest.mark.parametrize(
    ("replaced", "sentence"),
    [
        ({"annotations": [{"id": 4, "image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}] * 2}, "annotation id 4"),
        ({"images": [{"id": 7, "file_name": "seven.png", "width": 40, "height": 30}] * 2}, "image id 7"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]}, "category name 'cat'"),
    ],
)
@pytest.mark.parametrize("bad_data", ["fatal", "skip"])
def test_what_is_there_twice_is_named(
    annotation_file: Write, replaced: dict[str, Any], sentence: str, bad_data: Any
) -> None:
    with pytest.raises(ValueError, match=f"{sentence} is given 2 times, expected once"):
        Annotations.load(annotation_file(**replaced), bad_data=bad_data)


def test_missing_images_and_those_of_another_size_are_left_out_with_their_ids(many: Source) -> None:
    folder = many.train_images
    (folder / "1.png").unlink()
    Image.new("RGB", (30, 40)).save(folder / "2.png")
    data = training_data(many, SKIP, Loading(), seed=0)
    assert data.image_ids == [10, 13, 14, 15]
    assert [re.search(r"(\d\.png).*(\(image \d+\))", line).groups() for line in data.annotations.dropped.images] == [
        ("1.png", "(image 11)"),
        ("2.png", "(image 12)"),
    ]
    assert data.sentences() == [
        "instances.json: left out 2 images:",
        f"instances.json:   image {folder}/1.png does not exist (image 11)",
        f"instances.json:   {folder}/2.png is 30 wide and 40 high, but {many.train_annotations} says 40 and 30, "
        "the two exchanged: is the file turned by an EXIF tag? (image 12)",
        "instances.json: no boxes in 1 of 4 images, kept all the same",
    ]


def test_an_image_of_another_size_is_refused_before_training(many: Source) -> None:
    assert many.train_images is not None
    Image.new("RGB", (50, 30)).save(many.train_images / "2.png")
    with pytest.raises(ValueError, match=r"2\.png is 50 wide and 30 high, but .* says 40 and 30 \(image 12\)"):
        training_data(many, Input(), Loading(), seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_replaced_by_the_next_in_training(many: Source, workers: int) -> None:
    truncate(many, 1, 2, 5)
    with pytest.raises(BadImageError, match=r"1\.png cannot be decoded"):
        list(training_data(many, Input(image_size=64, augment="none"), Loading(), seed=0))
    data = training_data(many, SKIP, Loading(), seed=0)
    samples = list(DataLoader(data, batch_size=None, num_workers=workers))
    assert [target["image_id"] for _, target in samples] == [10, 13, 13, 13, 14, 10]
    replaced = [data.item(index)[1] or "" for index in range(6)]
    loader = training_loader(data, Order(6, total=3, seed=0), Loading(workers=workers), start=0, end=2)
    assert {sentence for batch in loader for sentence in batch.replaced} == {*filter(None, replaced)}
    assert [bool(sentence) for sentence in replaced] == [False, True, True, False, False, True]
    for row in (1, 2, 5):
        assert re.fullmatch(rf"image \S+{row}\.png cannot be decoded: .* \(image {10 + row}\)", replaced[row])
    # augmented as the item, whatever image it is of
    assert not torch.equal(samples[1][0], samples[2][0])
    again = data[1]
    assert torch.equal(samples[1][0], again[0])


def test_when_no_image_can_be_read_it_is_said(many: Source) -> None:
    truncate(many, *range(6))
    with pytest.raises(BadImageError, match=r"none of 6 images can be read; the first: .*3\.png"):
        training_data(many, SKIP, Loading(), seed=0)[3]
    with pytest.raises(ValueError, match="val has no images; 6 are listed"):
        validation_data(many, SKIP, None)


def test_evaluation_leaves_unreadable_images_out_beforehand(many: Source) -> None:
    truncate(many, 0, 3)
    data = validation_data(many, SKIP, None)
    assert data.image_ids == [11, 12, 14, 15]
    assert [target["image_id"] for _, target in data] == data.image_ids
    assert [line[-10:] for line in data.annotations.dropped.images] == ["(image 10)", "(image 13)"]


def test_images_without_boxes_are_kept_among_others_but_not_alone(many: Source) -> None:
    data = training_data(many, Input(), Loading(), seed=0)
    assert len(data) == 6
    assert data.sentences() == ["instances.json: no boxes in 1 of 6 images, kept all the same"]
    content = json.loads(many.train_annotations.read_text())
    many.train_annotations.write_text(json.dumps({**content, "annotations": []}))
    for make in (lambda: training_data(many, Input(), Loading(), seed=0), lambda: validation_data(many, Input(), None)):
        with pytest.raises(ValueError, match=r"instances\.json: no annotated images: none of 6 images"):
            make()
    many.train_annotations.write_text(json.dumps({**content, "images": [], "annotations": []}))
    with pytest.raises(ValueError, match="train has no images; 0 are listed"):
        training_data(many, Input(), Loading(), seed=0)


def private_megabytes() -> float:
    """Memory that this process shares with none."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()]
    return sum(int(words[1]) for words in lines if words[0].startswith("Private_")) / 1024


def growth_in_a_worker(images: Sequence[ImageEntry] | ImageList) -> float:
    """Megabytes that a process of its own gains by reading every entry."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def read_all() -> None:
        before = private_megabytes()
        for row in range(len(images)):
            assert images[row].height > 0
        answers.put(private_megabytes() - before)

    worker = context.Process(target=read_all)
    worker.start()
    worker.join()
    return answers.get()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux's /proc/self/smaps_rollup")
def test_a_worker_gains_no_memory_by_reading_entries() -> None:
    entries = [ImageEntry(10**6 + row, f"{row:012d}.jpg", 480 + row % 300, 640) for row in range(30_000)]
    # a list of them, for comparison, is copied as its reference counts are written
    assert growth_in_a_worker(entries) > 4
    assert growth_in_a_worker(ImageList(entries)) < 1


def test_image_entries_are_packed_and_read_as_they_were(many: Source) -> None:
    images = Annotations.load(many.train_annotations).images
    assert images[0] == (10, "0.png", 30, 40)
    assert images[-1] == images[5] == (15, "5.png", 30, 40)
    assert [image.name for image in images] == [f"{row}.png" for row in range(6)]
    assert len(images) == 6
    with pytest.raises(IndexError):
        images[6]
    data = CocoDetection(many.train_images, Annotations.load(many.train_annotations), to_model)
    assert isinstance(data.rows, np.ndarray)
