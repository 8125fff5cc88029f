"""Command lines out of dataclasses: every option a field, every mistake one sentence that names the option.

A field's type is what its option takes: ``str``, ``int``, ``float``, ``bool`` (``--x`` and ``--no-x``), ``Path``,
``Literal``, each of these or None, and tuples of them (several words after the option). The docstring under a field is
its help. `Annotated` says more: `Positional`, `Repeated`, `Reads`, `Writes`. A dataclass as a field is a group of
options in ``--help``; names have no prefix. What ``__post_init__`` refuses by a ValueError that begins with the field's
name is told as the option's mistake.

Nothing here imports more than the standard library: a slip is answered before PyTorch is loaded.
"""

import argparse
import ast
import dataclasses
import difflib
import functools
import glob
import inspect
import itertools
import math
import operator
import os
import re
import shlex
import shutil
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

T = TypeVar("T")
Advice = Callable[[str], str | None]


@dataclass(frozen=True)
class Positional:
    """A field that is an argument instead of an option; ``metavar`` is what ``--help`` calls it."""

    metavar: str = ""


@dataclass(frozen=True)
class Repeated:
    """A tuple whose option takes one value and may be given several times."""


@dataclass(frozen=True)
class Reads:
    """A path that must be there."""

    kind: Literal["file", "folder", "path"] = "path"
    words: tuple[str, ...] = ()
    """Words that may stand instead of a path."""
    patterns: bool = False
    """May it be a pattern, such as ``photos/**/*.jpg``, that matches something?"""


@dataclass(frozen=True)
class Writes:
    """A path that must be writable, or such that it can be made."""

    kind: Literal["file", "folder", "path"]


@dataclass(frozen=True)
class Bare:
    """An option that may stand without a value, and has this one then."""

    value: Any


@dataclass(frozen=True)
class Metavar:
    """What ``--help`` calls the value."""

    name: str


@dataclass(frozen=True)
class Form:
    """Text of a form: a regular expression, and what it means in words."""

    pattern: str
    expected: str


