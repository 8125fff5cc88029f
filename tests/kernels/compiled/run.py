"""Runs the Triton kernels as compiled, and holds output and gradients against the float64 reference."""

from typing import Any

from msdeform.bench.static.ptx import verify
from msdeform.bench.static.ptx.verify import Change, make_grad_output
from msdeform.kernels.diagnostics.checks import Case

__all__ = ["METHODS", "Change", "check", "make_grad_output"]

METHODS = ("atomics", "sorted", "tiles")
"""the two ways in which the gradient of value is added up"""


def check(case: Case, method: str, change: Change | None = None, **options: Any) -> None:
    """Output and every gradient against the truth, within the bounds of the project."""
    for name, comparison in verify.check(case, method, change=change, **options):
        assert comparison.ok, f"{name}: {comparison}; {case.describe()}; {method}"
