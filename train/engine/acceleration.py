"""What makes a step faster or smaller without changing what it computes: layouts, compilation, recomputation."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..config.options import Compute
from .build import AnyDetector

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast to bf16 or fp16, or nothing for fp32 and fp64."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[precision])
    return nullcontext()


def prepare(model: AnyDetector, compute: Compute) -> None:
    """Applies what the settings ask for, in place; names of parameters stay.

    Raises:
        ValueError: the model has no transformer whose activations could be computed again, or another backbone.
    """
    if compute.channels_last:
        model.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not hasattr(model.body, "conv1"):
            raise ValueError(f"channels_last: expected a model with a ResNet of ours, got {model.kind}")
        first = model.body.get_submodule("conv1")
        first.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous(memory_format=torch.channels_last))
    sides = [getattr(getattr(model, "transformer", None), side, None) for side in ("encoder", "decoder")]
    encoder, decoder = (list(getattr(side, "layers", [])) for side in sides)
    if compute.checkpointing != "none":
        again = encoder + (decoder if compute.checkpointing == "all" else [])
        if not again:
            raise ValueError(f"checkpointing: expected a model with a transformer, got {model.kind}")
        for layer in again:
            layer.forward = partial(_recomputed, layer, layer.forward)
    if compute.compile:
        # layer by layer: those of one kind share what was compiled, and whatever lies between them stays as it is
        for part in [*model.body.children(), *encoder, *decoder]:
            part.compile()


@contextmanager
def uncompiled(compute: Compute) -> Iterator[None]:
    """A block in which nothing is compiled: for evaluations, whose images have more sizes than it would pay for."""
    with torch.compiler.set_stance("force_eager") if compute.compile else nullcontext():
        yield


def _recomputed(layer: nn.Module, forward: Any, *arguments: Any, **named: Any) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)
