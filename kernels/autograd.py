"""How a backend's forward and backward become PyTorch operators.

:class:`Operator` defines two operators in ``torch.ops.msdeform``, forward and backward, each with a fake implementation
(shapes without data, for ``torch.compile`` and export), and autograd that saves nothing but the inputs and binds each
backward to its own forward's backend. Compiled, exported and traced calls come here, and so does any call that
:mod:`.call_cache` has not kept; what either way costs, ``msdeform bench dispatch`` prints.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .contract import Inputs, Sizes

Levels = Tensor | tuple[int, ...]
"""level sizes: an int64 tensor (L, 2) on the device, or (h, w, h, w, ...)"""
# (levels, tensors) -> a function of both, for all tensors like these, that returns the output (B, Q, H*D)
PrepareForward = Callable[[Levels, Sequence[Tensor]], Callable[[Levels, Sequence[Tensor]], Tensor]]
# (grad_output, levels, tensors, needs) -> a function of the first three that returns a gradient or None for each tensor
PrepareBackward = Callable[
    [Tensor, Levels, Sequence[Tensor], tuple[bool, ...]],
    Callable[[Tensor, Levels, Sequence[Tensor]], tuple[Tensor | None, ...]],
]

_LIBRARY = torch.library.Library("msdeform", "FRAGMENT")
_TENSORS = {
    False: "Tensor value, Tensor locations, Tensor weights",
    True: "Tensor value, Tensor references, Tensor offsets, Tensor logits",
}
_LEVELS = "Tensor? spatial_shapes, SymInt[] sizes"


class Operator:
    """One function of a backend, as the registry calls it: (inputs, value, shapes, sizes, *tensors) -> (B, Q, H*D).

    Args:
        name: of the backend; the operators are ``torch.ops.msdeform.{name}_forward`` and ``_backward``, or
            ``{name}_fused_forward`` and so on.
        fused: whether this is ``fused_ms_deform_attn``.
        prepare_forward: settles what shapes, dtypes and strides decide, and returns the forward.
        prepare_backward: the same of the backward, for the gradients that are needed.
        devices: whose tensors it reads; PyTorch refuses those of others, as of an exported program that was moved.
    """

    def __init__(
        self,
        name: str,
        fused: bool,
        prepare_forward: PrepareForward,
        prepare_backward: PrepareBackward,
        devices: Sequence[str] = ("CUDA", "CPU"),  # CPU serves Triton's interpreter
    ) -> None:
        self.backend, self.prepare_forward, self.prepare_backward = name, prepare_forward, prepare_backward
        name = f"{name}_fused" if fused else name
        self.forward = _define(f"{name}_forward", f"({_TENSORS[fused]}, {_LEVELS}) -> Tensor")
        gradients = ", ".join(["Tensor"] * (4 if fused else 3))
        self.backward = _define(
            f"{name}_backward", f"(Tensor grad_output, {_TENSORS[fused]}, {_LEVELS}, bool[] needs) -> ({gradients})"
        )
        forward, backward = self.forward.name(), self.backward.name()
        for device in devices:
            _LIBRARY.impl(forward, self._run_forward, device)
            _LIBRARY.impl(backward, self._run_backward, device)
        torch.library.register_fake(forward, _fake_forward, lib=_LIBRARY)
        torch.library.register_fake(backward, _fake_backward, lib=_LIBRARY)
        torch.library.register_autograd(forward, self._differentiate, setup_context=_save_inputs, lib=_LIBRARY)
        torch.library.register_autograd(backward, _refuse(self.backend), lib=_LIBRARY)

    def __call__(self, _: Inputs, value: Tensor, shapes: Tensor | None, sizes: Sizes, *tensors: Tensor) -> Tensor:
        if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (value, *tensors)):
            # PyTorch would take the forward derivative for zero
            raise RuntimeError(
                f"the {self.backend} backend of multi-scale deformable attention has no forward derivative; "
                "backend='reference' has that along the attention weights or logits, and grid_sample no other"
            )
        return self.forward(value, *tensors, shapes, [size for pair in sizes for size in pair])

    def _run_forward(self, *arguments: Any) -> Tensor:
        *tensors, shapes, sizes = arguments
        levels = as_levels(shapes, sizes)
        return self.prepare_forward(levels, tensors)(levels, tensors)

    def _run_backward(self, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, shapes, sizes, needs = arguments
        levels = as_levels(shapes, sizes)
        run = self.prepare_backward(grad_output, levels, tensors, tuple(needs))
        gradients = run(grad_output, levels, tensors)
        return tuple(t.new_empty(0) if g is None else g for g, t in zip(gradients, tensors, strict=True))

    def _differentiate(self, ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        *tensors, shapes = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[: len(tensors)])
        gradients = self.backward(grad_output, *tensors, shapes, ctx.sizes, needs)
        return (*(g if n else None for g, n in zip(gradients, needs, strict=True)), None, None)


def as_levels(shapes: Tensor | None, sizes: Sequence[int]) -> Levels:
    """What backends are given: a tensor as int64 and contiguous, or the sizes (h, w, h, w, ...)."""
    if shapes is None:
        return tuple(sizes)
    return shapes.to(torch.int64).contiguous()


def _define(name: str, schema: str) -> Any:
    _LIBRARY.define(name + schema)
    return getattr(torch.ops.msdeform, name).default


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, shapes, ctx.sizes = inputs
    ctx.save_for_backward(*tensors, shapes)


def _fake_forward(value: Tensor, *arguments: Any) -> Tensor:
    B, _, H, D = value.shape
    return value.new_empty(B, arguments[-3].shape[1], H * D)


def _fake_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, _, _, needs = arguments
    return tuple(t.new_empty(t.shape if needed else 0) for t, needed in zip(tensors, needs, strict=True))


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            f"the {name} backend of multi-scale deformable attention has no second derivative: differentiate its "
            "gradients no further, or take backend='reference', whose gradient of the attention weights or logits can "
            "be differentiated again (grid_sample has no second derivative of value and locations either)"
        )

    return refuse
