"""Other people's code in a process of its own: one that crashes or hangs ends itself, and not the run.

The child (:func:`serve`) gets a request as JSON on its standard input and answers with lines of JSON on a pipe of its
own, so that what it prints is no answer. Each answer has to come within a limit; the child is killed, with all its
children, when one does not.
"""

import contextlib
import datetime
import json
import os
import queue
import signal
import subprocess
import sys
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


def answers(module: str, request: Message, *, start_limit: float, limit: float) -> Iterator[Message]:
    """What ``python -m module FD`` answers to a request, one by one.

    Args:
        module: calls :func:`serve`.
        start_limit: seconds until the first answer.
        limit: seconds until each of the others, and until it ends after the last.

    Raises:
        ChildFailed: it ended with an error, or a limit passed.
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+") as errors, os.fdopen(reading) as pipe:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(writing)],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            pass_fds=[writing],
            start_new_session=True,
            text=True,
        )
        os.close(writing)
        try:
            yield from _talk(child, pipe, json.dumps(request), start_limit, limit)
            if child.returncode != 0:
                raise ChildFailed(f"{_ended(child.returncode)}{_last_line(errors)}")
        finally:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # its own session: nobody else's processes
                child.wait()


def serve(respond: Callable[[Message, Answer], None]) -> None:
    """The child's side: `respond` gets the request on standard input, and writes its answers, one a call, to the file
    descriptor that the command line names."""
    watch_parent()
    request = json.load(sys.stdin)
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as out:
        respond(request, lambda **message: print(json.dumps(message), file=out))


def watch_parent() -> None:
    """End this process when the one that started it is gone: a run that was killed leaves nothing on the device."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
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


def _talk(
    child: "subprocess.Popen[str]", pipe: IO[str], request: str, start_limit: float, limit: float
) -> Iterator[Message]:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # one that crashed before it read
        child.stdin.write(request)
        child.stdin.close()
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in pipe:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    allowed = start_limit
    try:
        while (line := lines.get(timeout=allowed)) is not None:
            yield json.loads(line)
            allowed = limit
        child.wait(allowed)
    except (queue.Empty, subprocess.TimeoutExpired):
        raise ChildFailed(f"no answer within {allowed:g} s: stopped") from None


def _ended(status: int) -> str:
    if status < 0:
        return f"crashed with signal {-status} ({signal.Signals(-status).name})"
    return f"ended with status {status}"


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""
