"""Data sets of a script in place of files: the same run to the bit, and a sentence for what is wrong with an item."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, tv_tensors

import msdeform
from msdeform.train.config.given import Given
from msdeform.train.config.options import TrainOptions
from msdeform.train.data.loader import validation_data
from msdeform.train.data.own import OwnData
from msdeform.train.engine.checkpoint import load_checkpoint
from msdeform.train.engine.run import train

Change = Callable[..., TrainOptions]
IMAGE = np.zeros((20, 30, 3), np.uint8)


class Listed:
    """A data set of the items of a list."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


def coco(folder: Path, split: str) -> datasets.CocoDetection:
    return datasets.CocoDetection(folder / f"{split}2017", folder / "annotations" / f"instances_{split}2017.json")


def wrapped(folder: Path, split: str) -> Any:
    return datasets.wrap_dataset_for_transforms_v2(coco(folder, split), target_keys=("boxes", "labels"))


def as_listed(folder: Path, split: str) -> Listed:
    """The same as tensors and lists, with the names."""
    data = wrapped(folder, split)
    items = [(image, {key: target[key].tolist() for key in target} if target else None) for image, target in data]
    empty = {"boxes": [], "labels": []}
    names = {number: one["name"] for number, one in coco(folder, split).coco.cats.items()}
    return Listed([(image, target or empty) for image, target in items], categories=names)


@pytest.mark.parametrize("make", [coco, wrapped, as_listed])
def test_a_run_on_data_of_a_script_is_that_on_the_files(
    shapes: Path, changed: Change, tmp_path: Path, make: Callable[[Path, str], Any]
) -> None:
    settings = {"max_steps": 3, "workers": 1, "augment": "official"}
    files = train(changed(out=tmp_path / "files", **settings))
    data = OwnData(make(shapes, "train"), make(shapes, "val"))
    own = train(changed(out=tmp_path / "own", data=None, **settings), Given(data=data))
    one, other = load_checkpoint(files), load_checkpoint(own)
    assert all(one["model"][name].equal(other["model"][name]) for name in one["model"])
    assert one["best"] == other["best"]
    assert one["categories"] == other["categories"]


def test_targets_of_every_form(tmp_path: Path) -> None:
    tensor = tv_tensors.BoundingBoxes([[10.0, 5, 4, 2]], format="CXCYWH", canvas_size=(20, 30))
    file = tmp_path / "one.png"
    Image.fromarray(IMAGE).save(file)
    crowd = {"bbox": [0, 0, 9, 9], "category_id": 5, "iscrowd": 1}
    items = [
        (file, {"boxes": tensor, "labels": torch.tensor([3])}),
        (Image.fromarray(IMAGE), {"boxes": np.array([[8, 4, 12, 6]]), "labels": np.array([3.0])}),
        (torch.zeros(3, 20, 30), [{"bbox": [8, 4, 4, 2], "category_id": 3, "area": 5}, crowd]),
        (tv_tensors.Image(torch.zeros(3, 20, 30, dtype=torch.uint8)), {"boxes": [], "labels": []}),
    ]
    data = OwnData(Listed(items), Listed(items), {3: "cat", 5: "dog"})
    found = data.annotations("train", progress=False)
    assert [category.name for category in found.categories] == ["cat", "dog"]
    assert found.boxes.tolist() == [[8, 4, 12, 6]] * 3
    assert np.diff(found.first).tolist() == [1, 1, 1, 0]
    # a crowd is not trained on, and evaluation knows of it and of areas
    assert found.truth[:, 6:].tolist() == [[8, 0], [8, 0], [5, 0], [81, 1]]
    assert data.images("train", found, None).pixels(2).shape == (3, 20, 30)
    # without names
    unnamed = OwnData(Listed(items[:2]), Listed(items[:2])).annotations("val", progress=False)
    assert [(one.id, one.name) for one in unnamed.categories] == [(3, "3")]


