"""What a run leaves behind to look at: log.jsonl, and the same numbers in TensorBoard and Weights & Biases."""

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ..visual.boxes import save_picture
from .loggers import TensorBoard, WeightsAndBiases, tagged

# numbers that JSON has none of, and their names in a log
_NOT_FINITE = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}


class RunLog:
    """Appends events to ``folder/log.jsonl``, one JSON object a line, and numbers to the loggers asked for.

    Each line has an ``event``: start, step, epoch (with the metrics of an evaluation), nonfinite, resume, end; and its
    ``time``, in seconds since 1970. A step's ``data_s`` and ``step_s`` are the seconds that one step waited for images
    and computed, the mean of the ``steps`` since the line before; lines without ``steps``, of older versions, hold
    their sums.

    Args:
        folder: of the run; made if it is not there.
        tensorboard: write TensorBoard's files beside the log.
        wandb: project of Weights & Biases to log to.
        settings: of the run, shown there.
        step: of the checkpoint that the run goes on from; points after it, which are about to be made again, are
            hidden in TensorBoard.

    Raises:
        ValueError: the package of Weights & Biases is not installed.
        RuntimeError: it would not start a run.
        OSError: the folder cannot be written to, or the disk is full; so do all methods, in one sentence.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool,
        wandb: str | None = None,
        settings: dict[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        self.folder = folder
        self._loggers: list[TensorBoard | WeightsAndBiases] = []
        with self._explained():
            if wandb is not None:
                self._loggers.append(WeightsAndBiases(folder, wandb, settings or {}, step))
            folder.mkdir(parents=True, exist_ok=True)
            if tensorboard:
                self._loggers.append(TensorBoard(folder, step))
            # a line is one write, unbuffered: what fails is not tried again when the file is closed
            self._file = open(folder / "log.jsonl", "a+b", buffering=0)  # noqa: SIM115  # closed by __exit__
            if self._file.seek(0, os.SEEK_END):
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":  # a kill has cut its last line short
                    self._append(b"\n")

    def write(self, event: str, **values: Any) -> None:
        """One line; a number that is not finite, which JSON cannot hold, is written as a string.

        Of a step and an epoch, the numbers go to the loggers too.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        line = json.dumps(json.loads(line, parse_constant=_NOT_FINITE.get))
        with self._explained():
            self._append(line.encode() + b"\n")
            if numbers := tagged(event, values):
                for logger in self._loggers:
                    logger.numbers(numbers, values["step"])

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """Shows a picture on the loggers, and keeps it as ``folder/pictures/NAME-STEP.jpg``."""
        with self._explained():
            save_picture(image, self.folder / "pictures" / f"{name.replace('/', '-')}-{step:08d}.jpg")
            for logger in self._loggers:
                logger.picture(name, image, step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._file.close()
        for logger in self._loggers:
            # what ended the run matters more than why its last points cannot be written
            with self._explained() if kind is None else suppress(Exception):
                logger.close()

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        rest = memoryview(line)
        try:
            while rest:  # a disk that fills up takes a part
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):  # no half line
                self._file.truncate(size)
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"no space left to log to {self.folder}: {os.strerror(error.errno)}; "
                "once there is, the run can be resumed from its last checkpoint"
            ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log, in order; lines cut short by a kill are left out."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            events.append(json.loads(line))
    return events
