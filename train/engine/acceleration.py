"""What makes a step faster or smaller without changing what it computes: layouts, compilation, recomputation."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...models.families.detector import Detector
from ..config.options import Compute

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast to bf16 or fp16, or nothing for fp32 and fp64."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[precision])
    return nullcontext()


def prepare(model: Detector, compute: Compute) -> None:
    """Applies what the settings ask for, in place; names of parameters stay.

    Raises:
        ValueError: the model has no transformer whose activations could be computed again.
    """
    if compute.channels_last:
        _channels_last(model.body)
    layers = {side: list(_layers(model, side)) for side in ("encoder", "decoder")}
    if compute.checkpointing != "none":
        again = layers["encoder"] + (layers["decoder"] if compute.checkpointing == "all" else [])
        if not again:
            raise ValueError(f"checkpointing: expected a model with a transformer, got {type(model).__name__}")
        for layer in again:
            layer.forward = partial(_recomputed, layer, layer.forward)
    if compute.compile:
        # layer by layer: those of one kind share what was compiled, and whatever lies between them stays as it is
        for part in [*model.body.children(), *layers["encoder"], *layers["decoder"]]:
            part.compile()


@contextmanager
def uncompiled(compute: Compute) -> Iterator[None]:
    """A block in which nothing is compiled: for evaluations, whose images have more sizes than it would pay for."""
    if not compute.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _recomputed(layer: nn.Module, forward: Any, *arguments: Any, **named: Any) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


def _layers(model: nn.Module, side: str) -> Iterator[nn.Module]:
    part = getattr(getattr(model, "transformer", None), side, None)
    yield from getattr(part, "layers", [])


def _channels_last(body: nn.Module) -> None:
    body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    body.get_submodule("conv1").register_forward_pre_hook(_input_channels_last)


def _input_channels_last(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (arguments[0].contiguous(memory_format=torch.channels_last), *arguments[1:])
