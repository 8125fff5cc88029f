"""``msdeform bench startup``: CPU time of a command before it does anything: ``--help`` and two kinds of mistakes.

Each is a process of its own, run once to warm up and then several times: user and system time of the process, which
other processes slow less than they slow the clock on the wall. A typo is the command's first option with a letter left
out; out of range is the first value that the command refuses: a negative number, a word that is no choice, a file that
does not exist. Nothing else of a command is run.
"""

import contextlib
import dataclasses
import io
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ...cli import COMMANDS
from ...common.options import Positional
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import aligned
from ..options import StartupOptions
from .tables import WAYS, startup_table

PYTHON = "python -c pass"
"""what all of them include"""
# what decides these times, beside what decides all
CODE = (
    *("*/options.py", "*/*/options.py", "train/config/*.py", "cli.py", "common/*.py"),
    *("msdeform/cli.py", "msdeform/common/*.py"),
)
# what to try for options of these types
_WRONG: dict[str, tuple[type, ...]] = {"-1": (int, float), "no-such-word": (str,), "no/such/file": (Path,)}


class Try(NamedTuple):
    """One command line."""

    program: str
    """the command's name, or `PYTHON`"""
    way: str
    """one of `WAYS`"""
    words: list[str]
    """after ``python``"""
    status: int
    """what it has to end with"""


def run(options: StartupOptions) -> int:
    """``msdeform bench startup``: measures, prints, and on request records; returns 1 where a command answered with
    another exit status than it has to."""
    results = open_results("msdeform bench startup", options, torch.device("cpu"), measured=CODE, again=True)
    for one in tries(options.commands or tuple(COMMANDS)):
        print(f"{one.program}, {one.way}", file=sys.stderr, flush=True)
        results.add(measured(one, options.times))
    results.report()
    print("CPU milliseconds\n")
    print(aligned(startup_table(results.rows), 1))
    return 1 if any(row["failure"] is not None for row in results.rows) else 0


def tries(programs: Sequence[str]) -> Iterator[Try]:
    """What is run, in order. A command that refuses no value has only the first two ways."""
    yield Try(PYTHON, WAYS[0], ["-c", "pass"], 0)
    for program in programs:
        words, options = ["-m", "msdeform", *program.split()], COMMANDS[program].known_options()
        flags = [option for option in options if option.flag.startswith("--")]
        typo = next((option.flag for option in flags if len(option.flag) > 4), "--help")[:-1]
        yield Try(program, WAYS[0], [*words, "--help"], 0)
        yield Try(program, WAYS[1], [*words, typo], 2)
        needed: list[str] = []
        for option in options:
            if option.default is dataclasses.MISSING:
                value = "." if Path in option.kinds else "word"
                needed += [value] if option.mark(Positional) else [option.flag, value]
        wrong = (
            [*needed, option.flag, value]
            for value, kinds in _WRONG.items()
            for option in flags
            if any((kind if isinstance(kind, type) else str) in kinds for kind in option.kinds)  # a choice is a word
        )
        refused = next((words for words in wrong if _refuses(program, words)), None)
        if refused is not None:
            yield Try(program, WAYS[2], [*words, *refused], 2)


def _refuses(program: str, words: list[str]) -> bool:
    """Whether a command line ends with status 2 and a sentence that begins with its last option."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            COMMANDS[program].read(words, f"msdeform {program}")
    except SystemExit as stop:
        return stop.code == 2 and said.getvalue().startswith(f"msdeform {program}: {words[-2]}:")
    except (ValueError, OSError):
        return False
    return False


def measured(one: Try, times: int) -> Row:
    """The row of one command line."""
    taken, failure = [], None
    for _ in range(times + 1):
        seconds, status, last = cpu_seconds([sys.executable, *one.words])
        taken.append(1e3 * seconds)
        if status != one.status:
            failure = f"ended with status {status}, expected {one.status}: {last}"
            break
    known = taken[1:] if failure is None else []
    return {
        "kind": "startup",
        "program": one.program,
        "way": one.way,
        "words": " ".join(one.words),
        "cpu_ms": statistics.median(known) if known else None,
        "cpu_ms_each": [round(ms, 1) for ms in known],
        "failure": failure,
    }


def cpu_seconds(command: Sequence[str]) -> tuple[float, int, str]:
    """User and system time of a process and its children, its exit status, and the last line that it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, answer.returncode, (answer.stdout + answer.stderr).strip().rpartition("\n")[2]
