"""The two functions: check, resolve, call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import call_cache, contract, registry
from .contract import SpatialShapes


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    level_start_index: Tensor | Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention from locations and weights (Zhu et al., Deformable DETR, equation 3).

        output[b, q, h] = sum over l, p of attention_weights[b, q, h, l, p]
                          * bilinear(level l of value[b, :, h], sampling_locations[b, q, h, l, p])

    Args:
        value: (B, S, H, D), the levels' pixels one after another, each row by row. The compiled backends take
            D up to 256, ``reference`` any.
        spatial_shapes: ((h, w), ...) as Python ints, which cost nothing, or an int tensor (L, 2); S = sum of h*w.
        sampling_locations: (B, Q, H, L, P, 2), xy normalised to [0, 1] over the level (align_corners=False; zeros
            outside).
        attention_weights: (B, Q, H, L, P), used as given.
        level_start_index: accepted because existing models pass it. The starts follow from spatial_shapes and are
            computed from there; a contradiction is an error where the host can see it, and ignored where it cannot.
        backend: ``auto``, ``reference``, ``cpu``, ``triton`` or ``cuda``; None takes the setting of
            :func:`~msdeform.use_backend`.

    All tensors are float64, float32, float16 or bfloat16, mixed as you like (a bfloat16 value with float32 locations
    is usual), on one device. Locations, interpolation and accumulation are float32, or float64 if any input is.

    Returns:
        (B, Q, H*D) in value's dtype. Differentiable once in value, sampling_locations and attention_weights.

    Raises:
        TypeError, ValueError: an argument is wrong; the sentence names it.
        BackendUnavailable: the backend cannot run this call, with the reason.

    What happens to numbers that are not finite is stated in :mod:`msdeform.kernels.contract`.
    """
    return _call((value, sampling_locations, attention_weights), spatial_shapes, level_start_index, backend)


def fused_ms_deform_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    level_start_index: Tensor | Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention from what the Linear layers produce.

    Locations and softmax are computed inside the operator, forward and backward::

        location = ref_xy + offset / (w_l, h_l)                reference_points (B, Q, L, 2)
        location = ref_xy + offset / P * ref_wh * 0.5          reference_points (B, Q, L, 4), cxcywh
        weight   = softmax of attention_logits jointly over L and P

    Args:
        value: (B, S, H, D), as for :func:`ms_deform_attn`.
        spatial_shapes: as for :func:`ms_deform_attn`.
        reference_points: (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh, normalised.
        sampling_offsets: (B, Q, H, L, P, 2), raw Linear output.
        attention_logits: (B, Q, H, L, P), raw Linear output.
        level_start_index: as for :func:`ms_deform_attn`.
        backend: as for :func:`ms_deform_attn`.

    Returns:
        (B, Q, H*D) in value's dtype. Differentiable once in every tensor argument.

    Raises:
        TypeError, ValueError, BackendUnavailable: as :func:`ms_deform_attn`.
    """
    tensors = (value, reference_points, sampling_offsets, attention_logits)
    return _call(tensors, spatial_shapes, level_start_index, backend)


def _call(
    tensors: tuple[Tensor, ...],
    spatial_shapes: SpatialShapes,
    level_start_index: Tensor | Sequence[int] | None,
    backend: str | None,
) -> Tensor:
    fused, eager = len(tensors) == 4, not torch.compiler.is_compiling()
    if eager:
        setting = registry.current_setting() if backend is None else backend
        direct = call_cache.find(fused, setting, spatial_shapes, level_start_index, tensors)
        if direct is not None:
            return direct(spatial_shapes if isinstance(spatial_shapes, Tensor) else None, tensors)
    inputs, shapes, sizes = contract.check(tensors, spatial_shapes, level_start_index)
    run = registry.implementation(registry.resolve(inputs, backend), fused)
    if eager:
        checked = (inputs, shapes, sizes, run)
        call_cache.keep(fused, setting, spatial_shapes, level_start_index, tensors, checked)
    return run(inputs, tensors[0], shapes, sizes, *tensors[1:])
