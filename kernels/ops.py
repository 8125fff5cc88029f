"""How a backend's forward and backward become PyTorch operators.

:func:`register` takes two plain functions, forward and backward, and defines two operators in ``torch.ops.msdeform``,
each with a fake implementation (shapes without data, for ``torch.compile`` and export), and autograd that saves nothing
but the inputs and binds each backward to its own forward's backend.

Autograd sits on the Autograd dispatch key as one ``autograd.Function``: measured over a bare Function, forward /
forward+backward, that costs 8 / 13 us a call where ``torch.library.custom_op`` costs 19 / 42. Eager calls of plain
tensors, of which :mod:`.seen` has kept one alike, go past the operator to a Function of their own; what either way
costs, ``msdeform bench dispatch`` prints.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import seen
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


def register(
    name: str,
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor, ...]],
    plan: Callable[..., Callable[..., Tensor]] | None = None,
    plan_backward: Callable[..., Callable[..., Any]] | None = None,
) -> Implementation:
    """Define the operators of ``ms_deform_attn`` on a backend, ``torch.ops.msdeform.{name}_forward`` and ``_backward``.

    Args:
        name: of the backend.
        forward: (value, levels, locations, weights) -> (B, Q, H*D).
        backward: (grad_output, value, levels, locations, weights, needs) -> gradients of value, locations, weights.
        plan: (value, locations, weights) -> a forward for all tensors like these, which need not be looked at again.
        plan_backward: (grad_output, value, locations, weights, needs) -> the same of a backward, without ``needs``.

    Returns:
        The implementation as the registry calls it. ``levels`` is an int64 tensor (L, 2) of (h, w) on value's device;
        gradients come in their inputs' dtypes, and empty where ``needs`` says they are not wanted.
    """
    return _implementation(name, "{0}", forward, backward, plan, plan_backward)


def register_fused(
    name: str,
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor, ...]],
    plan: Callable[..., Callable[..., Tensor]] | None = None,
    plan_backward: Callable[..., Callable[..., Any]] | None = None,
) -> Implementation:
    """The same for ``fused_ms_deform_attn``: (locations, weights) become (references, offsets, logits)."""
    return _implementation(f"{name}_fused", "{0}_fused", forward, backward, plan, plan_backward)


def _implementation(
    name: str,
    kind: str,
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor, ...]],
    plan: Callable[..., Callable[..., Tensor]] | None,
    plan_backward: Callable[..., Callable[..., Any]] | None,
) -> Implementation:
    op, backward_op = _register_pair(name, kind, forward, backward)

    def run(inputs: Inputs, value: Tensor, shapes: Tensor | None, sizes: Sizes, *tensors: Tensor) -> Tensor:
        flat = [size for pair in sizes for size in pair]
        return op(value, *tensors, shapes, flat)

    seen.provide(run, _prepare_direct(backward_op, forward, backward, plan, plan_backward))
    return run


def _prepare_direct(
    backward_op: Any,
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor, ...]],
    plan: Callable[..., Callable[..., Tensor]] | None,
    plan_backward: Callable[..., Callable[..., Any]] | None,
) -> Callable[[Sizes, Tensor | None, tuple[Tensor, ...]], seen.Direct]:
    """The way past PyTorch's dispatcher, for calls that :mod:`.seen` has found to be of plain tensors."""

    class Prepared(NamedTuple):
        launch: Callable[..., Tensor]
        sizes: list[int]
        levels: Tensor | None
        """of sizes that are ints"""
        backwards: dict[tuple[Any, ...], Callable[..., Any]]
        """by what is needed and by strides"""

    class DirectAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, prepared: Prepared, shapes: Tensor | None, value: Tensor, *rest: Tensor) -> Tensor:
            launch, _, levels, _ = ctx.prepared = prepared
            # in the operator's order: a checkpoint that recomputes this call may go the other way, and compares them
            ctx.save_for_backward(value, *rest, shapes)
            return launch(value, levels_on(value.device, shapes, ()) if levels is None else levels, *rest)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Any:
            value, *rest, shapes = ctx.saved_tensors
            _, sizes, levels, backwards = ctx.prepared
            needs = ctx.needs_input_grad[2:]
            # a graph of the gradients is wanted, which the operator refuses in a sentence; or vmap, or a mode
            if torch.is_grad_enabled() or not seen.plain(grad_output):
                gradients = backward_op(grad_output, value, *rest, shapes, sizes, list(needs))
            else:
                if levels is None:
                    levels = levels_on(value.device, shapes, ())
                if plan_backward is None:
                    gradients = backward(grad_output, value, levels, *rest, needs)
                else:
                    # hooks on saved tensors may give back others: of the same numbers, but not of the same strides
                    strides = [tensor.stride() for tensor in (grad_output, value, *rest)]
                    key = (needs, torch.are_deterministic_algorithms_enabled(), *strides)
                    run = backwards.get(key)
                    if run is None:
                        run = backwards[key] = plan_backward(grad_output, value, *rest, needs)
                    gradients = run(grad_output, value, levels, *rest)
            return (None, None, *[g if n else None for g, n in zip(gradients, needs, strict=True)])

    def prepare(sizes: Sizes, shapes: Tensor | None, tensors: tuple[Tensor, ...]) -> seen.Direct:
        flat = [size for pair in sizes for size in pair]
        levels = levels_on(tensors[0].device, None, flat) if shapes is None else None
        launch = forward if plan is None else plan(*tensors)
        # the guard compares requires_grad as it is where gradients are on, and takes it for False where they are off
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            prepared, apply = Prepared(launch, flat, levels, {}), DirectAttention.apply
            return lambda shapes, tensors: apply(prepared, shapes, *tensors)

        def run(shapes: Tensor | None, tensors: tuple[Tensor, ...]) -> Tensor:
            value, *rest = tensors
            return launch(value, levels_on(value.device, shapes, ()) if levels is None else levels, *rest)

        return run

    return prepare


def _register_pair(
    name: str, kind: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]]
) -> tuple[Any, Any]:
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
    return forward_op, backward_op


def levels_on(device: torch.device, shapes: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """Level sizes as an int64 tensor (L, 2) on ``device``, from a tensor there or from (h, w, h, w, ...)."""
    if shapes is not None:
        if shapes.dtype is torch.int64 and shapes.is_contiguous():
            return shapes
        return shapes.to(torch.int64).contiguous()
    key = (tuple(sizes), device)
    levels = _levels_cache.get(key)
    if levels is None:
        if len(_levels_cache) >= _LEVELS_CACHED:
            _levels_cache.clear()
        levels = torch.tensor(sizes, dtype=torch.int64).view(-1, 2).to(device)
        _levels_cache[key] = levels
    return levels
