"""What a run leaves behind to look at: log.jsonl, TensorBoard, and a line on the terminal that moves."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any


class RunLog:
    """Appends events to ``folder/log.jsonl``, one JSON object a line, and numbers to TensorBoard.

    Each line has an ``event``: start, step, epoch (with the metrics of an evaluation), nonfinite, resume, end.
    """

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115  # closed by __exit__
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, event: str, **values: Any) -> None:
        """One line; a number that is not finite, which JSON cannot hold, is written as a string."""
        self._file.write(json.dumps(_jsonable({"event": event, **values})) + "\n")
        self._file.flush()
        if self._board is not None and event in ("step", "epoch"):
            for name, value in values.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._board.add_scalar(f"{event}/{name}", value, values["step"])

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log, in order; a last line cut short by a kill is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


class Display:
    """A bar on stderr with the loss and its terms, images per second and the time left."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def update(self, step: int, epoch: str, losses: dict[str, float], images_per_s: float) -> None:
        """Moves to ``step``."""
        terms = "  ".join(
            f"{short} {losses[name]:.3f}"
            for short, name in (("class", "loss_ce"), ("L1", "loss_bbox"), ("GIoU", "loss_giou"))
            if name in losses
        )
        loss = f"loss {losses['loss']:.2f}  {terms}  {images_per_s:.1f} images/s"
        self._progress.update(self._task, completed=step, description=f"epoch {epoch}", terms=loss)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def display(start: int, total: int, *, shown: bool) -> Iterator[Display]:
    """Shows the bar while the block runs."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    console = Console(stderr=True, quiet=not shown)
    # a file gets the lines of `say`, not the bar
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=start, terms="")
        yield Display(progress, task)
