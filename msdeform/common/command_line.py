"""Reads a command line into a dataclass of options: every mistake is one sentence that names the option."""

import dataclasses
import inspect
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .fields import Option, build, named, options_of
from .options import Bare, Positional, Repeated
from .text import suggest

T = TypeVar("T")
Advice = Callable[[str], str | None]


def parse(
    options: type[T],
    words: Sequence[str],
    program: str,
    default: T | None = None,
    *,
    advice: Advice = lambda flag: None,
) -> T:
    """Reads a command line into a dataclass, whose class variable ``epilog``, if any, is what ``--help`` ends with.

    A wrong one ends the process with status 2 and one sentence on stderr; ``--help`` ends it with status 0.

    Args:
        options: the dataclass.
        words: those after the command's name.
        program: that name, for the usage line and before each error.
        default: values for what is not given.
        advice: what to say of an unknown option that one may expect, or None.
    """
    known = list(options_of(options, default))
    given = _given(options, known, words, program, advice)
    values = _values(known, given, program)
    for option in known:
        if values[option.name] is dataclasses.MISSING:
            what = option.flag if option.mark(Positional) else f"{option.flag} {option.metavar}"
            _refuse(program, f"expected {what}: {_lower(option.help)}")
    try:
        read = build(options, values)
    except ValueError as error:
        _refuse(program, named(str(error), known))
    _check_paths(known, given, program)  # after the words: one that is wrong is wrong on every machine
    return read


def check(options: type[Any], words: Sequence[str], program: str, advice: Advice = lambda flag: None) -> None:
    """Ends the process, as `parse` would, for words that are wrong whatever else is said; arguments as its."""
    known = list(options_of(options))
    given = _given(options, known, words, program, advice)
    _values(known, given, program)
    _check_paths(known, given, program)