def item(boxes: Any, labels: Any = (0,)) -> Any:
    return IMAGE, {"boxes": boxes, "labels": labels}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (IMAGE, "expected an image and its target, got ndarray"),
        ((IMAGE, {"bbox": []}), "expected a target with boxes and labels, got bbox"),
        ((IMAGE, None), "expected a target with boxes and labels, got NoneType"),
        (("nowhere.jpg", {}), "image nowhere.jpg does not exist"),
        ((7, {}), "expected a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), got int"),
        (item([[0, 0, 5]]), "expected boxes (N, 4) and labels (N,)"),
        (item([[0, 0, 5, 5]], [0, 1]), "expected a whole number for each of 1 boxes, got labels [0, 1]"),
        (item([[0, 0, 5, 5]], [0.5]), "expected a whole number for each of 1 boxes, got labels [0.5]"),
        (item([[9, 0, 5, 5]]), "expected boxes xyxy, x1 <= x2 and y1 <= y2, got [9.0, 0.0, 5.0, 5.0]"),
        (item([[0, 0, float("nan"), 5]]), "expected finite numbers in boxes"),
        (item([[0, 0, 5, 5]], [2]), "the training data have the label 2, expected one of [0, 1]"),
    ],
)
def test_a_wrong_item_is_named(wrong: Any, sentence: str) -> None:
    data = Listed([item([[1, 1, 5, 5]]), wrong], classes=["cat", "dog"])
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)) as caught:
        OwnData(data, data).annotations("train", progress=False)
    if "label 2" not in sentence and "nowhere" not in sentence:
        assert str(caught.value).startswith("data: item 1 of the training data")


def test_an_image_that_changes_is_told() -> None:
    data = Listed([item([[1, 1, 5, 5]])])
    own = OwnData(data, data)
    images = validation_data(own, TrainOptions().input, None, progress=False)
    data.items = [(IMAGE[:10], {})]
    with pytest.raises(ValueError, match="item 0 of the validation data is 30 wide and 10 high, and was 30 and 20"):
        images.pixels(0)


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        ((Listed([]),), ValueError, "data: expected two Datasets, for training and validation, got 1"),
        ((Listed([]), 7), TypeError, "data: expected a Dataset with a length, got int for validation"),
        (("train", "val"), TypeError, "data: expected a Dataset with a length, got str for training"),
        ((Listed([]), Listed([])), ValueError, "data: expected at least one item in the training data, got none"),
    ],
)
def test_what_is_no_pair_of_data_sets(data: Any, error: type[Exception], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        msdeform.finetune("deformable_detr_tiny", data, out=tmp_path / "run", preset=None, progress=False)
    assert not (tmp_path / "run").exists()


def double(image: Any, target: Any) -> Any:
    return image, target


def test_a_run_needs_the_same_objects_again(shapes: Path, changed: Change, tmp_path: Path) -> None:
    data = OwnData(coco(shapes, "train"), coco(shapes, "val"))
    out = train(changed(out=tmp_path / "run", max_steps=1, data=None), Given(data=data, transform=double))
    sentence = (
        r"was trained with transform of a script \(function\), and is resumed with no transform of a script; give"
    )
    with pytest.raises(ValueError, match=sentence):
        train(changed(out=None, resume=out, max_steps=2, data=None), Given(data=data))
    with pytest.raises(
        ValueError, match=r"data of a script \(CocoDetection\), and is resumed with no data of a script"
    ):
        msdeform.Run(out).resume(transform=double, max_steps=2)
    again = msdeform.Run(out).resume(transform=double, data=(data.train, data.val), max_steps=2)
    assert load_checkpoint(again.folder)["step"] == 2


def test_a_pipeline_stands_in_place_of_augment(shapes: Path, changed: Change, tmp_path: Path) -> None:
    """One that does nothing is the augmentation called none, through workers too."""
    none = train(changed(out=tmp_path / "none", max_steps=2, augment="none"))
    own = train(changed(out=tmp_path / "own", max_steps=2, workers=1), Given(transform=double))
    one, other = (load_checkpoint(folder)["model"] for folder in (none, own))
    assert all(one[name].equal(other[name]) for name in one)
    with pytest.raises(ValueError, match="augment: expected none beside transform, got 'flip'"):
        msdeform.finetune("deformable_detr_tiny", shapes, transform=double, augment="flip", preset=None)
