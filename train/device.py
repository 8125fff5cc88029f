"""Where it runs: see :mod:`msdeform.kernels.device`."""

from ..kernels.device import choose_device

__all__ = ["choose_device"]
