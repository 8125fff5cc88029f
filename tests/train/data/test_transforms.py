"""Geometry of the augmentations: boxes stay on what they are boxes of."""

import pytest
import torch
from torchvision import tv_tensors

from msdeform.models.inference.image_size import ExactSize, Size
from msdeform.train.data.dataset import Sample
from msdeform.train.data.transforms import RandomSizes, evaluation_transform, flip, resize, training_transform


def painted(height: int, width: int, *boxes: tuple[int, int, int, int]) -> Sample:
    """A black image with each box painted in a channel of its own, so that a picture tells where its boxes are."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, (x0, y0, x1, y1) in enumerate(boxes):
        image[channel, y0:y1, x0:x1] = 255
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.arange(len(boxes)),
    }
    return tv_tensors.Image(image), target


def seen(channel: torch.Tensor) -> list[float]:
    """The box around the bright pixels."""
    ys, xs = torch.nonzero(channel > 127, as_tuple=True)
    return [float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1]


def test_flip_and_resize_move_boxes_with_the_pixels() -> None:
    boxes = ((4, 6, 20, 18), (30, 20, 44, 34))
    moved = 0
    for seed in range(6):
        torch.manual_seed(seed)
        image, target = flip(*painted(40, 60, *boxes))
        moved += target["boxes"][0, 0].item() != 4
        image, target = resize(image, target, Size(80, 200))
        assert image.shape == (3, 80, 120)
        for channel, box in zip(image, target["boxes"].tolist(), strict=False):
            assert seen(channel) == pytest.approx(box, abs=1.5)
    assert 0 < moved < 6


def test_random_sizes_keep_boxes_on_their_pixels() -> None:
    shapes, lost = set(), 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = RandomSizes(Size(200, 333))(*painted(150, 200, (10, 12, 90, 80), (170, 120, 196, 146)))
        shapes.add(tuple(image.shape))
        lost += len(target["labels"]) < 2
        assert len(target["labels"]) == len(target["boxes"])
        height, width = image.shape[-2:]
        assert max(height, width) <= 333
        for label, box in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True):
            x0, y0, x1, y1 = box
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            if min(x1 - x0, y1 - y0) > 4:  # a sliver is blurred away by resizing
                assert seen(image[label]) == pytest.approx(box, abs=2.5)
    assert len(shapes) > 10
    assert lost > 0  # crops do cut boxes off


def test_published_sizes_are_the_published_ones() -> None:
    sizes = RandomSizes(Size())
    assert [size.short for size in sizes.direct] == list(range(480, 801, 32))
    assert {size.longest for size in sizes.direct} == {1333}
    assert [size.short for size in sizes.before_crop] == [400, 500, 600]
    assert sizes.crop == (384, 600)


def test_transforms_end_in_normalised_boxes_of_what_is_left() -> None:
    for transform in (training_transform("none", Size(64, 64)), evaluation_transform(Size(64, 64))):
        image, target = transform(*painted(32, 64, (16, 8, 48, 24)))
        assert type(image) is torch.Tensor
        assert type(target["boxes"]) is torch.Tensor
        torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 0.5, 0.5, 0.5]]))


@pytest.mark.parametrize("augment", ["official", "flip", "none"])
def test_squares_are_stretched_to(augment: str) -> None:
    transform, lost = training_transform(augment, ExactSize(48, 48)), 0
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = transform(*painted(60, 90, (40, 20, 70, 50)))
        assert image.shape == (3, 48, 48)
        lost += not len(target["boxes"])
        for x, y, width, height in target["boxes"].tolist():
            lit = (image[0] > 127).nonzero()
            top, left = lit.amin(0).tolist()
            assert (left / 48, top / 48) == pytest.approx((x - width / 2, y - height / 2), abs=0.05)
    assert lost < 8
