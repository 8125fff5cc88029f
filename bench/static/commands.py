"""The commands ``msdeform bench model`` and ``msdeform verify --compiled``."""

import sys

from ...kernels.diagnostics.checks import DTYPES
from ...kernels.diagnostics.options import capability
from ..harness import records
from ..harness.tables import aligned
from ..options import ModelOptions, VerifyCompiledOptions


def model(options: ModelOptions) -> int:
    """``msdeform bench model``: prints a line for each call whose kernels' counts are recorded, the fastest of its kind
    first."""
    from . import model

    lines = model.table(records.read(*options.results))
    if len(lines) == 1:
        print("no counts are recorded: msdeform bench instructions --out", file=sys.stderr)
        return 1
    print(f"{model.CASE}, {model.GPU}: microseconds, predicted\n")
    print(aligned(lines, 3))
    return 0


def verify_compiled(options: VerifyCompiledOptions) -> int:
    """``msdeform verify --compiled``; returns 0 if every error is within its bound and no kernel faults, else 1."""
    from .ptx import verify

    chosen = [case for case in verify.cases() if options.dtype is None or case.dtype is DTYPES[options.dtype]]
    ok = verify.print_errors(capability(options.arch), chosen)
    print(f"\n{'every error is within its bound' if ok else 'BREACH: an error exceeds its bound, or a kernel faults'}")
    return 0 if ok else 1
