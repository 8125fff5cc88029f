"""Training runs of a benchmark: each ``msdeform train`` in a process of its own, and the numbers in its log."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ....train.engine.signals import STOPPED
from ....train.monitor.history import History
from ....train.monitor.run_log import read_log
from ...harness.records import Row
from . import spread

_GRACE = 180.0  # seconds that a run may take to end its evaluation, or its step, and to save
# a run that outlived its killed benchmark would slow whatever is measured next
_WATCHED = """
import sys
from msdeform.bench.harness.isolate import watch_parent
from msdeform.cli import main
watch_parent()
sys.exit(main(sys.argv[1:]))
"""
NUMBERS = ("steps", "ap", "ap50", "loss", "images_per_second", "seconds", "peak_mb", "loss_curve", "ap_curve")


def finished(run: Path) -> bool:
    """Did a run in this folder come to its end?"""
    log = run / "log.jsonl"
    return log.is_file() and any(event["event"] == "end" for event in read_log(log))


def numbers(run: Path) -> Row:
    """What came of a finished run, and its curves, from its log.

    ``ap``, ``ap50``: of the last evaluation. ``loss``: mean over the steps logged since the evaluation before it.
    ``images_per_second``: median of the logged steps, the first left out. ``seconds``: of the run, evaluations among
    them, without the time it stood still. Curves: lists of (step, value).
    """
    history = History.read(run)
    last = history.evaluations[-1]
    before = history.evaluations[-2]["step"] if len(history.evaluations) > 1 else 0
    steps, losses = history.curve("loss")
    speeds, memory = history.curve("images_per_s")[1], history.curve("memory_mb")[1]
    late = losses[steps > before]
    return {
        "steps": last["step"],
        "ap": last["AP"],
        "ap50": last["AP50"],
        "loss": float(late.mean()) if len(late) else None,
        "images_per_second": float(np.median(speeds[1:] if len(speeds) > 1 else speeds)) if len(speeds) else None,
        "seconds": history.evaluations[-1]["hours"] * 3600,
        "peak_mb": float(memory.max()) if len(memory) else None,
        "loss_curve": spread.thinned(steps, losses),
        "ap_curve": spread.thinned(*history.curve("AP")),
    }


def so_far(run: Path) -> Row:
    """How far a run came that was stopped: its steps and curves, and that it is no result; empty before its first
    logged step."""
    log = run / "log.jsonl"
    if not log.is_file():
        return {}
    history = History.read(run)
    steps, losses = history.curve("loss")
    if not len(steps):
        return {}
    curves = {"loss_curve": spread.thinned(steps, losses), "ap_curve": spread.thinned(*history.curve("AP"))}
    done = int(steps[-1])
    return {"steps": done, **curves, "failure": f"stopped after {done} steps, for want of time", "unfinished": True}


def train(words: Sequence[str], log: Path, end: float) -> tuple[bool, str | None]:
    """Runs ``msdeform train`` with these words in a process of its own, until it ends or the time is over.

    Returns whether it came to its end, and, where it failed, why. One that was stopped has saved, and can be resumed.
    """
    status, said = _apart([sys.executable, "-c", _WATCHED, "train", *words], log, end)
    # one that was told to stop before it had anything to save has not failed
    killed = time.monotonic() >= end and status in (-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGKILL)
    if status == STOPPED or killed:
        return False, None
    return status == 0, None if status == 0 else said or f"ended with status {status}"


def _apart(command: list[str], log: Path, end: float) -> tuple[int, str]:
    """Runs a command in a process of its own, asks it to stop when the time is over, and kills one that does not end.

    Returns its status and the last line that it printed; all that it prints is appended to ``log``.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        # a Ctrl-C is ours alone: the run is then told once, by the signal below
        child = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, end - time.monotonic()))
        finally:
            if child.poll() is None:
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_GRACE)
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # its own session: nobody else's processes
                child.wait()
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return child.returncode, lines[-1] if lines else ""
