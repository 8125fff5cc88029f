"""The tensors of a call of either function, in one form, and dense where kernels need them to be."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
"""(value, locations, weights), or of the fused function (value, references, offsets, logits)"""


class Call(NamedTuple):
    """The tensors of a call of either function, rows dense, as the kernels take them."""

    value: Tensor
    references: Tensor | None
    points: Tensor
    """locations or offsets"""
    weights: Tensor
    """weights or logits"""

    @property
    def compute(self) -> torch.dtype:
        """float64 if any input is, else float32."""
        double = any(tensor is not None and tensor.dtype is torch.float64 for tensor in self)
        return torch.float64 if double else torch.float32


def call_of(tensors: Tensors) -> Call:
    """The kernels take any stride of batch, pixel, query, head and level; what lies inside one row has to be dense."""
    value, points, weights = tensors[0], tensors[-2], tensors[-1]
    references = tensors[1] if len(tensors) == 4 else None
    if value.stride(3) != 1:
        value = value.contiguous()
    P = points.shape[4]
    if points.stride()[3:] != (2 * P, 2, 1):
        points = points.contiguous()
    if weights.stride()[3:] != (P, 1):
        weights = weights.contiguous()
    if references is not None and references.stride(3) != 1:
        references = references.contiguous()
    return Call(value, references, points, weights)
