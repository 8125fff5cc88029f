"""What is measured: the operator's shapes in real models, by name. Nothing here needs PyTorch.

Level sizes follow from an image and the strides of its levels, rounded up as convolutions do. An encoder asks one query
per pixel. Sampling points lie one to four pixels of their level around a reference point (``grid``), which keeps
neighbouring queries on neighbouring pixels; ``uniform`` scatters them over the image instead, the worst case for a
cache, and is measured in rows of its own.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...common.text import nearest

if TYPE_CHECKING:
    from ...kernels.contract import Sizes

Locations = Literal["grid", "uniform"]


@dataclass(frozen=True)
class Case:
    """One workload. Shape letters as in :mod:`msdeform.kernels.contract`."""

    name: str
    sizes: "Sizes"
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

    @property
    def points(self) -> int:
        """Of a call."""
        return self.B * self.queries * self.H * self.L * self.P

    @property
    def shape(self) -> dict[str, int]:
        """As rows have it."""
        return {"B": self.B, "Q": self.queries, "S": self.S, "H": self.H, "D": self.D, "L": self.L, "P": self.P}


def levels(height: int, width: int, *strides: int) -> "Sizes":
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
        # BEVFormer (Li et al. 2022): a grid of 200 x 200 queries attends to one of its cameras
        Case("bevformer-like", levels(928, 1600, 8, 16, 32, 64), B=1, Q=40_000, P=8),
        # nothing is a power of two or a multiple of one
        Case("odd", ((37, 41), (1, 19), (5, 1)), B=3, Q=101, H=5, D=30, P=3),
        Case("odd-wide-head", ((25, 34), (13, 17)), B=1, Q=301, H=3, D=71, P=5),
        # small enough for a CPU
        Case("encoder-200x266", levels(200, 266, 8, 16, 32, 64), B=1),
        Case("encoder-400x533", levels(400, 533, 8, 16, 32, 64), B=1),
        Case("encoder-1200x1600", levels(1200, 1600, 8, 16, 32, 64), B=1),
        Case("decoder-200x266", levels(200, 266, 8, 16, 32, 64), B=1, Q=300),
        Case("encoder-reduced", levels(64, 80, 8, 16, 32, 64), B=1, H=2, D=16),
        Case("decoder-reduced", levels(64, 80, 8, 16, 32, 64), B=1, Q=20, H=2, D=16),
    )
}
SMALL = ("encoder-200x266", "decoder-200x266", "odd", "odd-wide-head")
REDUCED = ("encoder-reduced", "decoder-reduced")
AREAS = ("encoder-200x266", "encoder-400x533", "encoder-800x1066-b1", "encoder-1200x1600")
"""of one encoder, by the image's area"""
ON_A_CPU = (
    *("encoder-200x266", "encoder-800x1066-b1", "encoder-800x1066-b2", "decoder-200x266", "decoder-800x1066"),
    *("rt-detr-decoder", "mask2former-pixel-decoder", "odd"),
)
FULL = tuple(name for name in CASES if name not in (*SMALL[:2], *AREAS[1::2], *REDUCED))


def find(name: str, locations: Locations = "grid") -> Case:
    """A case by name. Raises ValueError for an unknown one, with the nearest that there are."""
    if name not in CASES:
        raise ValueError(nearest("case", name, list(CASES)))
    return dataclasses.replace(CASES[name], locations=locations)
