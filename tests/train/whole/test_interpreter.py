"""Training gives the same losses where Triton kernels in the interpreter run the attention.

The model is the smallest with every part, the images are small: a program of the interpreter costs tenths of a second.
"""

from pathlib import Path

import pytest

from msdeform.train.engine.run import run_steps
from tests.train.whole.golden import SAME_MACHINE, golden_options

pytestmark = pytest.mark.interpreter


def test_triton_takes_the_references_curve(tmp_path: Path) -> None:
    """A gradient that is 1% off takes the fourth loss further off than the bound, be it of value, offsets or logits."""
    reference, triton = (run_steps(golden_options(tmp_path, backend), 4) for backend in ("reference", "triton"))
    assert len(set(triton)) == 4
    assert triton == pytest.approx(reference, rel=SAME_MACHINE)
