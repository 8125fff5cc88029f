"""Training gives the same losses where Triton kernels in the interpreter run the attention.

The model is the smallest with every part, the images are small: a program of the interpreter costs tenths of a second.
"""

from pathlib import Path

import pytest

from msdeform.train.loop import run_steps
from tests.train.golden import BOUND, STEPS, golden_losses, golden_options

pytestmark = pytest.mark.interpreter


def test_triton_takes_the_golden_curve(tmp_path: Path) -> None:
    losses = run_steps(golden_options(tmp_path, "triton"), STEPS)
    assert len(set(losses)) == STEPS
    assert losses == pytest.approx(golden_losses(), rel=BOUND)
