"""What every command of this package shares: dataclasses to flags, and a progress bar."""

import dataclasses
import difflib
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


Advice = Callable[[str], str | None]


def parse(
    options: type[T],
    argv: list[str] | None,
    program: str,
    default: T | None = None,
    *,
    advice: Advice = lambda flag: None,
    epilog: str = "",
) -> T:
    """Reads flags into a dataclass; a wrong flag ends the process with status 2 and names the nearest right ones.

    Args:
        options: the dataclass; nested dataclasses become groups of flags without a prefix.
        argv: the words after the command's name.
        program: that name, for the usage line.
        default: values for flags not given.
        advice: half a sentence for an unknown flag that one may expect, or None.
        epilog: what ``--help`` ends with.
    """
    import tyro  # what trains and measures without a command line does without it

    words = list(sys.argv[1:] if argv is None else argv)
    refuse_unknown_flags(options, words, program, advice)
    helping = bool({"-h", "--help"} & {*words})
    # {None}|PATH is right, and hard to read
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone) if helping else (tyro.conf.OmitArgPrefixes,)
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        return tyro.cli(options, prog=program, args=words, config=config, **extra)
    except SystemExit as stop:
        if helping and epilog and not stop.code:
            print(epilog)
        raise


def _flags(options: type[Any]) -> Iterator[str]:
    """Every flag of a dataclass and of those nested in it."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _flags(typing.cast(type, kind))
            continue
        name = field.name.replace("_", "-")
        yield from (f"--{name}", f"--no-{name}") if kind is bool else (f"--{name}",)


def refuse_unknown_flags(
    options: type[Any], words: list[str], program: str, advice: Advice = lambda flag: None
) -> None:
    """Ends the process with status 2 for a flag that the dataclass does not have. Arguments as those of `parse`."""
    # tyro says which flag is unknown, but its advice misses most slips of one letter
    flags = list(_flags(options))
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if not flag.startswith("--") or flag in (*flags, "--help", "--"):
            continue
        near = difflib.get_close_matches(flag, flags, n=2, cutoff=0.6)
        nearest = f"did you mean {' or '.join(near)}?" if near else f"{program} --help lists the options"
        print(f"{program}: unknown option {flag}; {advice(flag) or nearest}", file=sys.stderr)
        raise SystemExit(2)


@contextmanager
def progress_bar(what: str, total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """A bar on stderr while the block runs; call what it yields once for each thing done."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
