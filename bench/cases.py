"""What is measured: the operator's shapes in real models, by name, and inputs as a network makes them.

Level sizes follow from an image and the strides of its levels, rounded up as convolutions do. An encoder asks one query
per pixel. Sampling points lie one to four pixels of their level around a reference point (``grid``), which keeps
neighbouring queries on neighbouring pixels; ``uniform`` scatters them over the image instead, the worst case for a
cache, and is measured in rows of its own.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..kernels.contract import Sizes
from ..kernels.reference import locate

Locations = Literal["grid", "uniform"]
LOCATIONS: tuple[Locations, ...] = get_args(Locations)


@dataclass(frozen=True)
class Case:
    """One workload. Shape letters as in :mod:`msdeform.kernels.contract`."""

    name: str
    sizes: Sizes
    B: int
    Q: int | None = None
    """None: one query per pixel, as in an encoder"""
    H: int = 8
    D: int = 32
    P: int = 4
    locations: Locations = "grid"

    @property
    def S(self) -> int:
        return sum(h * w for h, w in self.sizes)

    @property
    def L(self) -> int:
        return len(self.sizes)

    @property
    def queries(self) -> int:
        return self.S if self.Q is None else self.Q


def levels(height: int, width: int, *strides: int) -> Sizes:
    """(h, w) of each level of an image, of one pixel at least."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


DEFORMABLE_DETR = levels(800, 1066, 8, 16, 32, 64)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        # Deformable DETR (Zhu et al. 2021): a usual image of COCO at its test size, and the widest there is
        *(Case(f"encoder-800x1066-b{B}", DEFORMABLE_DETR, B=B) for B in (2, 1, 4)),
        Case("decoder-800x1066", DEFORMABLE_DETR, B=2, Q=300),
        Case("encoder-800x1333", levels(800, 1333, 8, 16, 32, 64), B=2),
        Case("encoder-single-scale", levels(800, 1066, 32), B=2),
        Case("encoder-dc5", levels(800, 1066, 16), B=2),
        # DINO (Zhang et al. 2022) with five levels, of strides 4 to 64
        Case("dino-encoder", levels(800, 1066, 4, 8, 16, 32, 64), B=1),
        Case("dino-decoder", levels(800, 1066, 4, 8, 16, 32, 64), B=2, Q=900),
        # RT-DETR (Zhao et al. 2023): attention of this kind in its decoder only
        Case("rt-detr-decoder", levels(640, 640, 8, 16, 32), B=4, Q=300),
        # Mask2Former (Cheng et al. 2022): the encoder inside its pixel decoder
        Case("mask2former-pixel-decoder", levels(1024, 1024, 8, 16, 32), B=1),
        # BEVFormer (Li et al. 2022): a grid of 200 x 200 queries looks at one of its cameras
        Case("bevformer-like", levels(928, 1600, 8, 16, 32, 64), B=1, Q=40_000, P=8),
        # nothing is a power of two or a multiple of one
        Case("odd", ((37, 41), (1, 19), (5, 1)), B=3, Q=101, H=5, D=30, P=3),
        Case("odd-wide-head", ((25, 34), (13, 17)), B=1, Q=301, H=3, D=71, P=5),
        # small enough for a CPU
        Case("encoder-200x266", levels(200, 266, 8, 16, 32, 64), B=1),
        Case("decoder-200x266", levels(200, 266, 8, 16, 32, 64), B=1, Q=300),
        Case("encoder-reduced", levels(64, 80, 8, 16, 32, 64), B=1, H=2, D=16),
        Case("decoder-reduced", levels(64, 80, 8, 16, 32, 64), B=1, Q=20, H=2, D=16),
    )
}
SMALL = ("encoder-200x266", "decoder-200x266", "odd", "odd-wide-head")
REDUCED = ("encoder-reduced", "decoder-reduced")
FULL = tuple(name for name in CASES if name not in (*SMALL[:2], *REDUCED))


def nearest(kind: str, name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not known: ``no case is called 'encodr'; did you mean ...``."""
    near = difflib.get_close_matches(name, known, n=2)
    near = near or [one for one in known if name and name in one][:2]
    return f"no {kind} is called {name!r}; " + (
        f"did you mean {' or '.join(near)}?" if near else f"expected some of {', '.join(known)}"
    )


def find(name: str, locations: Locations = "grid") -> Case:
    """A case by name. Raises ValueError for an unknown one, with the nearest that there are."""
    if name not in CASES:
        raise ValueError(nearest("case", name, list(CASES)))
    return dataclasses.replace(CASES[name], locations=locations)


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
