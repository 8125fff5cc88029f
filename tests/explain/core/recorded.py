"""Numbers of other people's code: asked of it where it is installed, and as it gave them elsewhere, so that no test
that compares with them skips.

Where it is installed, what is recorded is held to it. To record anew: RECORD=1 python -m pytest, with the tests' names.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def recorded(file: Path, name: str, ask: Callable[[], Any] | None) -> np.ndarray:
    """An array of a file, by its name; what `ask` finds, unless that is None, is the same or takes its place."""
    held: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if ask is not None:
        found = np.asarray(ask(), dtype=float)
        if os.environ.get("RECORD"):
            held[name] = found.tolist()
            file.write_text(json.dumps(held, sort_keys=True).replace("], ", "],\n") + "\n")
        np.testing.assert_allclose(held[name], found, rtol=1e-9, err_msg=f"{name}: recorded of another version?")
    return np.asarray(held[name])
