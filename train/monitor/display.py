"""A run on the terminal: a bar that moves, or, where the output is a file, a line every so often."""

import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

# seconds between lines in a file: doubled from the first to the last, so that a short run shows some as well
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
# share of a step spent waiting for data, above which it is said
SLOW_DATA = 0.2

_TERMS = {"loss_ce": "class", "loss_bbox": "L1", "loss_giou": "GIoU"}


def peak_memory_mb() -> float | None:
    """Megabytes (2**20 bytes) at most so far: allocated on the CUDA device, or else resident in the process.

    None where the system does not tell.
    """
    if torch.cuda.is_initialized() and (allocated := torch.cuda.max_memory_allocated()):
        return allocated / 2**20
    try:
        import resource
    except ImportError:  # windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, kilobytes elsewhere


class Display(Progress):
    """A run of ``total`` steps, of which ``start`` are done, on stderr: a bar and, below it, the numbers of a step.

    Where stderr is no terminal, lines instead: of the first step, of the last, and between them at most one a minute.
    Nothing at all unless ``shown``. ``evaluations`` is how many are still to come after a step.
    """

    def __init__(
        self,
        start: int,
        total: int,
        *,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
        evaluations: Callable[[int], int] = lambda step: 0,
    ):
        console = Console(stderr=True, quiet=not shown, emoji=False)
        # rich calls a file a terminal where FORCE_COLOR is set
        self.moves = shown and sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal
        self._numbers, self._total, self._clock = "", total, clock
        self._first: tuple[int, float] | None = None
        self._expected: float | None = None
        self._evaluations, self._evaluation_s, self._paused = evaluations, list[float](), 0.0
        self._pause, self._due = FIRST_PAUSE, -float("inf")
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[left]}"),
            console=console,
            refresh_per_second=4,  # rendering takes time from the training
            disable=not self.moves,
        )
        self._task = self.add_task("", total=total, completed=start, left="-")

    def get_renderables(self) -> Iterator[Any]:
        """The bar, and the numbers in a line of their own, so that both fit into a narrow window."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self._numbers, no_wrap=True, overflow="ellipsis")

    def step(
        self, step: int, epoch: str, losses: dict[str, float], images_per_s: float, data_share: float = 0.0
    ) -> None:
        """Shows a step.

        Args:
            step: optimizer steps done.
            epoch: such as 3/50.
            losses: ``loss`` and its terms; those of the last layer are shown.
            images_per_s: of late.
            data_share: part of the step's time, 0 to 1, spent waiting for data; said if it is much.
        """
        seconds, memory = self.seconds_left(step), peak_memory_mb()
        left = "-" if seconds is None else str(timedelta(seconds=round(seconds)))
        if seconds is not None and not self._evaluation_s and self._evaluations(step):
            left += " + evaluations"  # none of which was timed yet
        words = [*loss_words(losses), f"{images_per_s:.1f} images/s"]
        words += [] if memory is None else [f"{memory / 1024:.1f} GiB"]
        words += [f"data {data_share:.0%}"] if data_share > SLOW_DATA else []
        if self.moves:
            self._numbers = "  ".join(words)
            self.update(self._task, completed=step, description=f"epoch {epoch}", left=left)
            return
        now = self._clock()
        if now < self._due and step < self._total:
            return
        if self._due > 0:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._due = now + self._pause
        lead = (f"{datetime.now():%Y-%m-%d %H:%M:%S}", f"epoch {epoch}", f"step {step}/{self._total}")
        self.say("  ".join((*lead, *words, f"ETA {left}")))

    def expect(self, step_s: float) -> None:
        """Tells the seconds of a step, as estimated: the time left is told by it until two steps are done."""
        self._expected = step_s

    def evaluated(self, seconds: float) -> None:
        """Tells how long an evaluation took."""
        self._evaluation_s.append(seconds)
        self._paused += seconds if self._first else 0.0

    def seconds_left(self, step: int) -> float | None:
        """The seconds left after a step, at the pace since the first step that was seen; None while that is not known.

        Checkpoints count, as do evaluations, by their number and the mean time of those that were done. The first
        step, which compiles kernels and starts workers, does not.
        """
        first, begun = self._first = self._first or (step, self._clock())
        pace = self._expected
        if step > first:
            pace = (self._clock() - begun - self._paused) / (step - first)
        if pace is None:
            return None
        each = sum(self._evaluation_s) / max(1, len(self._evaluation_s))
        return (self._total - step) * pace + self._evaluations(step) * each

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def loss_words(losses: dict[str, float]) -> list[str]:
    """The total, and the terms of the last layer; of a detector with other terms than the family's, those it has."""
    terms = {name: word for name, word in _TERMS.items() if name in losses}
    terms = terms or {name: name.removeprefix("loss_") for name in losses if name.startswith("loss_")}
    return [f"loss {losses['loss']:.2f}", *(f"{word} {losses[name]:.3f}" for name, word in terms.items())]
