"""Runs the Triton kernels as compiled, and holds output and gradients against the float64 reference."""

from typing import Any

import torch
from torch import Tensor

from msdeform.bench.static.ptx import verify
from msdeform.bench.static.ptx.verify import Change, make_grad_output
from msdeform.kernels.diagnostics.checks import Case

__all__ = ["METHODS", "Change", "at_pixels", "check", "make_grad_output"]

METHODS = ("atomics", "sorted", "tiles")
"""the two ways in which the gradient of value is added up"""


def at_pixels(case: Case, references: Tensor) -> Tensor:
    """References like these, of an encoder: each query's is near the centre of a pixel, in the order of memory."""
    grids = [
        torch.stack(torch.meshgrid((torch.arange(h) + 0.4) / h, (torch.arange(w) + 0.4) / w, indexing="ij"), -1)
        for h, w in case.sizes
    ]
    centres = torch.cat([grid.flip(-1).reshape(-1, 2) for grid in grids])
    return centres[None, :, None].expand(references.shape).to(references)


def check(case: Case, method: str, change: Change | None = None, **options: Any) -> None:
    """Output and every gradient against the truth, within the bounds of the project."""
    for name, comparison in verify.check(case, method, change=change, **options):
        assert comparison.ok, f"{name}: {comparison}; {case.describe()}; {method}"
