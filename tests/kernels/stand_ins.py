"""Stand-ins for the Triton backend's kernels: a call does all that the host does, and nothing is run."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msdeform.bench.cpu.host_time import without_device

KERNELS = ("forward", "backward", "keys", "cells", "shares", "pixels", "points")


class StandIn:
    """Stands for a kernel, ``kernel[grid](*arguments)``, and for what it compiles to: counts its launches and runs none
    of them."""

    arg_names: Sequence[str] = ()
    function = packed_metadata = None

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., "StandIn"]:
        return self.run

    def run(self, *arguments: Any, **parameters: Any) -> "StandIn":
        self.launches += 1
        return self


@contextlib.contextmanager
def without_kernels() -> Iterator[dict[str, StandIn]]:
    """:func:`without_device` with nothing to compile, either.

    Yields what stands for each of `KERNELS`.
    """
    from msdeform.kernels.triton import launch

    kernels = {name: StandIn() for name in KERNELS}
    with launch.replaced(**{f"{name}_kernel": kernel for name, kernel in kernels.items()}), without_device():
        yield kernels
