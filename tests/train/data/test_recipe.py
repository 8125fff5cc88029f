"""The published augmentation, written again with Pillow and numpy, against ours under the same random decisions."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from msdeform.models.inference.image_size import Size
from msdeform.train.data.annotations import Annotations
from msdeform.train.data.dataset import CocoDetection
from msdeform.train.data.transforms import evaluation_transform, training_transform

SHORT_SIDES = range(480, 801, 32)


@dataclass
class Recipe:
    """An image on its way through the published steps; every decision is drawn from torch's generator."""

    picture: Image.Image
    boxes: np.ndarray  # (N, 4) float32 xyxy
    labels: np.ndarray

    def flip(self) -> None:
        self.picture = self.picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        width = np.float32(self.picture.width)
        x0, y0, x1, y1 = self.boxes.T
        self.boxes = np.stack([width - x1, y0, width - x0, y1], 1)

    def resize(self, short: int, longest: int | None) -> None:
        width, height = self.picture.size
        if longest is not None and max(width, height) / min(width, height) * short > longest:
            short = round(longest * min(width, height) / max(width, height))
        if min(width, height) == short:
            return
        new = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
        self.picture = self.picture.resize(new, Image.Resampling.BILINEAR)
        self.boxes = self.boxes * np.array([new[0] / width, new[1] / height] * 2, dtype=np.float32)

    def crop(self, left: int, top: int, width: int, height: int) -> None:
        self.picture = self.picture.crop((left, top, left + width, top + height))
        moved = self.boxes - np.array([left, top] * 2, dtype=np.float32)
        corners = np.maximum(np.minimum(moved.reshape(-1, 2, 2), np.array([width, height], dtype=np.float32)), 0)
        kept = (corners[:, 1] > corners[:, 0]).all(1)
        self.boxes, self.labels = corners.reshape(-1, 4)[kept], self.labels[kept]

    def augment(self) -> None:
        if draw(2):
            self.flip()
        if draw(2):
            self.resize(SHORT_SIDES[draw(11)], 1333)
            return
        self.resize((400, 500, 600)[draw(3)], None)
        width, height = self.picture.size
        # from 384 to 600 each way, or what there is
        high = 384 + draw(min(height, 600) - 384 + 1)
        wide = 384 + draw(min(width, 600) - 384 + 1)
        top, left = draw(height - high + 1), draw(width - wide + 1)
        self.crop(left, top, wide, high)
        self.resize(SHORT_SIDES[draw(11)], 1333)

    def normalised(self) -> np.ndarray:
        """cxcywh, in parts of the image."""
        x0, y0, x1, y1 = self.boxes.T
        size = np.array([*self.picture.size] * 2, dtype=np.float32)
        return np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1) / size


def draw(n: int) -> int:
    return int(torch.randint(n, ()))


def official_boxes(data: CocoDetection, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes and labels of an image as they are before augmentation."""
    target = data._target(row)
    return target["boxes"].as_subclass(torch.Tensor).numpy(), target["labels"].numpy()


def test_augmentation_is_the_published_one_up_to_the_rounding_of_the_resize(coco_mini: Path) -> None:
    annotations = Annotations.load(coco_mini / "annotations" / "instances_train2017.json")
    data = CocoDetection(coco_mini / "train2017", annotations, lambda image, target: (image, target))
    ours = training_transform("official", Size())
    off, n_values, worst, cropped = 0, 0, 0, 0
    for row in range(len(data)):
        image, target = data[row]
        recipe = Recipe(Image.fromarray(image.permute(1, 2, 0).numpy()), *official_boxes(data, row))
        torch.manual_seed(row)
        recipe.augment()
        torch.manual_seed(row)
        pixels, boxes = ours(image, target)
        assert pixels.shape[:0:-1] == recipe.picture.size
        # boxes to the bit
        assert np.array_equal(boxes["boxes"].numpy(), recipe.normalised())
        assert np.array_equal(boxes["labels"].numpy(), recipe.labels)
        cropped += len(recipe.labels) < len(target["labels"])
        difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(recipe.picture).astype(int))
        off += int((difference > 0).sum())
        n_values += difference.size
        worst = max(worst, int(difference.max()))
    print(f"{off / n_values:.2%} of {n_values:,} values differ, by {worst} of 255 at most")
    assert cropped > 0
    assert worst <= 2
    assert off / n_values < 0.005


def test_evaluation_is_the_published_one(coco_mini: Path) -> None:
    annotations = Annotations.load(coco_mini / "annotations" / "instances_val2017.json")
    data = CocoDetection(coco_mini / "val2017", annotations, lambda image, target: (image, target))
    for row in range(0, len(data), 10):
        image, target = data[row]
        recipe = Recipe(Image.fromarray(image.permute(1, 2, 0).numpy()), *official_boxes(data, row))
        recipe.resize(800, 1333)
        pixels, boxes = evaluation_transform(Size())(image, target)
        difference = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(recipe.picture).astype(int))
        assert difference.max() <= 2
        assert np.array_equal(boxes["boxes"].numpy(), recipe.normalised())


def test_boxes_follow_the_published_arithmetic_whatever_they_are() -> None:
    # drawn at random, also across the edges that crops leave
    rng = np.random.default_rng(0)
    for seed in range(25):
        width, height = rng.integers(90, 700, 2).tolist()
        corners = np.sort(rng.uniform(0, 1, (20, 2, 2)), axis=1) * [width, height]
        boxes = corners.reshape(-1, 4).astype(np.float32)
        picture = Image.new("RGB", (width, height))
        recipe = Recipe(picture, boxes, np.arange(20))
        image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
        target = {
            "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(height, width)),
            "labels": torch.arange(20),
        }
        torch.manual_seed(seed)
        recipe.augment()
        torch.manual_seed(seed)
        pixels, found = training_transform("official", Size())(image, target)
        assert pixels.shape[:0:-1] == recipe.picture.size
        assert np.array_equal(found["labels"].numpy(), recipe.labels)
        assert np.array_equal(found["boxes"].numpy(), recipe.normalised())


@pytest.mark.parametrize("boxes", [[[1.1, 2.2, 3.3, 4.4], [-5, 20, 100, 100], [39.9, 0, 7, 7]]])
def test_boxes_are_read_in_the_published_arithmetic(annotation_file: object, boxes: list[list[float]]) -> None:
    read = Annotations.load(annotation_file(*({"bbox": box} for box in boxes)))  # type: ignore[operator]
    expected = torch.tensor(boxes)
    expected[:, 2:] += expected[:, :2]
    expected[:, 0::2].clamp_(0, 40)
    expected[:, 1::2].clamp_(0, 30)
    assert np.array_equal(read.boxes, expected.numpy())


@pytest.mark.slow
def test_the_exact_resize_would_be_slower(coco_mini: Path) -> None:
    annotations = Annotations.load(coco_mini / "annotations" / "instances_train2017.json")
    data = CocoDetection(coco_mini / "train2017", annotations, lambda image, target: (image, target))
    seconds = {"ours": 0.0, "Pillow": 0.0}
    for row in range(len(data)):
        image = data.pixels(row)
        new = list(Size().fit(*image.shape[1:]))
        begun = time.perf_counter()
        F.resize(image, new, antialias=True)
        between = time.perf_counter()
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        F.pil_to_tensor(picture.resize(new[::-1], Image.Resampling.BILINEAR))
        seconds["ours"] += between - begun
        seconds["Pillow"] += time.perf_counter() - between
    print(", ".join(f"{name} {1e3 * value / len(data):.1f} ms an image" for name, value in seconds.items()))
    assert seconds["ours"] < seconds["Pillow"]
