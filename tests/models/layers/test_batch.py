import math

import pytest
import torch
import torch.nn.functional as F

from msdeform.models.layers.batch import pad_images, shrink_mask


def test_images_are_padded_at_the_right_and_the_bottom():
    images = [torch.full((3, 2, 5), 1.0), torch.full((3, 4, 3), 2.0)]
    batch, mask = pad_images(images)
    assert batch.shape == (2, 3, 4, 5)
    assert mask.shape == (2, 4, 5)
    assert mask.dtype == torch.bool
    for i, image in enumerate(images):
        h, w = image.shape[1:]
        assert (batch[i, :, :h, :w] == i + 1).all()
        assert batch[i].sum() == image.sum()
        assert not mask[i, :h, :w].any()
        assert int(mask[i].sum()) == 20 - h * w


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], "at least one image"),
        ([torch.zeros(3, 4, 4), torch.zeros(4, 4)], r"images\[1\]: expected a tensor \(C, h, w\).*got \(4, 4\)"),
        ([torch.zeros(3, 4, 0)], r"images\[0\]: .* got \(3, 4, 0\)"),
        ([torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)], r"images\[1\]: expected 3 channels like images\[0\], got 1"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 4, 4).half()], r"images\[1\]: expected torch.float32 .* torch.float16"),
    ],
)
def test_bad_images_are_named(images, sentence):
    with pytest.raises(ValueError, match=sentence):
        pad_images(images)


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64, 128])
def test_a_shrunk_mask_is_that_of_interpolate_at_every_size_of_a_map(stride: int) -> None:
    """So that trained models and recorded numbers stay: strides of a backbone give maps of ceil(n / stride)."""
    for full in range(1, 1400):
        mask = torch.arange(full)[None, None] % 3 == 0
        size = (1, math.ceil(full / stride))
        assert torch.equal(shrink_mask(mask, size), F.interpolate(mask[None].float(), size=size)[0].bool())


def test_a_shrunk_mask_takes_whole_pixels_where_a_rounded_scale_misses_them() -> None:
    mask = torch.arange(106)[:, None].expand(106, 106)[None] < 53
    assert not shrink_mask(mask, (26, 26))[0, 13].any()  # 13 * 106 / 26 = 53, which 13 * float32(106 / 26) is below
    assert F.interpolate(mask[None].float(), size=(26, 26))[0, 0, 13].bool().all()
