"""Other people's code in a process of its own: one that crashes or hangs ends itself, and not the run."""

import contextlib
import datetime
import multiprocessing
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

Message = dict[str, Any]
Answer = Callable[..., object]


class ChildFailed(Exception):
    """A child crashed, or did not answer in time; the message says which."""


def answers(respond: Callable[..., None], *request: object, start_limit: float, limit: float) -> Iterator[Message]:
    """What ``respond(answer, *request)`` answers in a new process, one by one.

    Args:
        respond: function of a module; each ``answer(name=value, ...)`` that it calls is a message. What it prints is
            none.
        start_limit: seconds until the first answer.
        limit: seconds until each of the others, and until it ends after the last.

    Raises:
        ChildFailed: it ended with an error, or a limit passed. It is killed then, with all its children.
    """
    context = multiprocessing.get_context("spawn")
    reading, writing = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r", errors="replace") as printed, reading:
        child = context.Process(target=_serve, args=(respond, request, writing, printed.name))
        child.start()
        writing.close()
        allowed = start_limit
        try:
            with contextlib.suppress(EOFError):
                while reading.poll(allowed):
                    yield reading.recv()
                    allowed = limit
                raise ChildFailed(f"no answer within {allowed:g} s: stopped")
            child.join(allowed)
            if child.exitcode is None:
                raise ChildFailed(f"not ended within {allowed:g} s: stopped")
        finally:
            if child.is_alive() and child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # its own session: nobody else's processes
                child.kill()  # one that has no session yet
                child.join()
        if child.exitcode < 0:
            raise ChildFailed(f"crashed with signal {-child.exitcode} ({signal.Signals(-child.exitcode).name})")
        if child.exitcode > 0:
            last = printed.read().strip().rpartition("\n")[2].strip()
            raise ChildFailed(f"ended with status {child.exitcode}{last and f': {last}'}")


def _serve(respond: Callable[..., None], request: tuple[object, ...], writing: Any, printed: str) -> None:
    """The child's side, in a session of its own; what it prints goes to a file."""
    os.setsid()
    watch_parent()
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    respond(lambda **message: writing.send(message), *request)


def watch_parent(*, group: bool = False) -> None:
    """End this process when the one that started it is gone: a run that was killed leaves nothing on the device.

    `group`: with all others of its process group, which it has to lead.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        if group and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Stopped(Exception):
    """A command was not done within its limit, and was stopped with all its children."""


def logged(command: list[str], log: Path, limit: float, title: str) -> tuple[int, str]:
    """Run a command for at most `limit` seconds; what it prints is appended to a file as it comes, and shown here.

    Returns its status and the last line it printed.

    Raises:
        Stopped: it was not done within `limit`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    last = [""]
    with log.open("a") as file:
        file.write(f"\n== {title}, {datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')}\n")
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        assert child.stdout is not None

        def copy(lines: IO[str]) -> None:
            for line in lines:
                file.write(line)
                file.flush()
                print(line, end="", flush=True)
                last[0] = line.strip() or last[0]

        reader = threading.Thread(target=copy, args=(child.stdout,), daemon=True)
        reader.start()
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            raise Stopped(f"not done after {limit:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its own session: nobody else's processes
            child.wait()
            reader.join(5)
    return child.returncode, last[0]