def _refuse(program: str, sentence: str) -> NoReturn:
    print(f"{program}: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(2)


def _given(
    options: type[Any], known: Sequence[Option], words: Sequence[str], program: str, advice: Advice
) -> dict[str, bool | list[str]]:
    """The words that each option was given, by its name, or what a switch was set to."""
    if {"-h", "--help"} & {*words}:
        print(_help(options, known, program))
        raise SystemExit(0)
    lists = f"{program} --help lists the options"
    flags = {flag: option for option in known for flag in option.flags}
    given: dict[str, Any] = {}
    spare: list[str] = []
    queue = deque(map(_dashed, words))
    while queue:
        word = queue.popleft()
        flag, equals, value = word.partition("=")
        if word == "--":
            spare += queue
            break
        if not re.match(r"--|-[A-Za-z]", word):
            spare.append(word)
            continue
        option = flags.get(flag)
        if option is None:
            unknown = f"unknown option {flag}"
            told = advice(flag)
            near = suggest(unknown, flag, flags if flag.startswith("--") else (), lists, most=2)
            _refuse(program, f"{unknown}; {told}" if told else near)
        if option.switch:
            if equals:
                _refuse(program, f"{flag}: expected no value, got {value!r}")
            given[option.name] = flag == option.flag
            continue
        repeated, bare = option.mark(Repeated), option.mark(Bare)
        taken = [value] if equals else []
        while not equals and queue and not queue[0].startswith("--"):
            taken.append(queue.popleft())
            equals = "" if option.several and not repeated else "="
        if not taken and bare is None:
            _refuse(program, f"{flag}: expected {option.metavar} after it")
        taken = taken or [str(bare and bare.value)]
        given[option.name] = [*given.get(option.name, []), *taken] if repeated else taken
    for option in known:
        if option.mark(Positional) and spare:
            given[option.name], spare = (spare, []) if option.several else (spare[:1], spare[1:])
    if spare:
        _refuse(program, f"unexpected argument {spare[0]!r}; {lists}")
    return given


def _values(known: Sequence[Option], given: Mapping[str, bool | list[str]], program: str) -> dict[str, Any]:
    """The value of each option by its name, its default where it is not given."""
    values = {option.name: option.default for option in known}
    for option in known:
        words = given.get(option.name, ())
        try:
            if isinstance(words, bool):
                values[option.name] = words
            elif words:
                read = tuple(option.value(word) for word in words)
                values[option.name] = read if option.several else read[0]
        except ValueError as error:
            _refuse(program, f"{option.flag}: {error}")
    return values


def _check_paths(known: Sequence[Option], given: Mapping[str, bool | list[str]], program: str) -> None:
    for option in known:
        words = given.get(option.name, ())
        try:
            for word in () if isinstance(words, bool) else words:
                option.check_path(word)
        except ValueError as error:
            _refuse(program, f"{option.flag}: {error}")


def _lower(sentence: str) -> str:
    """A sentence as it stands after a colon."""
    sentence = sentence.removesuffix(".")
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


def command(*words: object) -> str:
    """A command of ours as it can be typed here to run it: ``.venv/bin/msdeform predict ...`` where that is not on the
    PATH."""
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    started = Path(sys.argv[0])
    beside = Path(sys.executable).with_name("msdeform")
    script = started if started.name == "msdeform" else beside
    found = shutil.which("msdeform")
    if found and script.exists() and Path(found).samefile(script):
        return ["msdeform"]
    if not script.exists():
        return [os.path.basename(sys.executable) or "python", "-m", "msdeform"]
    near = os.path.relpath(script)
    return [str(script) if near.startswith("..") else near]


def _dashed(word: str) -> str:
    """``--batch_size=2`` as ``--batch-size=2``."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def _help(options: type[Any], known: Sequence[Option], program: str) -> str:
    """What ``--help`` prints: the options by group, in a column of their own, each beside its sentence."""
    arguments = [option for option in known if option.mark(Positional)]
    groups: dict[str, list[tuple[str, str]]] = {
        "arguments": [_help_line(option) for option in arguments],
        "options": [],
    }
    for option in sorted(known, key=lambda option: option.default is not dataclasses.MISSING):  # required ones first
        if option.flags:
            title = "options" if option.group is options else _title(option.group)
            groups.setdefault(title, []).append(_help_line(option))
    groups["help"] = [("-h, --help", "Show this and exit.")]
    column = min(32, 4 + max(len(head) for lines in groups.values() for head, _ in lines))
    names = [f"{option.flag} ..." if option.several else option.flag for option in arguments]
    needed = [option.default is dataclasses.MISSING for option in arguments]
    usage = [name if must else f"[{name}]" for name, must in zip(names, needed, strict=True)]
    parts = [" ".join([f"usage: {program}", *usage, "[OPTIONS]"]), inspect.getdoc(options) or ""]
    width = max(shutil.get_terminal_size().columns - 2 - column, 11)
    for title, lines in groups.items():
        shown = [f"{title}:"] if lines else []
        for head, text in lines:
            first, *more = textwrap.wrap(text, width) or [""]
            fits = len(head) <= column - 4
            shown += [f"  {head}".ljust(column) + first] if fits else [f"  {head}", " " * column + first]
            shown += [" " * column + line for line in more]
        parts += ["\n".join(shown)] if shown else []
    return "\n\n".join([*parts, getattr(options, "epilog", "").rstrip("\n")]).rstrip("\n") + "\n"


def _help_line(option: Option) -> tuple[str, str]:
    """An option as ``--help`` shows how it is typed, and what it says of it."""
    shown = default_text(option)
    return typed(option), f"{option.help} ({shown})" if shown else option.help


def typed(option: Option) -> str:
    """How an option is typed: ``--size N``, ``--names TEXT [TEXT ...]``, ``--x, --no-x``."""
    head = ", ".join(option.flags) or option.flag
    if option.flags and not option.switch:
        name = option.metavar
        many = f"{name} [{name} ...]" if option.several and not option.mark(Repeated) else name
        head += f" [{name}]" if option.mark(Bare) else f" {many}"
    return head


def _title(group: type[Any]) -> str:
    """The first sentence of its docstring."""
    sentence = (inspect.getdoc(group) or group.__name__).split("\n\n")[0].split(". ")[0].removesuffix(".")
    return " ".join(sentence.split())


def default_text(option: Option) -> str:
    """The default of an option in words, such as ``default: 8``, or ``required``; nothing for one that says nothing."""
    default = option.default
    if default is dataclasses.MISSING:
        return "required"
    if default is None or default is False or default == ():
        return ""
    if default is True:
        return "default: on"
    return f"default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}"
