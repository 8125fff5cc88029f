"""The progress bar, under the name that commands of training and explanation import."""

from ..common.progress import progress_bar

__all__ = ["progress_bar"]
