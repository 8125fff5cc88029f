"""Images of different sizes in one batch: padded at the right and at the bottom, with a mask that says where.

Attention reads no padded pixel, and reference points, proposals and sines are relative to the unpadded part. Learned
positions are those of the row and the column, wherever the image ends. Still an image in a padded batch gives not quite
what it gives alone, here as in the published architectures. Padding leaks in evaluation

- through the mask: a map's is that of the nearest input pixel, so a map may gain a row or a column of padding where the
  padded size is no multiple of the coarsest stride;
- through the backbone: alone, convolutions and pooling find zeros beyond the border; in a batch, what the layers before
  made of the padding;
- in Deformable DETR, through the GroupNorm of every level, whose mean and variance are over the padding too;
- through the 3x3 projections of stride 2, which read a row or a column of padding where the map before has an odd
  number of its own;
- in two stages, through the choice of queries: padded pixels compete with the score of an empty memory;

and not otherwise: tests/models/families/test_padding.py closes each of these. In training, batch norm that is not
frozen counts the padding as well, and so do the losses of the encoder in two stages, as background.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Images = Sequence[Tensor] | tuple[Tensor, Tensor] | Tensor
"""What a detector takes: images (3, h, w) of any sizes; a padded batch and its mask; or a batch without padding."""


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


def as_batch(images: Images, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Any form of `Images` as a batch (B, 3, H, W) of `dtype` and a mask (B, H, W), bool, True where padded.

    Raises ValueError for anything else.
    """
    if isinstance(images, Tensor):
        if images.dim() != 4:
            raise ValueError(f"images: expected (B, 3, H, W) or a list of (3, h, w), got {tuple(images.shape)}")
        batch, mask = images, images.new_zeros((images.shape[0], *images.shape[2:]), dtype=torch.bool)
    elif isinstance(images, tuple) and len(images) == 2 and images[0].dim() == 4:
        batch, mask = images
        if mask.dtype != torch.bool or mask.shape != (batch.shape[0], *batch.shape[2:]):
            raise ValueError(
                f"mask: expected bool {(batch.shape[0], *batch.shape[2:])} like images, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
    else:
        batch, mask = pad_images(images)
    if batch.shape[1] != 3:
        raise ValueError(f"images: expected 3 channels, got {batch.shape[1]}")
    if not batch.dtype.is_floating_point:
        raise ValueError(f"images: expected normalised images of a float dtype, got {batch.dtype}")
    return batch.to(dtype), mask


def shrink_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """The padding mask (B, H, W) at another resolution (h, w): row i is that of pixel floor(i * H / h), and so on.

    In integers, so that every runtime picks the same pixels: `interpolate` and ONNX's Resize multiply by a rounded
    scale, each its own, and pick another pixel where i * H / h is whole or nearly so.
    """
    rows, columns = (
        torch.arange(short, device=mask.device) * full // short
        for full, short in zip(mask.shape[1:], size, strict=True)
    )
    return mask.index_select(1, rows).index_select(2, columns)
