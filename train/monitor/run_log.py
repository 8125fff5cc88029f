"""What a run leaves behind to look at: log.jsonl, and pictures."""

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

# numbers that JSON has none of, and their names in a log
_NOT_FINITE = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}


class RunLog:
    """Appends events to ``folder/log.jsonl``, one JSON object a line.

    Each line has an ``event``: start, step, epoch (with the metrics of an evaluation), nonfinite, resume, end; and its
    ``time``, in seconds since 1970. A step's ``data_s`` and ``step_s`` are the seconds that one step waited for images
    and computed, the mean of the ``steps`` since the line before; lines without ``steps``, of older versions, hold
    their sums.

    Raises:
        OSError: the folder cannot be made or written to, or the disk is full; so do all methods, in one sentence.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            # a line is one write, unbuffered: what fails is not tried again when the file is closed
            self._file = open(folder / "log.jsonl", "a+b", buffering=0)  # noqa: SIM115  # closed by __exit__
            if self._file.seek(0, os.SEEK_END):
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":  # a kill has cut its last line short
                    self._append(b"\n")

    def write(self, event: str, **values: Any) -> None:
        """One line; a number that is not finite, which JSON cannot hold, is written as a string."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        line = json.dumps(json.loads(line, parse_constant=_NOT_FINITE.get))
        with self._explained():
            self._append(line.encode() + b"\n")

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """Keeps a picture as ``folder/pictures/NAME-STEP.jpg``."""
        with self._explained():
            save_picture(image, self.folder / "pictures" / f"{name.replace('/', '-')}-{step:08d}.jpg")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

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
