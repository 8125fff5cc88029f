"""Pipelines of torchvision, of Albumentations and of users: boxes stay on their pixels, and a run can be repeated."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from msdeform.train.data.augmentation.pipelines import adapt
from msdeform.train.data.dataset import Sample, Target

albumentations = pytest.importorskip("albumentations")

# a red box of class 2 and a green one of class 0 on black
BOXES = ((10, 12, 60, 52), (70, 20, 110, 72))


def painted() -> Sample:
    image = torch.zeros(3, 80, 120, dtype=torch.uint8)
    for channel, (x0, y0, x1, y1) in enumerate(BOXES):
        image[channel, y0:y1, x0:x1] = 255
    boxes = tv_tensors.BoundingBoxes(torch.tensor(BOXES, dtype=torch.float32), format="XYXY", canvas_size=(80, 120))
    target = {"image_id": 7, "size": (80, 120), "labels": torch.tensor([2, 0]), "boxes": boxes}
    return tv_tensors.Image(image), target


def drawn(pipeline: Any, seed: int) -> Sample:
    torch.manual_seed(seed)
    return adapt(pipeline)(*painted())


PIPELINES = {
    "v2": v2.Compose(
        [v2.RandomZoomOut(side_range=(1, 2)), v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes(), v2.RandomHorizontalFlip()]
    ),
    "v2 without sanitising": v2.RandomIoUCrop(),
    "v2 in floats": v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.RandomVerticalFlip()]),
    "albumentations": albumentations.Compose(
        [
            albumentations.RandomCrop(60, 80, p=0.7),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.RandomRotate90(p=0.5),
        ]
    ),
    "albumentations with own parameters": albumentations.Compose(
        [albumentations.RandomCrop(60, 80), albumentations.VerticalFlip(p=0.5)],
        bbox_params=albumentations.BboxParams(format="yolo", label_fields=["class_labels"], min_visibility=0.3),
    ),
    "albumentations, one step": albumentations.HorizontalFlip(p=0.5),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_boxes_surround_their_pixels_and_keep_their_labels(name: str) -> None:
    pictures = set()
    for seed in range(12):
        image, target = drawn(PIPELINES[name], seed)
        pictures.add(image.numpy().tobytes())
        assert image.dtype == torch.uint8
        assert type(target["boxes"]) is tv_tensors.BoundingBoxes
        assert target["image_id"] == 7
        assert target["size"] == (80, 120)
        assert len(target["boxes"]) == len(target["labels"])
        for label, box in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True):
            ys, xs = torch.nonzero(image[{2: 0, 0: 1}[label]] > 127, as_tuple=True)
            around = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
            assert around == pytest.approx(box, abs=1.01)
    assert len(pictures) > 1


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_is_repeated_by_torchs_seed_alone(name: str) -> None:
    first = [drawn(PIPELINES[name], seed) for seed in range(4)]
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for seed, (image, target) in enumerate(first):
        again, boxes = drawn(PIPELINES[name], seed)
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], boxes["boxes"])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_steps_of_albumentations_decide_apart() -> None:
    both = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)])
    found = set()
    for seed in range(24):
        _, target = drawn(both, seed)
        left, top = target["boxes"][0, :2].tolist()
        found.add((left == BOXES[0][0], top == BOXES[0][1]))
    assert len(found) == 4


def test_limits_of_the_users_bbox_params_count_and_the_pipeline_stays_as_it_was() -> None:
    strict = albumentations.BboxParams(format="coco", label_fields=["ids"], min_visibility=0.5)
    # the crop leaves 15 of 40 columns of the second box
    pipeline = albumentations.Compose([albumentations.Crop(0, 0, 85, 80)], bbox_params=strict)
    assert drawn(albumentations.Crop(0, 0, 85, 80), 0)[1]["labels"].tolist() == [2, 0]
    assert drawn(pipeline, 0)[1]["labels"].tolist() == [2]
    assert pipeline.main_compose
    assert pipeline.processors["bboxes"].params.format == "coco"


def test_an_image_without_boxes_passes() -> None:
    image, target = painted()
    none = {**target, "boxes": tv_tensors.wrap(target["boxes"][:0], like=target["boxes"]), "labels": torch.zeros(0)}
    for pipeline in PIPELINES.values():
        _, found = adapt(pipeline)(image, none)
        assert found["boxes"].shape == (0, 4)
        assert (found["labels"].shape, found["labels"].dtype) == ((0,), torch.int64)


def shift(image: torch.Tensor, target: Target) -> Sample:
    """A user's function, with Python's and numpy's random numbers, and plain tensors."""
    by = random.randrange(50, 90) + int(np.random.randint(3))  # noqa: NPY002
    moved = target["boxes"].as_subclass(torch.Tensor) + torch.tensor([by, 0, by, 0])
    return torch.roll(image, by, 2), {"boxes": moved, "labels": target["labels"]}


def test_a_users_function_has_its_boxes_cut_to_the_image() -> None:
    image, target = drawn(shift, 3)
    assert target["labels"].tolist() == [2]  # the other left on the right
    assert 60 <= target["boxes"][0, 0] <= 102
    assert target["boxes"][0, 2] <= 120
    assert torch.equal(image, drawn(shift, 3)[0])
    assert type(image) is tv_tensors.Image


@pytest.mark.parametrize("name", PIPELINES)
def test_it_travels_to_worker_processes(name: str) -> None:
    sent = pickle.loads(pickle.dumps(adapt(PIPELINES[name])))
    torch.manual_seed(5)
    assert torch.equal(sent(*painted())[0], drawn(PIPELINES[name], 5)[0])


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        (lambda image, target: image, "expected an image and its target .*, got Image of shape"),
        (lambda image, target: (image, {"labels": target["labels"]}), "target, got none called boxes"),
        (
            lambda image, target: (image[:, ::2], target),
            "boxes of the image, 120 wide and 40 high, got boxes of one 120",
        ),
        (lambda image, target: (image[:1], target), r"expected an image \(3, H, W\), got .* of shape \(1, 80, 120\)"),
        (lambda image, target: (image, {**target, "boxes": target["boxes"][:1]}), "label for each of 1 boxes, got"),
        (lambda image, target: (image.int(), target), "expected an image of uint8, .* got torch.int32"),
        (
            v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485] * 3, [0.229] * 3)]),
            "floats from -2.12 to 2.25; leave Normalize out",
        ),
        (albumentations.Normalize(), "leave Normalize out"),
    ],
)
def test_a_wrong_result_is_told_in_a_sentence(pipeline: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^transform: .*{sentence}"):
        drawn(pipeline, 0)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="^transform: expected a transform of .* got str"):
        adapt("strong")