Device = Annotated[str, Form(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", "auto, cpu, cuda or cuda:N"), Metavar("DEVICE")]
ReadPath = Annotated[Path, Reads()]
ReadFile = Annotated[Path, Reads("file"), Metavar("FILE")]
ReadFolder = Annotated[Path, Reads("folder"), Metavar("DIR")]
WriteFile = Annotated[Path, Writes("file"), Metavar("FILE")]
WriteFolder = Annotated[Path, Writes("folder"), Metavar("DIR")]


class WrongValue(ValueError):
    """A word that an option cannot take; the message says what was expected and what came."""


def at_least(name: str, value: float | None, least: float, unit: str = "") -> None:
    """Raises ValueError, naming the option, for a number below ``least`` or one that is not finite."""
    if value is not None and not least <= value < math.inf:  # nor NaN
        number = "" if math.isfinite(value) else "a finite number, "
        raise ValueError(f"{name}: expected {number}at least {least:g}{unit and ' ' + unit}, got {value}")


def between(name: str, value: float | None, least: float, most: float) -> None:
    """Raises ValueError, naming the option, for a number outside a range whose ends belong to it."""
    if value is not None and not least <= value <= most:
        raise ValueError(f"{name}: expected a number from {least:g} to {most:g}, got {value}")


def nearest(what: str, name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not known: with the nearest that there are, or all."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near = near or [one for one in known if name and name in one][:3]
    return f"no {what} is called {name!r}; " + (
        f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    )


@dataclass(frozen=True)
class Option:
    """One field as an option."""

    name: str
    hint: Any
    """Its type, without `Annotated`."""
    marks: tuple[Any, ...]
    default: Any
    """`dataclasses.MISSING` where a value is required."""
    help: str
    group: type[Any]

    @property
    def flag(self) -> str:
        """As it is typed; an argument's name in ``--help``."""
        positional = self.mark(Positional)
        if positional is not None:
            return positional.metavar or self.name.upper().replace("_", "-")
        return "--" + self.name.replace("_", "-")

    def mark(self, kind: type[T]) -> T | None:
        return next((mark for mark in self.marks if isinstance(mark, kind)), None)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types of a value, or of each of several; `NoneType` among them where None may be said."""
        hint = typing.get_args(self.hint)[0] if self.several else self.hint
        return members(hint)

    @property
    def several(self) -> bool:
        return typing.get_origin(self.hint) is tuple

    @property
    def switch(self) -> bool:
        """Whether it takes no value: ``--x`` or ``--no-x``."""
        return bool in self.kinds

    @property
    def metavar(self) -> str:
        named = self.mark(Metavar)
        if named is not None:
            return named.name
        kind = next(kind for kind in self.kinds if kind is not types.NoneType)
        if typing.get_origin(kind) is Literal:
            return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
        return {int: "N", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")

    def value(self, word: str) -> Any:
        """A word as the option's type. Raises WrongValue."""
        for kind in self.kinds:
            if kind is types.NoneType and word == "None":
                return None
        kind = next(kind for kind in self.kinds if kind is not types.NoneType)
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            for choice in choices:
                if word == str(choice):
                    return choice
            near = difflib.get_close_matches(word, list(map(str, choices)), n=1, cutoff=0.6)
            raise WrongValue(
                f"expected {_either(list(map(str, choices)))}, got {word!r}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        if kind in (int, float):
            try:
                return kind(word)
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                raise WrongValue(f"expected {what}, got {word!r}") from None
        if kind is Path:
            if not word:  # the current folder to pathlib
                raise WrongValue("expected a path, got nothing")
            return Path(word).expanduser()
        form = self.mark(Form)
        if form is not None and not re.fullmatch(form.pattern, word):
            raise WrongValue(f"expected {form.expected}, got {word!r}")
        return word

    def check_path(self, word: str) -> None:
        """Raises WrongValue where the path that a word says is not there, or cannot be written."""
        path = Path(word).expanduser()
        reads, writes = self.mark(Reads), self.mark(Writes)
        try:
            matched = reads is not None and reads.patterns and any(glob.iglob(word, recursive=True))
            if reads is not None and word not in (*reads.words, "None") and not matched:
                _check_readable(path, reads.kind)
            if writes is not None and word != "None":
                check_writable(path, writes.kind)
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise WrongValue(f"cannot use {word}: {(error.strerror or str(error)).lower()}") from None


def members(hint: Any) -> tuple[Any, ...]:
    """The types that a union is of; another type by itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _check_readable(path: Path, kind: str) -> None:
    if not path.exists():
        what = {"file": "a file", "folder": "a folder", "path": "a file or folder"}[kind]
        raise WrongValue(f"expected {what}; {path} does not exist")
    if kind == "file" and path.is_dir():
        raise WrongValue(f"expected a file, got the folder {path}")
    if kind == "folder" and not path.is_dir():
        raise WrongValue(f"expected a folder, got the file {path}")
    if not os.access(path, os.R_OK):
        raise WrongValue(f"{path} may not be read by this user")


def check_writable(path: Path, kind: Literal["file", "folder", "path"]) -> None:
    """Raises WrongValue for a path that cannot be written, or made with the folders above it; writes nothing."""
    if kind == "file" and path.is_dir():
        raise WrongValue(f"expected a file to write, got the folder {path}")
    if path.exists() and not path.is_file() and not path.is_dir():  # a file put in its place would replace it
        raise WrongValue(f"expected a {'place' if kind == 'path' else kind} to write, got the device {path}")
    if kind == "folder" and path.exists() and not path.is_dir():
        raise WrongValue(f"expected a folder to write into, got the file {path}")
    if path.exists() and not os.access(path, os.W_OK):
        raise WrongValue(f"expected a place that can be written; {path} may not be written by this user")
    above = path.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    if above == path.absolute():
        return
    if not above.is_dir():
        raise WrongValue(f"expected a place that can be written; {above} is a file, and {path} would lie in it")
    if not os.access(above, os.W_OK | os.X_OK) or above.parts[:2] in (("/", "proc"), ("/", "sys")):
        raise WrongValue(f"expected a place that can be written; the folder {above} is not writable")


def options_of(kind: type[Any], default: Any = None) -> Iterator[Option]:
    """Every field of a dataclass and of those nested in it, in order.

    Args:
        kind: the dataclass.
        default: an instance whose values are the defaults; the fields' own when None.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    helps = _helps(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from options_of(typing.cast(type, hint), None if default is None else getattr(default, field.name))
            continue
        marks, hint = _stripped(hint)
        yield Option(field.name, hint, marks, _default(field, default), helps.get(field.name, ""), kind)


def _stripped(hint: Any) -> tuple[tuple[Any, ...], Any]:
    """What `Annotated` says of a type or of what it is made of, and the type without that."""
    if typing.get_origin(hint) is Annotated:
        marks, inner = _stripped(hint.__origin__)
        return (*hint.__metadata__, *marks), inner
    parts = [_stripped(part) for part in typing.get_args(hint)]
    marks = tuple(mark for inside, _ in parts for mark in inside)
    if not marks:
        return (), hint
    inner = tuple(part for _, part in parts)
    several = typing.get_origin(hint) is tuple
    return marks, types.GenericAlias(tuple, inner) if several else functools.reduce(operator.or_, inner)


def _default(field: dataclasses.Field[Any], default: Any) -> Any:
    if default is not None:
        return getattr(default, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _helps(kind: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and of those that it extends."""
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = _classes(sys.modules[base.__module__].__file__ or "").get(base.__name__, [])
        for line, after in itertools.pairwise(body):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    helps[line.target.id] = " ".join(text.value.split())
    return helps


@functools.cache
def _classes(file: str) -> dict[str, list[ast.stmt]]:
    """The bodies of a source file's classes by name."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


class Parser(argparse.ArgumentParser):
    """argparse's, except that an error is one sentence on stderr, with no usage before it; exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Options in a column of their own, of a width at which most fit on their line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


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
    parser, values, check_paths = _taken_apart(options, known, words, program, advice)
    for option in known:
        if values[option.name] is dataclasses.MISSING:
            what = option.flag if option.mark(Positional) else f"{option.flag} {option.metavar}"
            parser.error(f"expected {what}: {_lower(option.help)}")
    try:
        read = build(options, values)
    except ValueError as error:
        parser.error(named(str(error), known))
    check_paths()  # after the words: one that is wrong is wrong on every machine
    return read


def check(options: type[Any], words: Sequence[str], program: str, advice: Advice = lambda flag: None) -> None:
    """Ends the process, as `parse` would, for words that are wrong whatever else is said; arguments as its."""
    _, _, check_paths = _taken_apart(options, list(options_of(options)), words, program, advice)
    check_paths()


def _taken_apart(
    options: type[Any], known: Sequence[Option], words: Sequence[str], program: str, advice: Advice
) -> tuple[Parser, dict[str, Any], Callable[[], None]]:
    """The parser, the values by name, defaults among them, and what checks the paths that were given."""
    parser = _parser(options, known, program)
    words = [_dashed(word) for word in words]
    if {"-h", "--help"} & {*words}:
        print(parser.format_help())
        raise SystemExit(0)
    _refuse_unknown(parser, known, words, advice)
    given = vars(parser.parse_args(words))
    values = {option.name: option.default for option in known}
    told = [option for option in known if given[option.name] not in (None, [])]
    for option in told:
        try:
            values[option.name] = _read(option, given[option.name])
        except WrongValue as error:
            parser.error(f"{option.flag}: {error}")

    def check_paths() -> None:
        for option in told:
            try:
                for word in given[option.name] if option.several else [given[option.name]]:
                    if not isinstance(word, bool):
                        option.check_path(word)
            except WrongValue as error:
                parser.error(f"{option.flag}: {error}")

    return parser, values, check_paths


def _parser(options: type[Any], known: Sequence[Option], program: str) -> Parser:
    parser = Parser(
        prog=program,
        description=inspect.getdoc(options),
        epilog=getattr(options, "epilog", None),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    _fill(parser, known, options)
    return parser


def _lower(sentence: str) -> str:
    """A sentence as it stands after a colon."""
    sentence = sentence.removesuffix(".")
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


def _read(option: Option, given: Any) -> Any:
    if isinstance(given, bool):
        return given
    if not option.several:
        return option.value(given)
    return tuple(option.value(word) for word in given)


def build(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass, and those nested in it, out of values by name. Raises ValueError as their checks do."""
    hints = typing.get_type_hints(kind)
    made = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        hint = hints[field.name]
        nested = dataclasses.is_dataclass(hint)
        made[field.name] = build(typing.cast(type, hint), values) if nested else values[field.name]
    return kind(**made)


def named(sentence: str, known: Sequence[Option]) -> str:
    """An error's sentence; where it begins with the name of one of these options, with that as it is typed."""
    head = re.match(r"(?:--)?([A-Za-z][a-z_-]*)(?= '[^']*':|:)", sentence)
    for option in known:
        if head and head[1].replace("-", "_") == option.name:
            return option.flag + sentence[head.end() :]
    return sentence


def spelled(options: Any, without: Sequence[str] = ()) -> list[str]:
    """The words that say the same as an instance of a dataclass of options: those that are its defaults left out, and
    the fields named ``without``."""
    words: list[str] = []
    given = {option.name: option.default for option in options_of(type(options), options)}
    for option in options_of(type(options)):
        value = given[option.name]
        if value == option.default or option.name in without:
            continue
        if isinstance(value, bool):
            words.append(option.flag if value else f"--no-{option.name.replace('_', '-')}")
        elif option.mark(Positional):
            words = [*(map(str, value) if option.several else [str(value)]), *words]
        elif option.mark(Repeated):
            words += [word for each in value for word in (option.flag, str(each))]
        else:
            words += [option.flag, *(map(str, value) if option.several else [str(value)])]
    return words


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


def _fill(parser: Parser, known: Sequence[Option], options: type[Any]) -> None:
    groups: dict[type[Any], argparse._ArgumentGroup] = {}
    arguments = parser.add_argument_group("arguments")
    parser.usage = f"{parser.prog}{_positionals(known)} [OPTIONS]"
    for option in known:
        text = option.help.replace("%", "%%")
        shown = _shown(option.default)
        text += f" ({shown.replace('%', '%%')})" if shown else ""
        positional = option.mark(Positional)
        if positional is not None:
            nargs = "*" if option.several else "?"
            arguments.add_argument(option.name, metavar=option.flag, nargs=nargs, help=text, default=None)
            continue
        if option.group not in groups:
            title = "options" if option.group is options else _title(option.group)
            groups[option.group] = parser.add_argument_group(title)
        group = groups[option.group]
        if option.switch:
            group.add_argument(
                option.flag, action=argparse.BooleanOptionalAction, default=None, help=text, dest=option.name
            )
        elif option.several and option.mark(Repeated) is not None:
            group.add_argument(option.flag, action="append", metavar=option.metavar, help=text, dest=option.name)
        else:
            bare = option.mark(Bare)
            many = "+" if option.several else None if bare is None else "?"
            const = None if bare is None else str(bare.value)
            group.add_argument(
                option.flag, nargs=many, const=const, metavar=option.metavar, help=text, dest=option.name
            )
    parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="Show this and exit.")


def _positionals(known: Sequence[Option]) -> str:
    words = []
    for option in known:
        if option.mark(Positional):
            needed = option.default is dataclasses.MISSING
            name = f"{option.flag} ..." if option.several else option.flag
            words.append(name if needed else f"[{name}]")
    return "".join(f" {word}" for word in words)


def _title(group: type[Any]) -> str:
    """The first sentence of its docstring."""
    sentence = (inspect.getdoc(group) or group.__name__).split("\n\n")[0].split(". ")[0].removesuffix(".")
    return " ".join(sentence.split())


def _shown(default: Any) -> str:
    """A default as ``--help`` shows it; nothing for one that says nothing."""
    if default is dataclasses.MISSING:
        return "required"
    if default is None or default is False or default == ():
        return ""
    if default is True:
        return "default: on"
    return f"default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}"


def _refuse_unknown(parser: Parser, known: Sequence[Option], words: Sequence[str], advice: Advice) -> None:
    """Ends with status 2 at the first option there is not, or that lacks its value, which argparse looks at last."""
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    for place, word in enumerate(words):
        if word == "--":
            break
        flag, equals, _ = word.partition("=")
        if not flag.startswith("--"):
            if re.fullmatch(r"-[A-Za-z].*", word):
                parser.error(f"unknown option {word}; {parser.prog} --help lists the options")
            continue
        if flag not in flags:
            near = difflib.get_close_matches(flag, flags, n=2, cutoff=0.6)
            nearest = f"did you mean {' or '.join(near)}?" if near else f"{parser.prog} --help lists the options"
            parser.error(f"unknown option {flag}; {advice(flag) or nearest}")
        option = next((option for option in known if option.flag == flag), None)
        if option is None or option.switch:
            if equals:
                parser.error(f"{flag}: expected no value, got {word.partition('=')[2]!r}")
            continue
        if option.mark(Bare):
            continue
        following = words[place + 1 : place + 2]
        if not equals and (not following or (following[0].startswith("--") and following[0] != "--")):
            parser.error(f"{flag}: expected {option.metavar} after it")
    positionals = [option for option in known if option.mark(Positional)]
    spare = _spare(parser, words) if not any(option.several for option in positionals) else []
    if len(spare) > len(positionals):
        extra = spare[len(positionals)]
        parser.error(f"unexpected argument {extra!r}; {parser.prog} --help lists the options")


def _spare(parser: Parser, words: Sequence[str]) -> list[str]:
    """The words that belong to no option."""
    spare: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return spare + queue
        if not word.startswith("--"):
            spare.append(word)
            continue
        action = parser._option_string_actions[word.partition("=")[0]]
        if "=" in word or action.nargs == 0:
            continue
        if queue and not (action.nargs == "?" and queue[0].startswith("--")):
            queue.pop(0)
        while action.nargs == "+" and queue and not queue[0].startswith("--"):
            queue.pop(0)
    return spare
