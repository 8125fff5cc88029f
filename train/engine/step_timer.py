"""Where a training step goes: data, backbone, encoder, decoder, matching, loss, backward, optimiser."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .build import AnyDetector

STAGES = (
    "data",
    "backbone",
    "encoder",
    "decoder",
    "model, other",
    "matching",
    "loss",
    "backward",
    "optimiser",
    "other",
)


class StepTimer:
    """Seconds of each stage of a step, without overlap: time within an inner stage does not count for the outer.

    Nothing is measured, and nothing waited for, until `start`.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._device = device
        self._on = False
        self._open: list[str] = []
        self._since = 0.0

    def start(self) -> None:
        """From here on every stage is measured; the device is waited for at each border, which costs a little."""
        self._on = True
        self._open = ["other"]
        self._charge()
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def stop(self) -> None:
        self._charge()
        self._on = False

    def _charge(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def enter(self, name: str) -> None:
        if self._on:
            self._charge()
            self._open.append(name)

    def leave(self) -> None:
        if self._on and len(self._open) > 1:
            self._charge()
            self._open.pop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block belongs to a stage; profilers see its name, too."""
        self.enter(name)
        try:
            with torch.profiler.record_function(f"stage: {name}"):
                yield
        finally:
            self.leave()

    def watch(self, model: AnyDetector, criterion: nn.Module) -> None:
        """Tells backbone, encoder, decoder and matching by hooks on their modules."""
        children, transformer = list(model.body.children()), getattr(model, "transformer", None)
        parts = [("backbone", children[0], children[-1])]
        parts += [(name, part, part) for name in ("encoder", "decoder") if (part := getattr(transformer, name, None))]
        for name, first, last in parts:
            first.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
            last.register_forward_hook(lambda *_: self.leave())
        if (matcher := getattr(criterion, "matcher", None)) is not None:
            # a stage decorates as well
            criterion.matcher = self.stage("matching")(matcher)

    def table(self, steps: int, images: int) -> str:
        """Milliseconds a step and share of each stage that took any time."""
        total = sum(self.seconds.values())
        taken = {name: seconds for name, seconds in self.seconds.items() if seconds > 0}
        lines = [f"{'stage':<14}{'ms a step':>10}{'share':>8}"]
        lines += [f"{name:<14}{s / steps * 1e3:>10.1f}{s / total:>8.1%}" for name, s in taken.items()]
        lines.append(f"{'all':<14}{total / steps * 1e3:>10.1f}{images / total:>8.1f} images/s")
        return "\n".join(lines)
