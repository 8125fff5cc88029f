"""Launches the CUDA kernels on torch tensors: the two functions that the op layer registers.

Both take tensors on one CUDA device, run on torch's current stream, never read a tensor on the host (no
synchronisation), and can be captured in a CUDA graph once they have run for their dtypes on that device (the first
call compiles or loads the kernels). Checks of shapes and dtypes are the caller's (:mod:`..contract`).
"""

import threading
import warnings
from typing import Any

import torch
from torch import Tensor

from .compile import Dtypes, kernels

_FORWARD_THREADS = 256
_BACKWARD_THREADS = 128
_WARP = 32
_threads = threading.local()


def forward(value: Tensor, levels: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """output[b, q, h] = sum over levels and points of weight * bilinear(value, location).

    Args:
        value: (B, S, H, D), any strides; D is at most 256.
        levels: (L, 2) int64 on the same device, (h, w) of each level. Where they do not add up to S the result is NaN.
        sampling_locations: (B, Q, H, L, P, 2), of any float dtype; copied if it is not contiguous.
        attention_weights: (B, Q, H, L, P), of any float dtype; copied if it is not contiguous.

    Returns:
        (B, Q, H*D) in value's dtype, accumulated in float32 (float64 if any input is) and rounded once.
    """
    B, S, H, D = value.shape
    Q, L, P = _points(sampling_locations)
    output = value.new_empty(B, Q, H * D)
    if output.numel() == 0:
        return output
    levels, locations, weights = (t.contiguous() for t in (levels, sampling_locations, attention_weights))
    _launch(
        kernels(value.device.index, Dtypes.of(value, locations, weights)).forward,
        value.device,
        rows=B * Q * H,
        block=(D, _FORWARD_THREADS // D),
        arguments=(
            *_pointers(value, levels, locations, weights, output),
            *(B * Q * H, Q, S, H, D, L, P),
            *value.stride(),
        ),
    )
    return output


def backward(  # the operator has the arguments it has
    grad_output: Tensor,
    value: Tensor,
    levels: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights.

    Args:
        grad_output: (B, Q, H*D) in value's dtype; copied if it is not contiguous.
        value, levels, sampling_locations, attention_weights: as given to :func:`forward`.
        needs: which of the three gradients to compute.

    Returns:
        (grad_value, grad_locations, grad_weights), contiguous, each in its input's dtype and shape, or of shape (0,)
        where it is not needed. grad_value is summed by atomic additions in float32 (float64 if any input is), and
        rounded once.

    Raises:
        RuntimeError: grad_value is needed and ``torch.use_deterministic_algorithms(True)`` is in force: the order of
            the additions, and with it the last bits, changes from run to run. (With ``warn_only`` it warns.)
    """
    if needs[0]:
        _alert_not_deterministic()
    B, S, H, D = value.shape
    Q, L, P = _points(sampling_locations)
    dtypes = Dtypes.of(value, sampling_locations, attention_weights)
    accumulate = getattr(torch, dtypes.accumulate)
    grad_value = value.new_zeros(value.shape if needs[0] else 0, dtype=accumulate)
    grad_locations = sampling_locations.new_empty(sampling_locations.shape if needs[1] else 0)
    grad_weights = attention_weights.new_empty(attention_weights.shape if needs[2] else 0)
    gradients = (grad_value, grad_locations, grad_weights)
    if any(needs) and grad_output.numel() > 0:
        grad_output = grad_output.contiguous()
        levels, locations, weights = (t.contiguous() for t in (levels, sampling_locations, attention_weights))
        lanes = min(1 << (D - 1).bit_length(), _WARP)
        _launch(
            kernels(value.device.index, dtypes).backward,
            value.device,
            rows=B * Q * H,
            block=(lanes, _BACKWARD_THREADS // lanes),
            arguments=(
                *_pointers(grad_output, value, levels, locations, weights),
                *(tensor.data_ptr() if need else 0 for tensor, need in zip(gradients, needs, strict=True)),
                *(B * Q * H, Q, S, H, D, L, P),
                *value.stride(),
            ),
        )
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _points(sampling_locations: Tensor) -> tuple[int, int, int]:
    _, Q, _, L, P, _ = sampling_locations.shape
    return Q, L, P


def _pointers(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _launch(
    kernel: Any, device: torch.device, *, rows: int, block: tuple[int, int], arguments: tuple[int, ...]
) -> None:
    """Run `rows` (b, q, h) rows, block[1] of them to a block. cuda.core passes Python ints as 64-bit values."""
    from cuda.core import LaunchConfig, launch

    with torch.cuda.device(device):
        _bind_context(device.index)
        config = LaunchConfig(grid=-(-rows // block[1]), block=block)
        launch(torch.cuda.current_stream(device), config, kernel, *arguments)


def _bind_context(device: int) -> None:
    """Make torch's context current for the driver, once per thread and device.

    torch sets its context when a thread first calls the CUDA runtime; a thread of autograd may reach us before that,
    having only taken memory from torch's cache. From then on torch's device guard switches contexts.
    """
    bound: set[int] = _threads.__dict__.setdefault("bound", set())
    if device not in bound:
        from cuda.core import Device

        Device(device).set_current()
        bound.add(device)


def _alert_not_deterministic() -> None:
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        "the backward of ms_deform_attn on the cuda backend adds to grad_value in an order that changes from run to "
        "run, and torch.use_deterministic_algorithms(True) is in force"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=3)
