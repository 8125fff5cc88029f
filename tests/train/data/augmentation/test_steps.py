"""``--augment``: boxes stay on their pixels in every preset and in mosaics, and the same item is augmented alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from msdeform.models.inference.image_size import Size
from msdeform.models.layers.boxes import cxcywh_to_xyxy
from msdeform.train.config.options import Input, Loading, Source, TrainOptions
from msdeform.train.data.annotations import Annotations
from msdeform.train.data.augmentation.options import NAMES, PRESETS
from msdeform.train.data.augmentation.steps import GREY, Mosaic, RandomQuarterTurn, augmentation
from msdeform.train.data.dataset import CocoDetection, Sample
from msdeform.train.data.loader import training_data
from msdeform.train.engine.state import Training

BOXES = ((6, 8, 52, 44), (60, 10, 92, 62))


def painted(height: int = 72, width: int = 100) -> Sample:
    """A grey image with a red box of class 0 and a green one of class 1."""
    image = torch.full((3, height, width), GREY, dtype=torch.uint8)
    for label, (x0, y0, x1, y1) in enumerate(BOXES):
        image[:, y0:y1, x0:x1] = 0
        image[label, y0:y1, x0:x1] = 255
    boxes = tv_tensors.BoundingBoxes(torch.tensor(BOXES).float(), format="XYXY", canvas_size=(height, width))
    return tv_tensors.Image(image), {"image_id": 1, "size": (height, width), "boxes": boxes, "labels": torch.arange(2)}


def of_colour(image: Tensor, label: int) -> Tensor:
    """Where an image has the colour of a class, whatever its brightness."""
    own, other = image[label].int(), image[1 - label].int()
    return (own - other > 60) & (own - image[2].int() > 60)


def check_boxes(image: Tensor, boxes: Tensor, labels: Tensor, outside: float = 0.03) -> None:
    """Each box is filled by its class's colour and ends where that ends; without a box is so much of the image."""
    height, width = image.shape[-2:]
    for label in (0, 1):
        colour = of_colour(image, label)
        covered = torch.zeros_like(colour)
        for x0, y0, x1, y1 in boxes[labels == label].tolist():
            assert 0 <= x0 < x1 <= width + 1e-3
            assert 0 <= y0 < y1 <= height + 1e-3
            inside = (slice(max(0, round(y0) - 2), round(y1) + 2), slice(max(0, round(x0) - 2), round(x1) + 2))
            covered[inside] = True
            if min(x1 - x0, y1 - y0) > 8:
                within = colour[round(y0) + 1 : round(y1) - 1, round(x0) + 1 : round(x1) - 1]
                assert within.float().mean() > 0.85
        assert (colour & ~covered).sum() <= outside * colour.numel()


@pytest.mark.parametrize("name", NAMES)
def test_boxes_follow_the_pixels_in_every_preset(name: str) -> None:
    mosaic, transform = augmentation(name, Size(120, 160))
    pictures, counts = set(), set()
    for seed in range(30):
        torch.manual_seed(seed)
        sample = painted() if mosaic is None else mosaic(painted(), painted, 0.0)
        image, target = transform(*sample)
        assert (image.dtype, type(image)) == (torch.uint8, Tensor)
        assert max(image.shape) <= 160
        size = torch.tensor(image.shape[-2:]).flip(0).repeat(2)
        # RandomIoUCrop takes the boxes away whose middle it cuts off
        outside = 1.0 if name == "strong" else 0.03
        check_boxes(image, cxcywh_to_xyxy(target["boxes"]) * size, target["labels"], outside)
        pictures.add(image.numpy().tobytes())
        counts.add(len(target["labels"]))
    assert len(pictures) in {"none": [1], "flip": [2]}.get(name, range(20, 31))
    assert (max(counts) > 2) == (name == "strong")


def test_a_mosaic_has_four_images_around_a_point() -> None:
    whole = Mosaic(p=1, scale=(0.5, 0.5), size=Size(144, 200))
    for seed in range(10):
        torch.manual_seed(seed)
        image, target = whole(painted(), painted, 0.0)
        assert image.shape == (3, 144, 200)
        assert 4 < len(target["labels"]) <= 8
        assert target["image_id"] == 1
        check_boxes(image, target["boxes"].as_subclass(Tensor), target["labels"])


def test_what_a_tile_of_a_mosaic_leaves_of_a_box_is_its_box() -> None:
    mosaic = Mosaic(p=1, scale=(1.5, 1.5), size=Size(144, 200))
    counts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = mosaic(painted(), painted, 0.0)
        check_boxes(image, target["boxes"].as_subclass(Tensor), target["labels"], outside=0.12)
        counts.add(len(target["labels"]))
    assert min(counts) < 8  # some are cut away, and boxes of a sliver with them


