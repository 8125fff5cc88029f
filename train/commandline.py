"""What every command of training prints with."""

from ..common.progress import progress_bar

__all__ = ["progress_bar"]
