"""The implementations that are measured, ours and others', in one form.

A peer offers either function of the operator with our arguments. What it lacks is composed for it from PyTorch, as its
users would have to.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import registry
from ..kernels.api import fused_ms_deform_attn, ms_deform_attn
from ..kernels.contract import Sizes
from ..kernels.reference import locate

Operator = Callable[[Tensor, Sizes, Tensor, Tensor], Tensor]
FusedOperator = Callable[[Tensor, Sizes, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """One implementation, or the reason why there is none here."""

    name: str
    reason: str | None = None
    """why it cannot be measured here, and how to get it; None where it can"""
    plain: Operator | None = None
    """(value, sizes, sampling_locations, attention_weights) -> (B, Q, H*D)"""
    fused: FusedOperator | None = None
    """(value, sizes, reference_points, sampling_offsets, attention_logits) -> (B, Q, H*D)"""
    ours: bool = False
    """a backend of this project: one that fails its check fails the run"""


def peers(device: torch.device, *, compiled: bool = False) -> list[Peer]:
    """Every implementation, the reference first; `compiled` adds the reference under ``torch.compile``."""
    found = [_backend("reference", device)]
    if compiled:
        found.append(_compiled_reference())
    return [*found, _backend("triton", device), _backend("cuda", device), *_deformops(device)]


def _backend(name: str, device: torch.device) -> Peer:
    reason = registry.unavailable(name) or registry.BACKENDS[name].refuses(registry.example_inputs(device))
    if name == "triton" and registry.interpreting():
        reason = "Triton's interpreter is never timed (unset TRITON_INTERPRET)"
    if reason is not None:
        return Peer(name, reason, ours=True)

    def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, sizes, locations, weights, backend=name)

    def fused(value: Tensor, sizes: Sizes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return fused_ms_deform_attn(value, sizes, references, offsets, logits, backend=name)

    return Peer(name, plain=plain, fused=fused, ours=True)


def _compiled_reference() -> Peer:
    reference = _backend("reference", torch.device("cpu"))
    assert reference.plain is not None
    assert reference.fused is not None
    return Peer("reference-compiled", plain=torch.compile(reference.plain), fused=torch.compile(reference.fused))


def _deformops(device: torch.device) -> list[Peer]:
    """deformops 3 (github.com/tue-p8n/deformops): weights in value's dtype, softmax inside, locations outside.

    Twice: as it comes, and told to accumulate grad_value in float32, which it leaves off on Hopper.
    """
    name = "deformops"
    if importlib.util.find_spec(name) is None:
        return [Peer(name, "not installed (pip install deformops; it needs Python 3.12 or 3.13)")]
    try:
        msda = importlib.import_module("deformops.registry").msda
    except Exception as error:  # a broken installation raises whatever it likes
        return [Peer(name, f"installed but fails to import: {type(error).__name__}: {error}")]
    if device.type != "cuda":
        return [Peer(name, "its kernels need a CUDA device; on a CPU it is eager PyTorch, too")]

    tables: dict[Sizes, tuple[Tensor, Tensor, Tensor]] = {}

    def table(sizes: Sizes, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(h, w), starts, and (w, h) as floats, on value's device: a model makes them once per image size."""
        if sizes not in tables:
            shapes = torch.tensor(sizes, device=value.device)
            pixels = shapes.prod(1)
            tables[sizes] = shapes, pixels.cumsum(0) - pixels, shapes.flip(1).float()
        return tables[sizes]

    def peer(name: str, **options: bool) -> Peer:
        def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
            shapes, starts, _ = table(sizes, value)
            return msda(value, shapes, starts, locations, weights, **options)

        def fused(value: Tensor, sizes: Sizes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            shapes, starts, extent = table(sizes, value)
            locations = locate(references, offsets.float(), extent)
            return msda(value, shapes, starts, locations, logits, method="softmax", **options)

        return Peer(name, plain=plain, fused=fused)

    return [peer(name), peer(f"{name}-fp32acc", fp32acc=True)]
