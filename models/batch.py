"""Images of different sizes in one batch: padded at the right and at the bottom, with a mask that says where."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack images (C, h, w), of any sizes but of one dtype, device and C, into one batch.

    Returns ``images`` (B, C, H, W), zero where padded (the mean colour, for normalised images), and ``mask``
    (B, H, W), bool, True where padded. H and W are those of the tallest and of the widest image.
    Raises ValueError for no images, and for an image that is not (C, h, w) or differs from the first in C, dtype or
    device.
    """
    if len(images) == 0:
        raise ValueError("images: expected at least one image (C, h, w), got none")
    first = images[0]
    for i, image in enumerate(images):
        if image.dim() != 3 or 0 in image.shape:
            raise ValueError(f"images[{i}]: expected a tensor (C, h, w) with h, w >= 1, got {tuple(image.shape)}")
        if image.shape[0] != first.shape[0]:
            raise ValueError(f"images[{i}]: expected {first.shape[0]} channels like images[0], got {image.shape[0]}")
        if (image.dtype, image.device) != (first.dtype, first.device):
            raise ValueError(
                f"images[{i}]: expected {first.dtype} on {first.device} like images[0], "
                f"got {image.dtype} on {image.device}"
            )
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    batch = first.new_zeros(len(images), first.shape[0], height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=first.device)
    for i, image in enumerate(images):
        h, w = image.shape[1:]
        batch[i, :, :h, :w] = image
        mask[i, :h, :w] = False
    return batch, mask
