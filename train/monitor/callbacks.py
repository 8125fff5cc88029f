"""What a run calls as it goes on: objects with some of four methods. Its loggers are such objects, too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ...common.text import suggest

METHODS = ("on_step", "on_evaluation", "on_checkpoint", "on_end")


@dataclass(frozen=True)
class Event:
    """What all events have."""

    folder: Path
    """The run's."""
    step: int
    """Optimizer steps that are done, of all that the run was resumed for."""


@dataclass(frozen=True)
class StepEvent(Event):
    """An optimizer step."""

    epoch: int
    """The epoch it was in, from 0."""
    total_steps: int
    """Of the run."""
    numbers: Mapping[str, float]
    """``loss``, each of its terms, ``grad_norm``, and ``finite``, 0 where the step was skipped. Of a logged step all
    that log.jsonl has, means since the last one: ``images_per_s``, ``data_s``, ``step_s``, ``memory_mb``; and ``lr_``
    of each group of parameters."""
    logged: bool
    """Is it one of those that ``--log-every`` asks for?"""


@dataclass(frozen=True)
class EvaluationEvent(Event):
    """COCO's metrics on the validation images."""

    epoch: int
    """Epochs that are done."""
    metrics: Mapping[str, Any]
    """``AP``, ``AP50``, ... in [0, 1], -1 where nothing of that size is annotated; ``per_class``, the AP of each by
    name; the losses as ``val_loss``, ...; and ``seconds``."""
    best: bool
    """Is the AP the highest so far?"""
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    """By name: ``predictions`` beside ground truth, unless ``--pictures`` is 0."""


@dataclass(frozen=True)
class CheckpointEvent(Event):
    """A checkpoint was written, whole."""

    path: Path
    best: bool
    """Is it best.pt, too?"""


@dataclass(frozen=True)
class EndEvent(Event):
    """Nothing is called after it."""

    why: Literal["finished", "stopped", "failed"]
    """stopped: by a signal, Ctrl-C or a callback; all is saved."""
    error: BaseException | None = None
    """What ended a run that failed."""


class Callback:
    """A base with all the methods, which do nothing. Any object with some of them will do.

    All are called in the main process alone. A method that returns True ends the run when the step is done, with a
    checkpoint. One that raises an exception ends it so, too: of that callback only `on_end` is called then, and `train`
    raises a RuntimeError that names it.
    """

    def on_step(self, event: StepEvent) -> bool | None:
        """After every optimizer step."""

    def on_evaluation(self, event: EvaluationEvent) -> bool | None:
        """After every evaluation, before its checkpoint."""

    def on_checkpoint(self, event: CheckpointEvent) -> bool | None:
        """After every checkpoint."""

    def on_end(self, event: EndEvent) -> bool | None:
        """Once, however the run ends."""


class Callbacks:
    """Calls each of some callbacks in turn, and keeps what they wish."""

    def __init__(self, callbacks: Sequence[object]) -> None:
        self._callbacks = [*callbacks]
        self.end: str | None = None
        """Why the run is to end, in a sentence; None as long as none wishes it."""
        self.error: BaseException | None = None
        """What one of them raised, the first."""
        self._failed = set[int]()

    def __call__(self, method: str, event: Event) -> None:
        for callback in self._callbacks:
            act = getattr(callback, method, None)
            if act is None or (id(callback) in self._failed and method != "on_end"):
                continue
            where = f"callback {type(callback).__name__}, {method}"
            try:
                wish = act(event)
            except (Exception, SystemExit) as error:
                self._failed.add(id(callback))
                if self.error is None:
                    reason = str(error).strip().partition("\n")[0]
                    self.end, self.error = f"{where}: {type(error).__name__}{reason and f': {reason}'}", error
            else:
                if wish is True:
                    self.end = self.end or f"{where} wished it"


def check_callbacks(callbacks: Sequence[object]) -> None:
    """Raises ValueError for an object that has none of the methods, or another one whose name begins with on_."""
    for callback in callbacks:
        kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
        if isinstance(callback, type):
            raise ValueError(f"callbacks: expected objects, got the class {kind} itself; call it: {kind}()")
        named = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name))]
        for name in named:
            if name not in METHODS:
                sentence, every = f"callbacks: {kind} has a method {name}", f"expected {', '.join(METHODS)}"
                raise ValueError(suggest(sentence, name, METHODS, every))
        if not named:
            raise ValueError(f"callbacks: {kind} has none of {', '.join(METHODS)}")
