"""Wishes to stop, from a scheduler or the keyboard: remembered until a step is done."""

import os
import signal
import threading
import time
from types import FrameType

# what a run that was told to stop, and has saved, ends with: sysexits' "try again later", for a script to requeue on
STOPPED = 75
CTRL_C = 130

# Slurm sends SIGTERM or SIGUSR1 before it takes a node away, as --signal asks; torchrun passes SIGTERM on; a terminal
# that is closed sends SIGHUP
_ASKED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]

# seconds in which another Ctrl-C is the same one: torchrun passes on what the terminal has sent to all
_ECHO = 1.0


class StopSignals:
    """While the block runs, such signals and a first Ctrl-C are only remembered; a second Ctrl-C stops at once.

    Except for a SIGHUP that is ignored, as nohup has it: the run then outlives its terminal.
    """

    def __init__(self) -> None:
        self.caught: str | None = None
        """The first that came, by name."""
        self._interrupted: float | None = None
        self._before: dict[signal.Signals, object] = {}

    @staticmethod
    def status(name: str) -> int:
        """What a process ends with that such a signal stopped."""
        return CTRL_C if name == "SIGINT" else STOPPED

    def _remember(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self.caught = self.caught or name
        if name != "SIGINT":
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            # not print: it may be what was interrupted, and cannot be entered twice
            os.write(2, b"stopping when this step is done; Ctrl-C again stops at once\n")
        elif now - self._interrupted > _ECHO:
            raise KeyboardInterrupt

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
            ours = [one for one in _ASKED if one.name != "SIGHUP" or signal.getsignal(one) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._remember) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned


def leave_to_parent() -> None:
    """For worker processes: a scheduler and the keyboard signal all of a job's processes, and the parent decides."""
    for number in _ASKED:
        signal.signal(number, signal.SIG_IGN)
