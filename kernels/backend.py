"""A backend as data, which the registry knows before it is loaded; and the tensors that its kernels take."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Inputs

# (inputs, value, shapes, sizes, locations, weights) or (inputs, value, shapes, sizes, references, offsets, logits)
Implementation = Callable[..., Tensor]


class Functions(NamedTuple):
    """Both functions of a loaded backend."""

    ms_deform_attn: Implementation
    fused_ms_deform_attn: Implementation


class Backend(NamedTuple):
    """One implementation of both functions."""

    name: str
    rank: int
    """auto takes the highest that runs here and takes the inputs; one below zero runs only when it is named"""
    summary: str
    unavailable: Callable[[], str | None]
    """why it cannot run on this machine, or None"""
    refuses: Callable[[Inputs], str | None]
    """why it cannot take these inputs, or None"""
    load: Callable[[], Functions]
    """imports or compiles what it needs, only now"""


def import_failure(package: str, module: str, error: Exception) -> str:
    """A sentence for an import that failed: not installed, or installed and broken (which is logged, too)."""
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return f"{package} is not installed"
    reason = f"{package} is installed but fails to import: {type(error).__name__}: {error}"
    logging.getLogger("msdeform").warning(reason)
    return reason


MAX_HEAD_DIM = 256


def too_wide(inputs: Inputs) -> str | None:
    """Why compiled kernels, which hold a head's channels in registers, do not take these inputs, or None."""
    if inputs.D > MAX_HEAD_DIM:
        return f"its kernels take at most {MAX_HEAD_DIM} channels per head, got D={inputs.D}"
    return None


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
