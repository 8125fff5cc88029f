"""What an exported file takes and gives."""

from dataclasses import dataclass

import torch

SAMPLING = {"gather": "gather", "gridsample": "reference", "cpu": "cpu"}
"""How the deformable attention samples, and the operator's backend that does: by operators that every runtime has, or
(cpu) by our own, which are called."""
OPSET = 18
"""of ONNX files"""
FILE = "about.json"
"""where a ``.pt2`` and an ``.xml`` keep what they say about themselves, in one piece"""


@dataclass(frozen=True)
class Form:
    """Sizes of the inputs, and how much of the work around the model is in the file."""

    size: tuple[int, int]
    """(height, width) of the images that it is traced with: of all, unless `dynamic` has ``size``. With `pixels`, of
    the canvas that images are resized to fit into."""
    batch: int = 1
    """Images at once, unless `dynamic` has ``batch``."""
    dynamic: tuple[str, ...] = ("batch", "size")
    """What a caller may choose anew in every call."""
    sampling: str = "gather"
    """``gather``, ``gridsample`` or ``cpu``, see `SAMPLING`."""
    dtype: torch.dtype = torch.float32
    """Of weights and layers, float32 or float16; inputs and outputs are float32."""
    top_k: int | None = None
    """Detections of an image that come out, in pixels, in the place of logits and boxes of all queries."""
    pixels: bool = False
    """Images come as they are, uint8, and are resized and normalised inside."""

    @property
    def inputs(self) -> tuple[str, ...]:
        if self.pixels:
            return ("pixels",)
        return ("images", "mask") if self.top_k is None else ("images", "mask", "sizes")

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("logits", "boxes") if self.top_k is None else ("boxes", "labels", "scores")

    @property
    def shape(self) -> str:
        """Of the images, in words: ``Bx3xHxW``, where what is dynamic is a letter."""
        batch = "B" if "batch" in self.dynamic else str(self.batch)
        height, width = ("H", "W") if "size" in self.dynamic else map(str, self.size)
        return f"{batch}x3x{height}x{width}"

    def dynamic_shapes(self) -> tuple[tuple[dict[int, object], ...]]:
        """Of each input, as `torch.export.export` takes them of a function of ``*inputs``."""
        open_ = torch.export.Dim.DYNAMIC
        batch = {0: open_} if "batch" in self.dynamic else {}
        sides = "size" in self.dynamic
        ends = {"images": (2, 3), "pixels": (2, 3), "mask": (1, 2), "sizes": ()}
        return (tuple({**batch, **(dict.fromkeys(ends[name], open_) if sides else {})} for name in self.inputs),)

    def tried(self) -> list[tuple[int, tuple[int, int]]]:
        """Batches and sizes that the file is compared at: the traced one first, then others that no tracing saw.

        Five sizes, three batches each, where both are dynamic. One size is the other way round, and the others are no
        multiples of any stride.
        """
        height, width = self.size
        sizes = [self.size]
        if "size" in self.dynamic:
            sizes += [(width, height), (height // 2 + 13, width // 2 + 6), (max(33, height // 3), width + 1)]
            sizes += [(height * 3 // 4 + 5, max(33, width // 4 + 1))]
        batches = (1, 2, 3) if "batch" in self.dynamic else (self.batch,)
        return [(batch, size) for size in sizes for batch in batches]
