"""Inputs of a case as a network makes them, and which of their numbers have no one true gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.contract import Sizes
from ...kernels.pytorch.reference import locate
from ..harness.measure import sets_past_cache
from .cases import Case

# the differentiable inputs of the two functions, in their order
PLAIN = ("value", "sampling_locations", "attention_weights")
FUSED = ("value", "reference_points", "sampling_offsets", "attention_logits")


class OperatorInputs(NamedTuple):
    """Inputs of both functions, for the same sampling points and weights."""

    value: Tensor
    """(B, S, H, D)"""
    reference_points: Tensor
    """(B, Q, L, 2), float32"""
    sampling_offsets: Tensor
    """(B, Q, H, L, P, 2), in value's dtype: a Linear layer's output"""
    attention_logits: Tensor
    """(B, Q, H, L, P), in value's dtype"""
    sampling_locations: Tensor
    """(B, Q, H, L, P, 2), float32: 16 bits are half a pixel off on a wide map"""
    attention_weights: Tensor
    """(B, Q, H, L, P), in value's dtype"""
    grad_output: Tensor
    """(B, Q, H*D)"""

    def of(self, fused: bool) -> list[Tensor]:
        """Those of one of the functions."""
        return [getattr(self, name) for name in (FUSED if fused else PLAIN)]


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> OperatorInputs:
    """Random inputs of a case, drawn on the host so that every device sees the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    B, Q, H, D, L, P = case.B, case.queries, case.H, case.D, len(case.sizes), case.P
    value = torch.randn(B, case.S, H, D, generator=generator)
    points = torch.rand(B, Q, 2, generator=generator)
    if case.Q is None:
        centres, pixel = pixel_grid(case.sizes)
        # up to a quarter of a pixel off: whole offsets from exact centres would put every point on a kink
        points = centres + (points - 0.5) * 0.5 * pixel
    references = points[:, :, None].expand(B, Q, L, 2)
    # point p of the module's initialisation lies p + 1 pixels away, in its head's direction
    direction = torch.rand(B, Q, H, 1, P, 1, generator=generator) * (2 * torch.pi)
    distance = torch.arange(1, P + 1)[:, None] + torch.randn(B, Q, H, L, P, 1, generator=generator) * 0.3
    offsets = torch.cat([direction.cos() * distance, direction.sin() * distance], -1)
    extent = torch.tensor([(w, h) for h, w in case.sizes], dtype=torch.float32)
    if case.locations == "uniform":
        anywhere = torch.rand(B, Q, H, L, P, 2, generator=generator)
        offsets = (anywhere - references[:, :, None, :, None]) * extent[:, None]
    offsets = offsets.to(dtype)
    logits = torch.randn(B, Q, H, L, P, generator=generator).to(dtype)
    inputs = OperatorInputs(
        value=value.to(dtype),
        reference_points=references.contiguous(),
        sampling_offsets=offsets,
        attention_logits=logits,
        sampling_locations=locate(references, offsets.float(), extent),
        attention_weights=logits.float().flatten(3).softmax(-1).view_as(logits).to(dtype),
        grad_output=torch.randn(B, Q, H * D, generator=generator).to(dtype),
    )
    return OperatorInputs(*(tensor.to(device) for tensor in inputs))


def input_sets(case: Case, dtype: torch.dtype, device: torch.device) -> list[OperatorInputs]:
    """As many inputs as together exceed the device's cache twice."""
    first = make_inputs(case, dtype, device, seed=0)
    return [first, *(make_inputs(case, dtype, device, seed) for seed in range(1, sets_past_cache(first, device)))]


def pixel_grid(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Centres (S, 2) of every pixel of every level, xy, normalised (the encoder's reference points), and the pixels'
    extents (S, 2)."""
    centres, extents = [], []
    for h, w in sizes:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()], -1))
        extents.append(torch.tensor([1 / w, 1 / h]).expand(h * w, 2))
    return torch.cat(centres), torch.cat(extents)


def on_kinks(case: Case, sampling_locations: Tensor) -> Tensor:
    """Which coordinates (B, Q, H, L, P, 2) lie within 1e-4 pixels of a pixel's centre.

    Bilinear sampling has a kink there: float32 and float64 may see either side, and both derivatives are right.
    """
    extent = torch.tensor([(w, h) for h, w in case.sizes], dtype=torch.float64, device=sampling_locations.device)
    pixels = sampling_locations.double() * extent[:, None] - 0.5
    return (pixels - pixels.round()).abs() < 1e-4
