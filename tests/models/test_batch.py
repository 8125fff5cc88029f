import pytest
import torch

from msdeform.models.batch import pad_images


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
