"""Launches the CUDA kernels on torch tensors: the two functions that the op layer registers.

Both take tensors on one CUDA device, run on torch's current stream, never read a tensor on the host (no
synchronisation), and can be captured in a CUDA graph once they have run for their dtypes on that device (the first
call compiles or loads the kernels). Checks of shapes and dtypes are the caller's (:mod:`..contract`).
"""

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..autograd import Levels
from .compile import Dtypes, kernels

_FORWARD_THREADS = 256
_BACKWARD_THREADS = 128
_WARP = 32
_BY_VALUE = 8  # levels
_threads = threading.local()


def forward(levels: Levels, tensors: Sequence[Tensor]) -> Tensor:
    """output[b, q, h] = sum over levels and points of weight * bilinear(value, location).

    Args:
        levels: (L, 2) int64 on the same device, or (h, w, h, w, ...). Where they do not add up to S the result is NaN.
        tensors: value (B, S, H, D), any strides, D at most 256; locations (B, Q, H, L, P, 2) and weights
            (B, Q, H, L, P), each of any float dtype, and copied if it is not contiguous.

    Returns:
        (B, Q, H*D) in value's dtype, accumulated in float32 (float64 if any input is) and rounded once.
    """
    value, locations, weights = tensors
    B, S, H, D = value.shape
    Q, L, P = _points(locations)
    output = value.new_empty(B, Q, H * D)
    if output.numel() == 0:
        return output
    locations, weights = locations.contiguous(), weights.contiguous()
    _kept, sizes = sizes_of(levels, value.device)
    rows = _FORWARD_THREADS // D
    start(
        kernels(value.device.index, Dtypes.of(value, locations, weights)).forward,
        value.device,
        grid=-(-B * Q * H // rows),
        block=(D, rows),
        arguments=(
            *(value.data_ptr(), *sizes, *_pointers(locations, weights, output)),
            *(B * Q * H, Q, S, H, D, L, P),
            *value.stride(),
        ),
    )
    return output


def backward(
    grad_output: Tensor, levels: Levels, tensors: Sequence[Tensor], needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of value, locations and weights.

    Args:
        grad_output: (B, Q, H*D) in value's dtype; copied if it is not contiguous.
        levels, tensors: as given to :func:`forward`.
        needs: which of the three gradients to compute.

    Returns:
        (grad_value, grad_locations, grad_weights), contiguous, each in its input's dtype and shape, or None where it is
        not needed. grad_value is summed by atomic additions in float32 (float64 if any input is), and
        rounded once.

    Raises:
        RuntimeError: grad_value is needed and ``torch.use_deterministic_algorithms(True)`` is in force: the order of
            the additions, and with it the last bits, changes from run to run. (With ``warn_only`` it warns.)
    """
    if needs[0]:
        _alert_not_deterministic()
    value, locations, weights = tensors
    B, S, H, D = value.shape
    Q, L, P = _points(locations)
    dtypes = Dtypes.of(value, locations, weights)
    accumulate = getattr(torch, dtypes.accumulate)
    grad_value = value.new_zeros(value.shape if needs[0] else 0, dtype=accumulate)
    grad_locations = locations.new_empty(locations.shape if needs[1] else 0)
    grad_weights = weights.new_empty(weights.shape if needs[2] else 0)
    gradients = (grad_value, grad_locations, grad_weights)
    if any(needs) and grad_output.numel() > 0:
        grad_output = grad_output.contiguous()
        locations, weights = locations.contiguous(), weights.contiguous()
        _kept, sizes = sizes_of(levels, value.device)
        lanes = min(1 << (D - 1).bit_length(), _WARP)
        rows = _BACKWARD_THREADS // lanes
        start(
            kernels(value.device.index, dtypes).backward,
            value.device,
            grid=-(-B * Q * H // rows),
            block=(lanes, rows),
            arguments=(
                *(*_pointers(grad_output, value), *sizes, *_pointers(locations, weights)),
                *(tensor.data_ptr() if need else 0 for tensor, need in zip(gradients, needs, strict=True)),
                *(B * Q * H, Q, S, H, D, L, P),
                *value.stride(),
            ),
        )
    gradients = (grad_value.to(value.dtype), grad_locations, grad_weights)
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=True))


def _points(sampling_locations: Tensor) -> tuple[int, int, int]:
    _, Q, _, L, P, _ = sampling_locations.shape
    return Q, L, P


def sizes_of(levels: Levels, device: torch.device) -> tuple[Tensor | None, tuple[int, ...]]:
    """The kernels' nine arguments for level sizes: a pointer, or zero and eight pairs by value. The tensor, where there
    is one, has to outlive the launch."""
    if isinstance(levels, tuple) and len(levels) > 2 * _BY_VALUE:
        levels = torch.tensor(levels, device=device)
    if isinstance(levels, Tensor):
        return levels, (levels.data_ptr(), *(0,) * _BY_VALUE)
    pairs = [h << 32 | w for h, w in zip(levels[::2], levels[1::2], strict=True)]
    return None, (0, *pairs, *(0,) * (_BY_VALUE - len(pairs)))


def _pointers(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def start(
    kernel: Any,
    device: torch.device,
    *,
    grid: int,
    block: int | tuple[int, int],
    arguments: tuple[int, ...],
    shared: int = 0,
) -> None:
    """Run `grid` blocks on torch's current stream, with so many bytes of shared memory that the launch decides.
    cuda.core passes Python ints as 64-bit values."""
    from cuda.core import LaunchConfig, launch

    with torch.cuda.device(device):
        bind_context(device.index)
        config = LaunchConfig(grid=grid, block=block, shmem_size=shared)
        launch(torch.cuda.current_stream(device), config, kernel, *arguments)


def bind_context(device: int) -> None:
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
