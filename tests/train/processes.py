"""Several processes on this machine, as torchrun would start them, each of which calls a function of a test."""

import contextlib
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

# a server that has imported what they need: each starts in a moment, and inherits no thread of the test's
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["msdeform.train.engine.run", "tests.train.processes"])


@dataclass
class Ended:
    """How a process ended."""

    result: Any = None
    error: str = ""
    """What it would have told the user; with a traceback if that is no sentence."""
    code: int | None = None
    """Of sys.exit, or minus the signal that killed it."""
    seconds: float = 0.0


@dataclass
class Started:
    """A process that runs."""

    process: Any
    answers: Connection
    ended: Ended = field(default_factory=Ended)

    def wait(self, timeout: float = 120.0) -> Ended:
        """Its end; killed when it takes too long."""
        begun = time.monotonic()
        if self.answers.poll(timeout):
            with contextlib.suppress(EOFError):
                self.ended = self.answers.recv()
        self.process.join(max(1.0, timeout - (time.monotonic() - begun)))
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            self.ended.error += f" (took more than {timeout} s)"
        if self.ended.code is None:
            self.ended.code = self.process.exitcode
        return self.ended


def start(function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None) -> Started:
    """Starts one process that calls ``function``."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_call, args=(theirs, environment or {}, function, arguments))
    process.start()
    theirs.close()
    return Started(process, ours)


def start_processes(size: int, function: Callable[..., Any], *arguments: Any, nodes: int = 1) -> list[Started]:
    """Starts processes as torchrun would, on ``nodes`` machines that are all this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = size // nodes
    return [
        start(
            function,
            *arguments,
            environment={
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank % here),
                "LOCAL_WORLD_SIZE": str(here),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(size)
    ]


def run_processes(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Ended]:
    """Runs processes to their end."""
    return [process.wait(timeout) for process in start_processes(size, function, *arguments)]


def _call(
    answers: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # for workers: the system's own, not that of this module
    os.environ.update(environment)
    begun, ended = time.monotonic(), Ended()
    try:
        ended.result, ended.code = function(*arguments), 0
    except SystemExit as end:
        ended.code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except (ValueError, OSError, RuntimeError) as error:
        ended.error, ended.code = str(error), 1
    except BaseException:
        ended.error, ended.code = traceback.format_exc(), 1
    ended.seconds = time.monotonic() - begun
    answers.send(ended)
    answers.close()
    sys.stdout.flush()
    os._exit(0)