def test_quarter_turns_are_exact() -> None:
    found = set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = RandomQuarterTurn()(*painted())
        for label, (x0, y0, x1, y1) in enumerate(target["boxes"].int().tolist()):
            assert of_colour(image, label).sum() == of_colour(image, label)[y0:y1, x0:x1].sum() == (y1 - y0) * (x1 - x0)
        found.add(tuple(target["boxes"].flatten().int().tolist()))
    assert len(found) == 4


def test_an_image_without_boxes_passes_every_preset() -> None:
    def empty() -> Sample:
        image, target = painted()
        boxes = tv_tensors.wrap(target["boxes"][:0], like=target["boxes"])
        return image, {**target, "boxes": boxes, "labels": target["labels"][:0]}

    for name in NAMES:
        mosaic, transform = augmentation(name, Size(64, 64))
        for seed in range(4):
            torch.manual_seed(seed)
            _, target = transform(*(empty() if mosaic is None else mosaic(empty(), empty, 0.0)))
            assert target["boxes"].shape == (0, 4)


def test_mosaics_end_before_the_run_does() -> None:
    mosaic = Mosaic(p=1, until=0.8, size=Size(144, 200))
    assert mosaic(painted(), painted, 0.79)[0].shape == (3, 144, 200)
    assert mosaic(painted(), painted, 0.8)[0].shape == (3, 72, 100)


def test_a_run_tells_its_data_how_long_it_is(changed: Callable[..., TrainOptions]) -> None:
    options = changed(augment="[{Mosaic: {p: 1, until: 0.5}}]", epochs=4, image_size=96)
    data = Training(options).data
    assert data.epochs == 4
    plain = Training(changed(options, augment="none")).data
    for epoch in range(4):
        assert torch.equal(data[epoch, 1][0], plain[epoch, 1][0]) == (epoch >= 2)
    assert Training(changed(options, max_steps=5)).data.epochs == 2


def strong(shapes: Path, seed: int = 3) -> CocoDetection:
    data = Source(data=shapes)
    return training_data(data, Input(image_size=64, augment="strong"), Loading(), seed, progress=False)


def test_an_item_is_augmented_alike_whatever_was_before(shapes: Path) -> None:
    keys = [(epoch, item) for epoch in range(3) for item in range(8)]
    first = [strong(shapes)[key] for key in keys]
    data = strong(shapes)
    torch.manual_seed(9)
    for key, (image, target) in reversed([*zip(keys, first, strict=True)]):
        again, boxes = data[key]
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], boxes["boxes"])
    assert not all(torch.equal(data[0, item][0], strong(shapes, 4)[0, item][0]) for item in range(8))


def test_workers_change_nothing(shapes: Path) -> None:
    data, keys = strong(shapes), [(epoch, item) for epoch in range(2) for item in range(8)]

    def loaded(workers: int) -> list[Sample]:
        return list(DataLoader(data, batch_size=None, sampler=keys, num_workers=workers))  # type: ignore[arg-type]

    for (image, target), (other, boxes) in zip(loaded(0), loaded(2), strict=True):
        assert torch.equal(image, other)
        assert torch.equal(target["boxes"], boxes["boxes"])


def test_resuming_changes_nothing(changed: Callable[..., TrainOptions]) -> None:
    options = changed(augment="strong", epochs=3)
    whole = list(Training(options).batches())
    resumed = Training(options)
    resumed.steps_done = 5  # within the second epoch
    for batch, again in zip(whole[5:], resumed.batches(), strict=True):
        for (image, target), (other, boxes) in zip(batch, again, strict=True):
            assert torch.equal(image, other)
            assert torch.equal(target["boxes"], boxes["boxes"])


