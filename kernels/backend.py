"""A backend as data: what the registry knows of an implementation before it is loaded."""

import logging
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .contract import Inputs

# (inputs, value, shapes, sizes, locations, weights) or (inputs, value, shapes, sizes, references, offsets, logits)
Implementation = Callable[..., Tensor]


class Functions(NamedTuple):
    """Both functions of a loaded backend."""

    ms_deform_attn: Implementation
    fused_ms_deform_attn: Implementation


class Backend(NamedTuple):
    """One implementation of both functions."""

    name: str
    rank: int
    """auto takes the highest that runs here and takes the inputs; one below zero runs only when it is named"""
    summary: str
    unavailable: Callable[[], str | None]
    """why it cannot run on this machine, or None"""
    refuses: Callable[[Inputs], str | None]
    """why it cannot take these inputs, or None"""
    load: Callable[[], Functions]
    """imports or compiles what it needs, only now"""


def import_failure(package: str, module: str, error: Exception) -> str:
    """A sentence for an import that failed: not installed, or installed and broken (which is logged, too)."""
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return f"{package} is not installed"
    reason = f"{package} is installed but fails to import: {type(error).__name__}: {error}"
    logging.getLogger("msdeform").warning(reason)
    return reason
