"""Reading annotation files and images: what training gets, and what a user is told."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from msdeform.models.inference.image_size import Size as ImageSize
from msdeform.train.data.annotations import Annotations, Category
from msdeform.train.data.dataset import BadImageError, CocoDetection, read_image
from msdeform.train.data.layouts import HeldOut
from msdeform.train.data.transforms import to_model, training_transform

Write = Callable[..., Path]


def test_category_ids_become_labels_in_order(annotation_file: Write) -> None:
    read = Annotations.load(annotation_file({"category_id": 5}, {"category_id": 3, "bbox": [0, 0, 4, 5]}))
    assert read.categories == [Category(3, "dog"), Category(5, "cat")]
    assert read.labels.tolist() == [1, 0]
    assert read.boxes.tolist() == [[1, 2, 11, 12], [0, 0, 4, 5]]
    assert read.first.tolist() == [0, 2]


def test_boxes_are_clipped_and_crowds_and_degenerate_ones_dropped_by_name(annotation_file: Write) -> None:
    read = Annotations.load(
        annotation_file(
            {"bbox": [-5, 20, 100, 100]}, {"iscrowd": 1}, {"bbox": [3, 3, 0, 4]}, {"bbox": [50, 2, 5, 5]}, {}
        )
    )
    assert read.boxes.tolist() == [[0, 20, 40, 30], [1, 2, 11, 12]]
    assert read.dropped.crowd == [7]
    assert read.dropped.degenerate == [7, 7]
    assert read.dropped.sentences() == [
        "left out 1 region marked as crowd or difficult, which evaluation ignores (image ids 7)",
        "left out 2 boxes with no area inside the image (image ids 7)",
    ]


@pytest.mark.parametrize(
    ("annotation", "sentence"),
    [
        (
            {"bbox": [1, 2, -3, 4]},
            "annotation 1 of image 7: bbox is expected to be [x, y, width, height], got a negative",
        ),
        ({"bbox": [1, 2, 3]}, "annotation 1 of image 7: bbox is expected to be four finite numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "four finite numbers"),
        ({"bbox": [1, 2, 1e300, 10**400]}, "four finite numbers"),
        ({"category_id": 4}, "annotation 1 of image 7 has category 4, expected one of 3, 5"),
        ({"image_id": 8}, "annotation 1 is of image 8, which the file does not list"),
    ],
)
def test_a_wrong_annotation_is_named(annotation_file: Write, annotation: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Annotations.load(annotation_file(annotation))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ('{"images": [], "categories": []}', "lacks ['annotations']"),
        ('{"images": [], "categories": [], "annotations": []}', "at least one category"),
        ('{"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": []}', "image 1 lacks"),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "annotations": []}',
            "category id 1 is given 2 times, expected once",
        ),
        ('{"images": null, "categories": [], "annotations": []}', "images: expected a list, got None"),
        ('{"images": [], "categories": [], "annotations": {}}', "annotations: expected a list, got {}"),
        ('{"images": [null], "categories": [], "annotations": []}', "an image is expected to have an id, got None"),
        ('{"images": [{"id": [1]}], "categories": [], "annotations": []}', "an image is expected to have an id, got {"),
        (
            '{"images": [{"id": 1, "file_name": "a", "height": 1e999, "width": 1}], "annotations": [], '
            '"categories": [{"id": 1, "name": "a"}]}',
            "id, height and width are expected to be numbers",
        ),
        (
            '{"images": [{"id": 1e30, "file_name": "a", "height": 1, "width": 1}], "annotations": [], '
            '"categories": [{"id": 1, "name": "a"}]}',
            "id, height and width are expected to be numbers",
        ),
        (
            '{"images": [], "annotations": [5], "categories": [{"id": 1, "name": "a"}]}',
            "an annotation is expected to be an object, got 5",
        ),
        ('{"images":' + "[" * 200_000, "is not JSON"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    for held_out in (None, HeldOut(0.2)):
        with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + re.escape(sentence)):
            Annotations.load(path, held_out=held_out)


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        (
            [[1, 2, 11, 12], [20, 15, 38, 29], [25, 10, 39, 28]],
            "67% of the boxes leave their image when read so, and none as [x1, y1, x2, y2]: are they corners?",
        ),
        ([[0.1, 0.2, 0.5, 0.4], [0.5, 0.5, 0.2, 0.2]], "every box is under one pixel: are they normalised?"),
    ],
)
def test_boxes_in_other_units_are_refused_or_told(
    annotation_file: Write, boxes: list[list[float]], sentence: str
) -> None:
    path = annotation_file(*({"bbox": box} for box in boxes))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Annotations.load(path)
    kept = Annotations.load(path, bad_data="skip")
    assert len(kept.boxes) == len(boxes)
    assert sentence in kept.dropped.sentences()[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"annotation file .*nowhere\.json does not exist"):
        Annotations.load(tmp_path / "nowhere.json")


def test_categories_of_a_model_must_be_the_files(annotation_file: Write) -> None:
    path = annotation_file({})
    assert Annotations.load(path, [Category(3, "dog")]).labels.tolist() == [0]
    with pytest.raises(ValueError, match="category 3 is 'dog' here, but 'cow' in what the model is trained on"):
        Annotations.load(path, [Category(3, "cow"), Category(5, "cat")])
    with pytest.raises(ValueError, match="category 9 is absent here, but 'cow' in what the model is trained on"):
        Annotations.load(path, [Category(9, "cow")])


def plain(images: Path, annotations: Path) -> CocoDetection:
    return CocoDetection(images, Annotations.load(annotations), to_model)


def test_an_item_is_an_image_and_normalised_boxes(annotation_file: Write, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "seven.png")
    image, target = plain(tmp_path, annotation_file({"bbox": [10, 3, 20, 6]}))[0]
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
    assert target["image_id"] == 7
    assert target["size"] == (30, 40)
    torch.testing.assert_close(target["boxes"], torch.tensor([[20 / 40, 6 / 30, 20 / 40, 6 / 30]]))


def test_an_image_without_boxes_has_empty_targets(annotation_file: Write, tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "seven.png")  # grey, too
    data = CocoDetection(
        tmp_path, Annotations.load(annotation_file()), training_transform("official", ImageSize(64, 64))
    )
    image, target = data[0]
    assert image.shape[0] == 3
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)


def test_augmentation_depends_on_seed_epoch_and_item_alone(shapes: Path) -> None:
    annotations = Annotations.load(shapes / "annotations" / "instances_train2017.json")

    def draw(epoch: int, seed: int = 3) -> list[torch.Tensor]:
        data = CocoDetection(
            shapes / "train2017", annotations, training_transform("official", ImageSize(64, 64)), seed=seed
        )
        return [data[epoch, index][0] for index in (5, 2)]

    torch.manual_seed(0)
    first = draw(1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = draw(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, again))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, draw(2), strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, draw(1, seed=4), strict=True))


def test_a_missing_image_is_named_before_training(annotation_file: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"seven\.png does not exist.*\(image 7\); 1 of 1 images are missing"):
        plain(tmp_path, annotation_file())
    with pytest.raises(FileNotFoundError, match=r"image folder .*elsewhere does not exist"):
        plain(tmp_path / "elsewhere", annotation_file())


def truncated(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named_in_one_sentence(annotation_file: Write, tmp_path: Path, workers: int) -> None:
    truncated(tmp_path / "seven.png")
    loader = DataLoader(plain(tmp_path, annotation_file()), batch_size=None, num_workers=workers)
    with pytest.raises(BadImageError) as caught:
        list(loader)
    assert re.fullmatch(r"image \S+seven\.png cannot be decoded: [^\n]+", str(caught.value))


def test_an_image_of_another_size_than_stated_is_named(annotation_file: Write, tmp_path: Path) -> None:
    Image.new("RGB", (30, 40)).save(tmp_path / "seven.png")
    with pytest.raises(BadImageError, match=r"30 wide and 40 high, but .* says 40 and 30"):
        plain(tmp_path, annotation_file())[0]


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(BadImageError, match="cannot be decoded"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "absent.jpg")


def test_real_coco_is_read(coco_mini: Path) -> None:
    path = coco_mini / "annotations" / "instances_train2017.json"
    read = Annotations.load(path)
    content = json.loads(path.read_text())
    assert len(read.images) == 31
    assert len(read.labels) + len(read.dropped.crowd) + len(read.dropped.degenerate) == len(content["annotations"])
    assert len(read.categories) == 80
