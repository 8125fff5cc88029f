"""What mmcv's and detrex's modules compute, written from their documentation, and inputs for it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msdeform import ms_deform_attn

SHAPES = ((3, 4), (2, 2))
LEVELS = torch.tensor(SHAPES)
STARTS = torch.tensor([0, 12])
H, L, P = 2, 2, 3
B, Q, S = 2, 5, 16


def attention(
    module: nn.Module,
    query: Tensor,
    value: Tensor,
    identity: Tensor,
    references: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """The output of a module without dropout; the batch comes first, the position is in the query."""

    def project(name: str, tensor: Tensor) -> Tensor:
        weights = module.state_dict(keep_vars=True)
        return F.linear(tensor, weights[f"{name}.weight"], weights[f"{name}.bias"])

    values = project("value_proj", value)
    if mask is not None:
        values = torch.where(mask[..., None], torch.zeros_like(values), values)
    offsets = project("sampling_offsets", query).view(B, Q, H, L, P, 2)
    weights = project("attention_weights", query).view(B, Q, H, L * P).softmax(-1).view(B, Q, H, L, P)
    locations = torch.empty_like(offsets)
    for level, (h, w) in enumerate(SHAPES):
        for axis, pixels in enumerate((w, h)):
            reference = references[:, :, level, axis, None, None]
            if references.shape[-1] == 2:
                shift = offsets[:, :, :, level, :, axis] / pixels
            else:
                shift = offsets[:, :, :, level, :, axis] / P * references[:, :, level, 2 + axis, None, None] / 2
            locations[:, :, :, level, :, axis] = reference + shift
    sampled = ms_deform_attn(values.reshape(B, S, H, -1), SHAPES, locations, weights, backend="reference")
    return project("output_proj", sampled) + identity


def expected_offsets(heads: int, levels: int, points: int) -> Tensor:
    """The initial bias of the offsets: head h looks in its direction, point p at p + 1 pixels in the larger axis."""
    bias = []
    for head in range(heads):
        x, y = math.cos(2 * math.pi * head / heads), math.sin(2 * math.pi * head / heads)
        largest = max(abs(x), abs(y))
        bias += [[(p + 1) * x / largest, (p + 1) * y / largest] for _ in range(levels) for p in range(points)]
    return torch.tensor(bias).flatten()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(module: nn.Module) -> nn.Module:
    """The module in float64, every parameter moved from its initial value."""
    module = module.to(torch.float64)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data += draw(seed, *parameter.shape) - 0.5
    return module


def padding() -> Tensor:
    """The last column of the first level of the second image is padding."""
    mask = torch.zeros(B, S, dtype=torch.bool)
    mask[1, [3, 7, 11]] = True
    return mask
