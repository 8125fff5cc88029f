"""Small detectors whose attention is uneven: what explanations are tested on."""

from typing import Any

import torch
from torch import Tensor, nn

from msdeform.models.attention import MSDeformAttn
from msdeform.models.families.detector import Detector
from msdeform.models.layers.heads import BoxHead
from tests.models.tiny import tiny

DETRS = ("detr", "detr focal", "demo", "deformable", "two-stage")


def uneven(family: str, *, seed: int = 0, **settings: Any) -> Detector:
    """The family's small detector in float64, with random offsets and weights of its attention, and random boxes.

    As they start, offsets, weights and boxes are the same for every query, and much of what is tested would hold for
    nothing.
    """
    model = tiny(family, **settings).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            for layer, scale in ((module.sampling_offsets, 0.2), (module.attention_weights, 0.5)):
                layer.weight.data = torch.randn(layer.weight.shape, generator=generator).double() * scale
        if isinstance(module, nn.MultiheadAttention):
            # zeros to begin with, as the queries of a DETR: its first self-attention would pass nothing on
            module.in_proj_bias.data = torch.randn(module.in_proj_bias.shape, generator=generator).double() * 0.5
        if isinstance(module, BoxHead):
            last = module.layers[-1]
            last.weight.data = torch.randn(last.weight.shape, generator=generator).double() * 0.2
    return model


def images(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Random images (3, h, w), floats from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]
