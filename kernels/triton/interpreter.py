"""Whether Triton's interpreter runs the kernels: asked by the backend and by the launcher that it loads."""

import os

# read once: the variable has to be set before Triton is imported to have an effect there, too
_INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter in this process."""
    return _INTERPRETING
