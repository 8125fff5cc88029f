"""Quantus's numbers. It needs opencv-python, whose libGL not every machine has: `dev` is without it, and tests compare
with what 0.6 gave.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.explain.core.recorded import recorded


def of_quantus(name: str, ask: Callable[[Any], Any]) -> np.ndarray:
    """What `ask` gets of the package."""
    try:
        import quantus
    except ImportError:
        quantus = None
    return recorded(Path(__file__).with_suffix(".json"), name, None if quantus is None else lambda: ask(quantus))
