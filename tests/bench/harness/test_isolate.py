"""A process of its own ends when nobody waits for it any more."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.house.project import ROOT


def test_a_worker_ends_when_the_run_that_started_it_is_gone(tmp_path: Path) -> None:
    """A run that is killed outright cannot end its workers, which have sessions of their own."""
    code = """
import subprocess, sys
child = "from msdeform.bench.harness.isolate import *; watch_parent(); print('up', flush=True); time.sleep(60)"
one = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
one.stdout.readline()
print(one.pid, flush=True)
one.wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 15
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.2)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
