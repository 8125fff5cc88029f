"""Positions: sines of pixels and of boxes (Vaswani et al. 2017, section 3.5, in two dimensions), or learned ones."""

import math

import torch
from torch import Tensor, nn


class SinePosition(nn.Module):
    """`sine_of_pixels` as a module: it has no weights, but a detector names its position beside its backbone."""

    def __init__(self, width: int, *, centred: bool) -> None:
        super().__init__()
        self.width, self.centred = width, centred

    def forward(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """mask (B, h, w), True where padded; positions (B, h*w, width)."""
        return sine_of_pixels(mask, self.width, centred=self.centred, dtype=dtype)


class LearnedPosition(nn.Module):
    """An embedding of the column (first half of the channels) and of the row (second half), blind to padding.

    Maps may have up to `size` rows and columns; a larger one raises ValueError.
    """

    def __init__(self, width: int, size: int = 50) -> None:
        super().__init__()
        self.row_embed, self.col_embed = nn.Embedding(size, width // 2), nn.Embedding(size, width // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """mask (B, h, w); positions (B, h*w, width)."""
        positions = learned_positions(self.row_embed.weight, self.col_embed.weight, *mask.shape[1:])
        return positions.expand(mask.shape[0], -1, -1).to(dtype)


def learned_positions(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Positions (h*w, 2n) of the pixels of a map: the column's embedding, of columns (size, n), then the row's.

    Raises ValueError for a map of more rows or columns than there are embeddings.
    """
    size = len(rows)
    if max(height, width) > size:
        raise ValueError(
            f"learned positions: expected feature maps of at most {size} x {size}, got {height} x {width}; "
            "use smaller images, or a detector with sine positions"
        )
    column = columns[:width].expand(height, -1, -1)
    row = rows[:height, None].expand(-1, width, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1)


def make_position(kind: str, width: int, *, centred: bool) -> nn.Module:
    """The ``sine`` or ``learned`` position of a detector; `centred` matters to the sine.

    Raises ValueError for another kind.
    """
    if kind == "sine":
        return SinePosition(width, centred=centred)
    if kind == "learned":
        return LearnedPosition(width)
    raise ValueError(f"position_embedding: expected sine or learned, got {kind!r}")


def sine_of_pixels(
    mask: Tensor,
    width: int,
    temperature: float = 10000.0,
    *,
    centred: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions (B, h*w, width), of `dtype`, of the pixels of a map with padding mask (B, h, w), True where padded.

    A pixel's coordinate is its count's share of the unpadded extent, times 2 pi: (count - 0.5) / (last + 1e-6), which
    the masked count makes independent of the padding. DETR does not take the centre (`centred` is False): its count
    is whole. The first half of the channels is y, the second x. Padded pixels get finite numbers of no meaning;
    attention never reads them as values. Computed in at least float32.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shift = 0.5 if centred else 0.0
    inside = ~mask
    y = inside.cumsum(1, dtype=wide)
    x = inside.cumsum(2, dtype=wide)
    y = (y - shift) / (y[:, -1:, :] + 1e-6)
    x = (x - shift) / (x[:, :, -1:] + 1e-6)
    return _sine(torch.stack([y, x], dim=-1), width // 2, temperature).flatten(1, 2).to(dtype)


def sine_of_boxes(boxes: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Positions (..., 2 * width) of normalised boxes (..., 4) cxcywh, each coordinate over width / 2 channels."""
    return _sine(boxes, width // 2, temperature)


def _sine(coordinates: Tensor, channels: int, temperature: float) -> Tensor:
    """(..., n) coordinates in [0, 1] to (..., n * channels): sine and cosine in turn, of falling frequency."""
    pair = torch.arange(channels // 2, dtype=coordinates.dtype, device=coordinates.device)
    period = temperature ** (2 * pair / channels)
    angle = coordinates[..., None] * (2 * math.pi) / period
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)
