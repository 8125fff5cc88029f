"""A model's mode: how it is put into evaluation for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


@contextmanager
def evaluation_mode(model: M) -> Iterator[M]:
    """Evaluation mode while the block runs; then every module has its own mode again, as not all need agree."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
