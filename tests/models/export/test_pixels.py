"""Resizing and normalising inside an exported file: torchvision's pixels, and `Size`'s sizes."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from msdeform.models.export.check import like_a_photograph
from msdeform.models.export.program import _fit, resized
from msdeform.models.inference.image_size import Size
from msdeform.models.inference.images import normalise


@pytest.mark.parametrize("trained", [Size(), Size(160, 160), Size(96, 200)])
def test_an_image_that_fits_is_resized_to_the_size_of_training(trained: Size) -> None:
    random = torch.Generator().manual_seed(0)
    for height, width in torch.randint(20, 900, (3000, 2), generator=random).tolist():
        canvas = (max(trained.longest, trained.short) + 400, trained.longest + 400)
        fitted = _fit(torch.tensor(height), torch.tensor(width), trained, canvas)
        assert tuple(map(int, fitted)) == trained.fit(height, width), (height, width)


def test_what_does_not_fit_is_made_smaller_and_keeps_its_shape() -> None:
    for height, width in ((400, 300), (300, 1000), (50, 60), (1000, 31), (641, 640)):
        new_h, new_w = map(int, _fit(torch.tensor(height), torch.tensor(width), Size(), (320, 480)))
        assert new_h <= 320
        assert new_w <= 480
        assert new_h == 320 or new_w == 480
        assert abs(new_w - width * new_h / height) <= max(1, width / height)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (40, 70), (128, 128), (97, 803)])
def test_pixels_are_torchvisions_but_for_the_rounding_of_a_few(size: tuple[int, int]) -> None:
    picture = ((like_a_photograph(size) * 50 + 120).clamp(0, 255)).byte()
    trained, canvas = Size(96, 160), (160, 192)
    images, mask = resized(picture[None], trained, canvas)
    height, width = trained.fit(*size)
    wanted = normalise(F.resize(picture, [height, width], antialias=True))
    # one of 255 is 0.017, by the deviation of the colours
    apart = (images[0, :, :height, :width] - wanted).abs()
    assert apart.max() < 0.019
    assert (apart > 1e-3).float().mean() < 0.3
    assert not mask[0, :height, :width].any()
    assert mask[0, height:].all()
    assert mask[0, :, width:].all()
    assert not images.masked_select(mask[:, None]).any()
