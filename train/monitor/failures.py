"""Sentences on what ends long runs: memory, disks, worker processes; and how such a run is gone on with."""

import errno
import os
from pathlib import Path

import torch

from ...common.options import command
from ...models.weights.formats import checkpoints_in
from ..engine.memory import what_to_lower


def how_to_resume(out: Path) -> str:
    """The command that goes on with the run in a folder; the end of a sentence."""
    files = checkpoints_in(out)
    return f"resume it with: {command('train', '--resume', files[-1])}" if files else "there is no checkpoint yet"


def failure_sentence(error: Exception, out: Path, step: int, batch_size: int) -> str | None:
    """What ended the run in a folder, and what to do, in a sentence; None for anything but what long runs meet."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in first:
        what = f"out of memory at step {step} with --batch-size {batch_size}: {what_to_lower(batch_size)} ({first})"
    elif "DataLoader worker" in first:
        what = (
            f"a process that loads images was killed at step {step}, as a rule for want of memory: try fewer "
            f"--workers, or less --cache-images ({first})"
        )
    elif (full := _no_room(error)) is not None:
        what = f"no room to write {full.filename or out} at step {step} ({os.strerror(full.errno or errno.ENOSPC)})"
    else:
        return None
    return f"{what}; {how_to_resume(out)}"


def _no_room(error: BaseException | None) -> OSError | None:
    """The error of a full disk that is, or led to, this one: torch.save covers it with one of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None
