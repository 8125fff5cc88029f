"""How a backend's forward and backward become PyTorch operators.

:func:`register` takes two plain functions, forward and backward, and defines two operators in ``torch.ops.msdeform``,
each with a fake implementation (shapes without data, for ``torch.compile`` and export), and autograd that saves nothing
but the inputs and binds each backward to its own forward's backend.

Autograd sits on the Autograd dispatch key as one ``autograd.Function``: measured over a bare Function, forward /
forward+backward, that costs 8 / 13 us a call where ``torch.library.custom_op`` costs 19 / 42.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .contract import Inputs, Sizes

_LIBRARY = torch.library.Library("msdeform", "FRAGMENT")

_LEVELS = "Tensor? spatial_shapes, SymInt[] sizes"
_SCHEMAS = {
    "{0}_forward": f"(Tensor value, Tensor locations, Tensor weights, {_LEVELS}) -> Tensor",
    "{0}_backward": f"(Tensor grad_output, Tensor value, Tensor locations, Tensor weights, {_LEVELS}, bool[] needs)"
    " -> (Tensor, Tensor, Tensor)",
    "{0}_fused_forward": f"(Tensor value, Tensor references, Tensor offsets, Tensor logits, {_LEVELS}) -> Tensor",
    "{0}_fused_backward": "(Tensor grad_output, Tensor value, Tensor references, Tensor offsets, Tensor logits, "
    f"{_LEVELS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
}

# sizes of recent images as device tensors; a copy to the device happens once per size, not once per call
_levels_cache: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
_LEVELS_CACHED = 4096


Implementation = Callable[..., Tensor]


def register(name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]]) -> Implementation:
    """Define the operators of ``ms_deform_attn`` on a backend, ``torch.ops.msdeform.{name}_forward`` and ``_backward``.

    Args:
        name: of the backend.
        forward: (value, levels, locations, weights) -> (B, Q, H*D).
        backward: (grad_output, value, levels, locations, weights, needs) -> gradients of value, locations, weights.

    Returns:
        The implementation as the registry calls it. ``levels`` is an int64 tensor (L, 2) of (h, w) on value's device;
        gradients come in their inputs' dtypes, and empty where ``needs`` says they are not wanted.
    """
    return _implementation(_register_pair(name, "{0}", forward, backward))


def register_fused(
    name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]]
) -> Implementation:
    """The same for ``fused_ms_deform_attn``: (locations, weights) become (references, offsets, logits)."""
    return _implementation(_register_pair(f"{name}_fused", "{0}_fused", forward, backward))


def _implementation(op: Any) -> Implementation:
    def run(inputs: Inputs, value: Tensor, shapes: Tensor | None, sizes: Sizes, *tensors: Tensor) -> Tensor:
        flat = [size for pair in sizes for size in pair]
        return op(value, *tensors, shapes, flat)

    return run


def _register_pair(
    name: str, kind: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]]
) -> Any:
    _LIBRARY.define(f"{name}_forward{_SCHEMAS[kind + '_forward']}")
    _LIBRARY.define(f"{name}_backward{_SCHEMAS[kind + '_backward']}")
    forward_op = getattr(torch.ops.msdeform, f"{name}_forward").default
    backward_op = getattr(torch.ops.msdeform, f"{name}_backward").default

    def forward_device(value: Tensor, *rest: Any) -> Tensor:
        *tensors, shapes, sizes = rest
        return forward(value, levels_on(value.device, shapes, sizes), *tensors)

    def backward_device(grad_output: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *tensors, shapes, sizes, needs = rest
        return backward(grad_output, value, levels_on(value.device, shapes, sizes), *tensors, tuple(needs))

    def forward_fake(value: Tensor, *rest: Any) -> Tensor:
        B, _, H, D = value.shape
        return value.new_empty(B, rest[-3].shape[1], H * D)

    def backward_fake(grad_output: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *tensors, _, _, needs = rest
        return tuple(
            t.new_empty(t.shape) if needed else t.new_empty(0)
            for t, needed in zip((value, *tensors), needs, strict=True)
        )

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            *tensors, shapes, ctx.sizes = arguments
            ctx.save_for_backward(*tensors, shapes)
            with torch._C._AutoDispatchBelowAutograd():
                return forward_op(*arguments)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Any:
            *tensors, shapes = ctx.saved_tensors
            needs = list(ctx.needs_input_grad[: len(tensors)])
            gradients = backward_op(grad_output, *tensors, shapes, ctx.sizes, needs)
            return (*(g if n else None for g, n in zip(gradients, needs, strict=True)), None, None)

    class Once(torch.autograd.Function):
        """The backward as autograd sees it: differentiable no further, which it says in a sentence."""

        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
            with torch._C._AutoDispatchBelowAutograd():
                return backward_op(*arguments)

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> Any:
            raise RuntimeError(
                f"the {name} backend of multi-scale deformable attention has no second derivative (grid_sample has "
                "none either): differentiate its gradients no further"
            )

    def forward_autograd(*arguments: Any) -> Any:
        return Attention.apply(*arguments)

    def backward_autograd(*arguments: Any) -> Any:
        return Once.apply(*arguments)

    for op, device, fake, autograd in (
        (forward_op, forward_device, forward_fake, forward_autograd),
        (backward_op, backward_device, backward_fake, backward_autograd),
    ):
        qualified = op.name()
        for key in ("CUDA", "CPU"):  # CPU serves Triton's interpreter
            _LIBRARY.impl(qualified, device, key)
        torch.library.register_fake(qualified, fake, lib=_LIBRARY)
        _LIBRARY.impl(qualified, autograd, "Autograd")
    return forward_op


def levels_on(device: torch.device, shapes: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """Level sizes as an int64 tensor (L, 2) on ``device``, from a tensor there or from (h, w, h, w, ...)."""
    if shapes is not None:
        return shapes.to(torch.int64).contiguous()
    key = (tuple(sizes), device)
    levels = _levels_cache.get(key)
    if levels is None:
        if len(_levels_cache) >= _LEVELS_CACHED:
            _levels_cache.clear()
        levels = torch.tensor(sizes, dtype=torch.int64).view(-1, 2).to(device)
        _levels_cache[key] = levels
    return levels
