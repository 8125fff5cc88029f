"""A run on the terminal: a bar that moves, or, where the output is a file, a line every so often."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import torch

# seconds between lines in a file: doubled from the first to the last, so that a short run shows some as well
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
# share of a step spent waiting for data, above which it is said
SLOW_DATA = 0.2

_TERMS = (("class", "loss_ce"), ("L1", "loss_bbox"), ("GIoU", "loss_giou"))


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


class Pace:
    """The time left, at the pace since the first step that was seen: evaluations and checkpoints count, as they will.

    The first step itself, which compiles kernels and starts workers, does not.
    """

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._total = total
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def left(self, step: int) -> str:
        """After ``step``, as H:MM:SS; - as long as there is but one step to go by."""
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        done, seconds = step - self._first[0], now - self._first[1]
        return str(timedelta(seconds=round((self._total - step) * seconds / done))) if done > 0 else "-"


class Display:
    """Shows a run while it goes on; this one shows nothing.

    Args:
        total: steps of the run.
        clock: seconds, from any origin.
    """

    def __init__(self, total: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._pace = Pace(total, clock)

    def update(
        self,
        step: int,
        epoch: str,
        losses: dict[str, float],
        images_per_s: float,
        *,
        data_share: float | None = None,
    ) -> None:
        """Moves to ``step``.

        Args:
            step: optimizer steps done.
            epoch: such as 3/50.
            losses: ``loss`` and its terms; those of the last layer are shown.
            images_per_s: of late.
            data_share: part of the step's time, 0 to 1, spent waiting for data.
        """
        words = (*loss_words(losses), *cost_words(images_per_s, data_share))
        self._show(step, f"epoch {epoch}", words, self._pace.left(step))

    def _show(self, step: int, epoch: str, words: tuple[str, ...], left: str) -> None:
        pass

    def say(self, line: str) -> None:
        """Prints a line, above a bar if there is one."""


class Bar(Display):
    """On a terminal."""

    def __init__(self, progress: Any, task: Any, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(total, clock)
        self._progress = progress
        self._task = task

    def _show(self, step: int, epoch: str, words: tuple[str, ...], left: str) -> None:
        self._progress.numbers = "  ".join(words)
        self._progress.update(self._task, completed=step, description=epoch, left=left)

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


class Lines(Display):
    """In a file, such as Slurm's: the first step, the last, and between them at most a line a minute."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(total, clock)
        self._pause = FIRST_PAUSE
        self._due = -float("inf")

    def _show(self, step: int, epoch: str, words: tuple[str, ...], left: str) -> None:
        now = self._clock()
        if now < self._due and step < self._total:
            return
        if self._due > 0:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._due = now + self._pause
        said = (f"{datetime.now():%Y-%m-%d %H:%M:%S}", epoch, f"step {step}/{self._total}", *words, f"ETA {left}")
        self.say("  ".join(said))

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def loss_words(losses: dict[str, float]) -> tuple[str, ...]:
    """The total, and the terms of the last layer; of a detector with other terms than the family's, those it has."""
    terms = _TERMS if any(name in losses for _, name in _TERMS) else _other_terms(losses)
    return (f"loss {losses['loss']:.2f}", *(f"{short} {losses[name]:.3f}" for short, name in terms if name in losses))


def _other_terms(losses: dict[str, float]) -> tuple[tuple[str, str], ...]:
    return tuple((name.removeprefix("loss_"), name) for name in losses if name.startswith("loss_"))


def cost_words(images_per_s: float, data_share: float | None) -> tuple[str, ...]:
    """Speed, memory, and what of the time goes into waiting for data, if that is much."""
    memory = peak_memory_mb()
    words = [f"{images_per_s:.1f} images/s"]
    if memory is not None:
        words.append(f"{memory / 1024:.1f} GiB")
    if data_share is not None and data_share > SLOW_DATA:
        words.append(f"data {data_share:.0%}")
    return tuple(words)


@contextmanager
def display(start: int, total: int, *, shown: bool) -> Iterator[Display]:
    """Shows steps ``start`` to ``total`` on stderr while the block runs; nothing at all unless ``shown``."""
    from rich.console import Console

    console = Console(stderr=True)
    if not shown:
        yield Display()
    # rich calls a file a terminal where FORCE_COLOR is set
    elif not (sys.stderr.isatty() and console.is_terminal) or console.is_dumb_terminal:
        yield Lines(total)
    else:
        with _two_lines(console) as progress:
            yield Bar(progress, progress.add_task("", total=total, completed=start, left="-"), total)


def _two_lines(console: Any) -> Any:
    """A bar, and the numbers in a line of their own below it, so that both fit into a narrow window."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class TwoLines(Progress):
        numbers = ""

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            yield Text(self.numbers, no_wrap=True, overflow="ellipsis")

    return TwoLines(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA {task.fields[left]}"),
        console=console,
        refresh_per_second=4,  # rendering takes time from the training
    )
