"""The operator's formula once more, in float64 and all samples at once: what fuzzed calls are held against.

It shares no code with a backend: each sample takes its four neighbours by their numbers, and what lies outside is zero.
"""

import torch
from torch import Tensor


def locations_of(sizes: tuple[tuple[int, int], ...], references: Tensor, offsets: Tensor) -> Tensor:
    """Locations (B, Q, H, L, P, 2) of reference points (B, Q, L, 2 or 4) and offsets."""
    references = references[:, :, None, :, None]
    if references.shape[-1] == 4:
        return references[..., :2] + offsets / offsets.shape[4] * references[..., 2:] * 0.5
    return references + offsets / torch.tensor([(w, h) for h, w in sizes], dtype=torch.float64)[:, None]


def attention(value: Tensor, sizes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """The output (B, Q, H*D) in float64.

    A location with a NaN makes its output NaN; an infinite one, or one far outside, adds zero.
    """
    B, _, H, D = value.shape
    Q = locations.shape[1]
    nan = locations.isnan().any(-1)
    extent = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float64)[:, None]  # (L, 1, 2)
    pixels = locations * extent - 0.5
    near = ((pixels > -1) & (pixels < extent)).all(-1) & ~nan  # one of its neighbours is within
    pixels = pixels.where(near[..., None], torch.zeros((), dtype=torch.float64))
    low = pixels.detach().floor()
    share = pixels - low
    starts = torch.tensor([sum(h * w for h, w in sizes[:level]) for level in range(len(sizes))])[:, None]
    widths = extent[..., 0].long()
    batch = torch.arange(B)[:, None, None, None, None]
    head = torch.arange(H)[:, None, None]
    samples = value.new_zeros(*weights.shape, D)
    for right in (0, 1):
        for down in (0, 1):
            corner = low + torch.tensor([right, down])
            inside = ((corner >= 0) & (corner < extent)).all(-1) & near
            x, y = corner.where(inside[..., None], torch.zeros((), dtype=torch.float64)).long().unbind(-1)
            found = value[batch, starts + y * widths + x, head]
            part_x = share[..., 0] if right else 1 - share[..., 0]
            part_y = share[..., 1] if down else 1 - share[..., 1]
            coefficient = (part_x * part_y)[..., None]
            samples = samples + torch.where(
                inside[..., None], found * coefficient, torch.zeros((), dtype=torch.float64)
            )
    summed = (samples * weights[..., None]).sum((3, 4))  # (B, Q, H, D)
    missing = nan.any(-1).any(-1)[..., None]
    return torch.where(missing, torch.nan, summed).reshape(B, Q, H * D)


def at_a_kink(sizes: tuple[tuple[int, int], ...], locations: Tensor) -> bool:
    """Whether a sample lies so near to a row or column of pixels that the gradient of its location may have either of
    two values."""
    extent = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float64)[:, None]
    pixels = locations.detach() * extent - 0.5
    return bool(((pixels - pixels.round()).abs() < 1e-4).any())