def test_a_bad_image_in_a_mosaic_is_replaced(shapes: Path, tmp_path: Path) -> None:
    annotations = Annotations.load(shapes / "annotations" / "instances_train2017.json")
    for image in sorted((shapes / "train2017").iterdir()):
        (tmp_path / image.name).write_bytes(image.read_bytes())
    mosaic, transform = augmentation("[{Mosaic: {p: 1}}]", Size(64, 64))
    data = CocoDetection(tmp_path, annotations, transform, mix=mosaic, bad_data="skip", progress=False)
    bad = tmp_path / annotations.images[2].name
    bad.write_bytes(bad.read_bytes()[:60])
    assert len([data[epoch, 0] for epoch in range(6)]) == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[RandomHorizontalFlop]", "no transform is called 'RandomHorizontalFlop'; did you mean RandomHorizontalFlip?"),
        ("[{Zzz: {p: 1}}]", "no transform is called 'Zzz'; torchvision.transforms.v2 lists them"),
        ("[{ColorJitter: {brightnes: 1}}]", "ColorJitter has no argument 'brightnes'; did you mean brightness?"),
        ("[{RandomQuarterTurn: {p: 1}}]", "RandomQuarterTurn has no argument 'p'; it has none"),
        ("[{Mosaic: {size: 3}}]", "Mosaic has no argument 'size'; it has p, scale, until, otherwise"),
        ("[RandomAffine]", "RandomAffine: expected a value for degrees"),
        ("[{ColorJitter: {hue: 2}}]", "ColorJitter: hue values should be between"),
        ("[{GaussianBlur: {kernel_size: .inf}}]", "GaussianBlur: cannot convert float infinity"),
        ("[{RandomHorizontalFlip: {p: 2}}]", "RandomHorizontalFlip: `p` should be a floating point value in"),
        ("[{RandomAffine: {degrees: 0, interpolation: cubic}}]", "RandomAffine: 'cubic' is not a valid Interpolation"),
        ("[{Mosaic: {p: 2}}]", "Mosaic: p: expected a number from 0 to 1, got 2"),
        (
            "[{Mosaic: {scale: [2, 1]}}]",
            r"Mosaic: scale: expected two numbers above 0 and up to 10, the smaller first, got \[2, 1\]",
        ),
        ("[{Mosaic: {scale: 2}}]", "Mosaic: scale: expected two numbers above 0 and up to 10, .* got 2"),
        ("[{Mosaic: {scale: [a, b]}}]", "Mosaic: scale: expected two numbers above 0 and up to 10, .* got"),
        ("[{Mosaic: {scale: [1, .inf]}}]", "Mosaic: scale: expected two numbers above 0 and up to 10, .* got"),
        ("[{RandomHorizontalFlip: {1: 2}}]", "RandomHorizontalFlip has no argument '1'; it has p"),
        ("[{InterpolationMode: {value: bilinear}}]", "no transform is called 'InterpolationMode'"),
        ("[ColorJitter, Mosaic]", "expected Mosaic as the first transform of the list"),
        (
            "[{Mosaic: {otherwise: [RandomIoUCorp]}}]",
            "no transform is called 'RandomIoUCorp'; did you mean RandomIoUCrop?",
        ),
        ("[Normalize]", "Normalize is not for detectors: the model's own normalisation follows"),
        ("[RandAugment]", "RandAugment is not for detectors: it does not move boxes"),
    ],
)
def test_slips_are_told_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^augment: {sentence}"):
        augmentation(text, Size(64, 64))


def test_a_transform_that_an_image_does_not_suit_is_told_with_the_image() -> None:
    for text, reason in (("[{RandomCrop: {size: 500}}]", "Required crop size"), ("[Grayscale]", "expected an image")):
        _, transform = augmentation(text, Size(64, 64))
        image, target = painted()
        where = rf"^augment: image {target['image_id']}, {image.shape[2]} wide and {image.shape[1]} high: {reason}"
        with pytest.raises(ValueError, match=where):
            transform(image, target)


@pytest.mark.parametrize("text", ["[]", "[{mosaic: {p: 1}}]", "[{RandomChoice: {transforms: [RandomVerticalFlip]}}]"])
def test_short_lists_are_lists(text: str) -> None:
    mosaic, transform = augmentation(text, Size(72, 100))
    image, _ = transform(*(painted() if mosaic is None else mosaic(painted(), painted, 0.0)))
    assert image.shape == (3, 72, 100)


def test_large_photographs_are_made_smaller_before_the_transforms() -> None:
    sizes: list[Any] = []
    _, transform = augmentation("[ColorJitter]", Size(72, 100))
    transform.transforms.insert(1, lambda image, target: sizes.append(tuple(image.shape[-2:])) or (image, target))
    for height, width in ((400, 600), (144, 200), (100, 120)):
        transform(*painted(height, width))
    assert sizes == [(133, 199), (144, 200), (100, 120)]


def test_presets_are_lists_as_in_a_file() -> None:
    for name, text in PRESETS.items():
        torch.manual_seed(1)
        mosaic, transform = augmentation(name, Size(72, 100))
        first = transform(*(painted() if mosaic is None else mosaic(painted(), painted, 0.0)))[0]
        torch.manual_seed(1)
        mosaic, transform = augmentation(text, Size(72, 100))
        assert torch.equal(transform(*(painted() if mosaic is None else mosaic(painted(), painted, 0.0)))[0], first)
