"""Launches prepared once for all calls of the same shapes, dtypes, strides and device."""

from collections.abc import Callable
from typing import Any

import torch
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

    Where memory begins is no property of a plan: a call whose pixels cannot be read in pairs when these can is prepared
    by itself.
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
        if pairs and value.data_ptr() % 4:
            return launch._forward(value, levels, references, points, weights)
        output = value.new_empty(shape)
        with launch.device_of(value):
            launch.forward_kernel[grid](value, levels, points, weights, references, output, *numbers, **parameters)
        return output

    return run


def backward(
    grad_output: Tensor, value: Tensor, points: Tensor, weights: Tensor, needs: tuple[bool, ...]
) -> Callable[..., tuple[Tensor | None, ...]]:
    """For the gradients of ``ms_deform_attn``: (grad_output, value, levels, locations, weights) -> those needed."""
    need_value, need_points, need_weights = needs
    launches = _backward_launch(
        grad_output, value, None, points, weights, (need_value, False, need_points, need_weights)
    )

    def run(grad_output: Tensor, value: Tensor, levels: Tensor, points: Tensor, weights: Tensor) -> Any:
        grad_value, _, grad_points, grad_weights = launches(grad_output, value, levels, None, points, weights)
        return grad_value, grad_points, grad_weights

    return run


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    references: Tensor,
    points: Tensor,
    weights: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """For the gradients of ``fused_ms_deform_attn``: (grad_output, value, levels, references, offsets, logits)."""
    return _backward_launch(grad_output, value, references, points, weights, needs)


def _backward_launch(
    grad_output: Tensor,
    value: Tensor,
    references: Tensor | None,
    points: Tensor,
    weights: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """The launch of a backward with atomics; whatever else a call may need is prepared by itself."""
    B, S, H, D = value.shape
    Q, L = points.shape[1], points.shape[3]

    def by_itself(
        grad_output: Tensor,
        value: Tensor,
        levels: Tensor,
        references: Tensor | None,
        points: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        return launch._backward(grad_output, value, levels, references, points, weights, needs)

    need_value, need_references, need_points, need_weights = needs
    given = (value, references, points, weights)
    copied = any(a is not b for a, b in zip(launch._dense_rows(*given), given, strict=True))
    if copied or grad_output.stride(-1) != 1 or interpreting() or B * Q == 0 or not any(needs):
        return by_itself
    method = launch.backward_method
    if need_value and launch.adds_by_cell(value, points):
        return by_itself
    meta = launch.backward_parameters(launch.meta_parameters(value, references, points, weights), needs)
    parameters = {**meta, **launch.backward_options(value)}
    grid = launch.grid(B, H, Q, meta)
    compute = launch.compute_dtype(value, references, points, weights)
    coordinates = 2 if references is None else references.shape[-1]
    numbers = launch.backward_numbers(grad_output, value, references, points, weights)
    rounded = value.dtype is not compute
    points_shape, weights_shape = tuple(points.shape), tuple(weights.shape)

    def run(
        grad_output: Tensor,
        value: Tensor,
        levels: Tensor,
        references: Tensor | None,
        points: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        if launch.backward_method is not method:
            return by_itself(grad_output, value, levels, references, points, weights)
        # a gradient that is not needed has no memory of its own; the kernel does not touch it
        grad_value = torch.zeros((B, S, H, D), dtype=compute, device=value.device) if need_value else value
        grad_points = points.new_empty(points_shape) if need_points else value
        grad_weights = weights.new_empty(weights_shape) if need_weights else value
        shares = value.new_empty((B, Q, H, L, coordinates), dtype=compute) if need_references else value
        with launch.device_of(value):
            launch.backward_kernel[grid](
                grad_output,
                value,
                levels,
                points,
                weights,
                references,
                grad_value,
                grad_points,
                grad_weights,
                shares,
                *numbers,
                **parameters,
            )
        return (
            (grad_value.to(value.dtype) if rounded else grad_value) if need_value else None,
            shares.sum(2).to(references.dtype) if need_references and references is not None else None,
            grad_points if need_points else None,
            grad_weights if need_weights else None,
        )

    return run
