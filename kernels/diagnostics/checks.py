"""Outputs and gradients of backends held against the truth: the reference in float64 on the same inputs.

The bounds are those of :mod:`.tolerances`. ``msdeform verify``, the tests and the benchmarks check through these.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..api import fused_ms_deform_attn, ms_deform_attn
from ..contract import Sizes
from ..triton.interpreter import interpreting
from .options import DTYPES as NAMES
from .tolerances import Comparison, compare

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in NAMES}


@dataclass(frozen=True)
class Case:
    """One call to check: shapes as in :mod:`.contract`, dtypes, and which function."""

    B: int = 2
    Q: int = 20
    H: int = 2
    D: int = 32
    P: int = 4
    sizes: Sizes = ((8, 10), (4, 5))
    dtype: torch.dtype = torch.float32
    """of value and output"""
    small_dtype: torch.dtype | None = None
    """of locations or offsets, weights or logits, and references; float32 (float64 with float64) if None"""
    coordinates: int | None = 2
    """2 or 4: the fused function with points or boxes; None: ms_deform_attn"""
    spread: float = 3.0
    """standard deviation, in pixels, of the samples around their reference"""
    seed: int = 0

    @property
    def S(self) -> int:
        return sum(h * w for h, w in self.sizes)

    @property
    def names(self) -> tuple[str, ...]:
        if self.coordinates is None:
            return ("value", "sampling_locations", "attention_weights")
        return ("value", "reference_points", "sampling_offsets", "attention_logits")

    def describe(self) -> str:
        call = "ms_deform_attn" if self.coordinates is None else f"fused, {self.coordinates} coordinates"
        levels = " ".join(f"{h}x{w}" for h, w in self.sizes)
        return f"{call}; B={self.B} Q={self.Q} H={self.H} D={self.D} P={self.P} levels {levels}"


def make_inputs(case: Case, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Random tensors for a case, in the order of ``case.names``.

    No sample lies within a hundredth of a pixel of an integer coordinate: there the interpolation has a kink, and a
    location's gradient depends on which side rounding puts it.
    """
    generator = torch.Generator().manual_seed(case.seed)
    B, Q, H, L, P = case.B, case.Q, case.H, len(case.sizes), case.P
    small = case.small_dtype or (torch.float64 if case.dtype is torch.float64 else torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    value = normal(B, case.S, H, case.D).to(case.dtype)
    logits = normal(B, Q, H, L, P)
    centres = torch.rand(B, Q, L, 2, generator=generator, dtype=torch.float64)
    extent = torch.tensor([(w, h) for h, w in case.sizes], dtype=torch.float64)[None, None, None, :, None]
    if case.coordinates is None:
        weights = logits.flatten(3).softmax(-1).view(logits.shape).to(small)

        def draw() -> Tensor:
            return (centres[:, :, None, :, None] + case.spread * normal(B, Q, H, L, P, 2) / extent).to(small)

        locations = _away_from_kinks(draw, lambda points: points.double() * extent - 0.5)
        return tuple(t.to(device) for t in (value, locations, weights))

    references = centres
    if case.coordinates == 4:
        references = torch.cat([centres, 0.2 + 0.3 * torch.rand(centres.shape, generator=generator).double()], -1)
    references = references.to(small)
    wide = references.double()[:, :, None, :, None]
    step = torch.ones_like(extent) if case.coordinates == 2 else extent * wide[..., 2:] * 0.5 / P
    scale = case.spread if case.coordinates == 2 else P * 0.5

    def draw_offsets() -> Tensor:
        return (scale * normal(B, Q, H, L, P, 2)).to(small)

    offsets = _away_from_kinks(draw_offsets, lambda points: wide[..., :2] * extent + points.double() * step - 0.5)
    return tuple(t.to(device) for t in (value, references, offsets, logits.to(small)))


def _away_from_kinks(draw: Callable[[], Tensor], pixels: Callable[[Tensor], Tensor]) -> Tensor:
    points = draw()
    for _ in range(200):
        coordinates = pixels(points)
        near = (coordinates - coordinates.round()).abs() < 0.01
        if not near.any():
            return points
        points = torch.where(near, draw(), points)
    raise RuntimeError("no samples away from integer pixels were found in 200 draws")


def evaluate(case: Case, tensors: Sequence[Tensor], grad_output: Tensor, backend: str) -> dict[str, Tensor]:
    """Output and gradients of one call by name: ``output`` and ``case.names``."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    call: Callable[..., Tensor] = ms_deform_attn if case.coordinates is None else fused_ms_deform_attn
    output = call(leaves[0], case.sizes, *leaves[1:], backend=backend)
    gradients = torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
    return {"output": output.detach(), **dict(zip(case.names, gradients, strict=True))}


class Finding(NamedTuple):
    """One quantity of one case on one backend, held against the truth."""

    backend: str
    quantity: str
    comparison: Comparison


def check_case(case: Case, backends: Sequence[str], device: torch.device | str) -> Iterator[Finding]:
    """Output and every gradient of each backend against the float64 reference."""
    tensors = make_inputs(case, device)
    generator = torch.Generator().manual_seed(case.seed + 1)
    shape = (case.B, case.Q, case.H * case.D)
    grad_output = torch.randn(shape, generator=generator).to(device, case.dtype)
    truth = evaluate(case, [t.double() for t in tensors], grad_output.double(), "reference")
    double = any(t.dtype is torch.float64 for t in tensors)
    for backend in backends:
        results = evaluate(case, tensors, grad_output, backend)
        for name, result in results.items():
            if result.dtype is not (case.dtype if name == "output" else tensors[case.names.index(name)].dtype):
                raise RuntimeError(f"backend {backend!r} returned {name} in {result.dtype}")
            compute = torch.float64 if double else torch.float32
            comparison = compare(result, truth[name], compute, gradient=name != "output")
            yield Finding(backend, "output" if name == "output" else f"grad {name}", comparison)


def default_cases(device_type: str) -> list[Case]:
    """What ``msdeform verify`` checks unless told otherwise: both functions, four dtypes, a few odd shapes, and an
    encoder that keeps several threads busy. Triton's interpreter, which takes minutes for it, is spared the last."""
    base = usual_case(device_type)
    encoder: Sizes = ((25, 34), (13, 17), (7, 9), (4, 5))
    cases = [replace(base, coordinates=c, dtype=d) for c in (None, 2, 4) for d in DTYPES.values()]
    cases += [replace(base, D=d, P=3, sizes=((3, 7), (1, 1)), coordinates=c) for d, c in ((30, 2), (1, None), (71, 4))]
    if not interpreting():
        B, H = (2, 8) if device_type == "cuda" else (1, 2)
        cases += [
            Case(B=B, Q=sum(h * w for h, w in encoder), H=H, sizes=encoder, dtype=d, coordinates=c)
            for c in (None, 2, 4)
            for d in (torch.float32, torch.bfloat16)
        ]
    return cases


def usual_case(device_type: str) -> Case:
    return Case() if device_type == "cuda" else Case(B=1, Q=9, H=1)
