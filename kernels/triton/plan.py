"""A forward's launch prepared once for all calls of the same shapes, dtypes, strides and device."""

from collections.abc import Callable

from torch import Tensor

from ..registry import interpreting
from . import launch


def forward(value: Tensor, points: Tensor, weights: Tensor) -> Callable[..., Tensor]:
    """For ``ms_deform_attn`` of tensors like these: (value, levels, locations, weights) -> (B, Q, H*D)."""
    launches = _launches(value, None, points, weights)
    if launches is None:
        return launch.forward

    def run(value: Tensor, levels: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        return launches(value, levels, None, points, weights)

    return run


def fused_forward(value: Tensor, references: Tensor, points: Tensor, weights: Tensor) -> Callable[..., Tensor]:
    """For ``fused_ms_deform_attn``: (value, levels, references, offsets, logits) -> (B, Q, H*D)."""
    return _launches(value, references, points, weights) or launch.fused_forward


def _launches(
    value: Tensor, references: Tensor | None, points: Tensor, weights: Tensor
) -> Callable[..., Tensor] | None:
    """The launch of tensors like these as it stands; None where one launch does not do, or something is copied first.

    What a storage's offset decides is no property of a plan: a call whose pixels cannot be read in pairs when these can
    is prepared by itself.
    """
    B, _, H, D = value.shape
    Q = points.shape[1]
    given = (value, references, points, weights)
    dense = launch._dense_rows(*given)
    copied = any(a is not b for a, b in zip(dense, given, strict=True))
    if copied or interpreting() or B * Q == 0 or launch._MOST_PROGRAMS < B:
        return None
    meta = launch.forward_parameters(value, references, points, weights)
    grid = launch.forward_grid(B, H, Q, meta)
    numbers = launch.forward_numbers(value, references, points, weights)
    parameters = {**meta, **launch.forward_options(value, points)}
    shape = (B, Q, H * D)
    pairs = meta["PAIRS"]

    def run(value: Tensor, levels: Tensor, references: Tensor | None, points: Tensor, weights: Tensor) -> Tensor:
        if pairs and value.storage_offset() % 2:
            return launch._forward(value, levels, references, points, weights)
        output = value.new_empty(shape)
        with launch.device_of(value):
            launch.forward_kernel[grid](value, levels, points, weights, references, output, *numbers, **parameters)
        return output

    return run
