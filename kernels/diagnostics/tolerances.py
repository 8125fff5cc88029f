"""How far a result may be from the truth: one table, read by the tests, by ``msdeform verify`` and by the benchmarks.

The truth is the float64 result of the same, already rounded inputs. A low-precision result is held against the error
of the ideal low-precision computation: everything in float64, locations and accumulation included, and one rounding
to the dtype at the end (after FlashAttention's criterion). A forward may have twice that error and a gradient three
times, plus a floor for arithmetic in the compute dtype, given in units of the result's largest magnitude.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FORWARD_FACTOR = 2.0
GRADIENT_FACTOR = 3.0

# relative to the largest magnitude of the true result. float32 arithmetic enters through locations: half an ulp of a
# coordinate in pixels (2**-24 * 134 of a published encoder's widest level) times the slope between two pixels.
FLOORS = {
    torch.float64: {"forward": 1e-12, "gradient": 1e-11},
    torch.float32: {"forward": 2e-5, "gradient": 1e-4},
}


class Comparison(NamedTuple):
    """A result held against the truth; both numbers are absolute, in the result's units."""

    error: float
    """largest absolute difference; NaN if the two disagree on which elements are finite"""
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


def compare(result: Tensor, truth: Tensor, compute_dtype: torch.dtype, *, gradient: bool) -> Comparison:
    """Hold ``result``, of any float dtype, against the float64 ``truth`` of the same shape.

    Args:
        result: what a backend returned.
        truth: the float64 result of the same inputs.
        compute_dtype: float32 or float64, the arithmetic the contract prescribes for these inputs.
        gradient: whether this is a gradient (three times the ideal error) or an output (twice).
    """
    if result.shape != truth.shape:
        raise ValueError(f"result: expected the shape of the truth, {tuple(truth.shape)}, got {tuple(result.shape)}")
    if truth.numel() == 0:
        return Comparison(0.0, 0.0)
    truth = truth.to(result.device)
    ideal = truth.to(result.dtype).double()
    finite = truth.isfinite() & ideal.isfinite()
    got = result.double()
    if not torch.equal(got[~finite].nan_to_num(1.0), ideal[~finite].nan_to_num(1.0)):
        return Comparison(float("nan"), 0.0)
    if not finite.any():
        return Comparison(0.0, 0.0)
    scale = float(truth[finite].abs().max())
    ideal_error = float((ideal - truth)[finite].abs().max())
    kind = "gradient" if gradient else "forward"
    factor = GRADIENT_FACTOR if gradient else FORWARD_FACTOR
    error = float((got - truth)[finite].abs().max())
    return Comparison(error, factor * ideal_error + FLOORS[compute_dtype][kind] * scale)
