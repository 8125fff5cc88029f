"""Sine positions, of the pixels of a feature map and of boxes (Vaswani et al. 2017, section 3.5, in two dimensions)."""

import math

import torch
from torch import Tensor


def sine_of_pixels(mask: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Positions (B, h*w, width), float32, of the pixels of a map with padding mask (B, h, w), True where padded.

    A pixel's coordinate is its centre's share of the unpadded extent, times 2 pi: (count - 0.5) / (last + 1e-6),
    which the masked count makes independent of the padding. The first half of the channels is y, the second x. Padded
    pixels get finite numbers of no meaning; attention never reads them as values.
    """
    inside = ~mask
    y = inside.cumsum(1, dtype=torch.float32)
    x = inside.cumsum(2, dtype=torch.float32)
    y = (y - 0.5) / (y[:, -1:, :] + 1e-6)
    x = (x - 0.5) / (x[:, :, -1:] + 1e-6)
    return _sine(torch.stack([y, x], dim=-1), width // 2, temperature).flatten(1, 2)


def sine_of_boxes(boxes: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Positions (..., 2 * width) of normalised boxes (..., 4) cxcywh, each coordinate over width / 2 channels."""
    return _sine(boxes, width // 2, temperature)


def _sine(coordinates: Tensor, channels: int, temperature: float) -> Tensor:
    """(..., n) coordinates in [0, 1] to (..., n * channels): sine and cosine in turn, of falling frequency."""
    pair = torch.arange(channels // 2, dtype=coordinates.dtype, device=coordinates.device)
    period = temperature ** (2 * pair / channels)
    angle = coordinates[..., None] * (2 * math.pi) / period
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)
