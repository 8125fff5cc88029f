"""Command lines out of dataclasses: every option a field, every mistake one sentence that names the option.

A field's type is what its option takes: ``str``, ``int``, ``float``, ``bool`` (``--x`` and ``--no-x``), ``Path``,
``Literal``, each of these or None, and tuples of them (several words after the option). The docstring under a field is
its help. `Annotated` says more: `Positional`, `Repeated`, `Reads`, `Writes`, and what `Options` checks: `AtLeast`,
`Between`, `Above`, `Known`, `Checked`. A dataclass as a field is a group of options in ``--help``, and one that is
inherited is shared by several commands, whose own options come first; names have no prefix. What ``__post_init__``
refuses by a ValueError that begins with the field's name is told as the option's mistake.

Nothing here imports more than the standard library: a slip is answered before PyTorch is loaded.
"""

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
import textwrap
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class AtLeast:
    """A finite number of at least ``least``."""

    least: float
    unit: str = ""

    def check(self, name: str, value: float) -> None:
        if not self.least <= value < math.inf:  # nor NaN
            number = "" if math.isfinite(value) else "a finite number, "
            unit = self.unit and f" {self.unit}"
            raise ValueError(f"{name}: expected {number}at least {self.least:g}{unit}, got {value}")


@dataclass(frozen=True)
class Between:
    """A number from ``least`` to ``most``, both included; ``what`` it is, in words."""

    least: float
    most: float
    what: str = "a number"

    def check(self, name: str, value: float) -> None:
        if not self.least <= value <= self.most:
            raise ValueError(f"{name}: expected {self.what} from {self.least:g} to {self.most:g}, got {value}")


@dataclass(frozen=True)
class Above:
    """A number above ``limit`` and below ``below``, neither included; ``what`` it is, in words."""

    limit: float
    what: str = "a number"
    below: float = math.inf

    def check(self, name: str, value: float) -> None:
        if not self.limit < value < self.below:
            below = f" and below {self.below:g}" if self.below < math.inf else ""
            raise ValueError(f"{name}: expected {self.what} above {self.limit:g}{below}, got {value:g}")


@dataclass(frozen=True)
class Known:
    """One of some names of ``what``."""

    what: str
    names: tuple[str, ...]

    def check(self, name: str, value: str) -> None:
        if value not in self.names:
            raise ValueError(f"{name}: {nearest(self.what, value, self.names)}")


@dataclass(frozen=True)
class Checked:
    """Whatever ``check(name, value)`` does not refuse by a ValueError that begins with the name."""

    check: Callable[[str, Any], None]


Positive = Annotated[int, AtLeast(1)]
NotNegative = Annotated[int, AtLeast(0)]
Share = Annotated[float, Between(0, 1)]


class Options:
    """Base class of dataclasses of options: every instance is what `Annotated` says of its fields.

    None is not checked, and of a tuple each value is. Raises ValueError, in a sentence that begins with the field's
    name.
    """

    def __post_init__(self) -> None:
        for name, checks in _checks(typing.cast(Any, type(self))).items():
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else (value,):
                for mark in checks if each is not None else ():
                    mark.check(name, each)


@functools.cache
def _checks(kind: type[Any]) -> dict[str, list[Any]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    marks = {field.name: _stripped(hints[field.name])[0] for field in dataclasses.fields(kind)}
    checks = (AtLeast, Between, Above, Known, Checked)
    return {name: [mark for mark in every if isinstance(mark, checks)] for name, every in marks.items()}


@dataclass(frozen=True, kw_only=True)
class DeviceOption(Options):
    """Where it runs."""

    device: Device = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True, kw_only=True)
class ProgressOption(Options):
    """Whether progress is shown."""

    progress: bool = True
    """Show a progress bar."""


def suggest(sentence: str, name: str, known: Iterable[str], otherwise: str = "", most: int = 1) -> str:
    """``sentence; did you mean X?`` for a known name that is near to ``name``, else ``sentence; otherwise``."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=most, cutoff=0.6)
    near = near or [one for one in known if len(name) > 2 and name in one][:most]
    advice = f"did you mean {' or '.join(near)}?" if near else otherwise
    return f"{sentence}; {advice}" if advice else sentence


def nearest(what: str, name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not known: with the nearest that there are, or all."""
    return suggest(f"no {what} is called {name!r}", name, known, f"there are {', '.join(known)}", most=3)


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
    def flags(self) -> tuple[str, ...]:
        """What may be typed; nothing for an argument."""
        if self.mark(Positional):
            return ()
        return (self.flag, f"--no-{self.flag[2:]}") if self.switch else (self.flag,)

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
            names = list(map(str, choices))
            raise WrongValue(suggest(f"expected {_either(names)}, got {word!r}", word, names))
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
    """Every field of a dataclass and of those nested in it, in order; inherited ones come last.

    Args:
        kind: the dataclass.
        default: an instance whose values are the defaults; the fields' own when None.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    helps = _helps(kind)
    own = inspect.get_annotations(kind)
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in own):
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
        except WrongValue as error:
            _refuse(program, f"{option.flag}: {error}")
    return values


def _check_paths(known: Sequence[Option], given: Mapping[str, bool | list[str]], program: str) -> None:
    for option in known:
        words = given.get(option.name, ())
        try:
            for word in () if isinstance(words, bool) else words:
                option.check_path(word)
        except WrongValue as error:
            _refuse(program, f"{option.flag}: {error}")


def _lower(sentence: str) -> str:
    """A sentence as it stands after a colon."""
    sentence = sentence.removesuffix(".")
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass, and those nested in it, out of values by name, which may be plain: text for a path, a list.

    What is not among the values takes its default. Raises ValueError as the dataclasses' checks do.
    """
    hints = typing.get_type_hints(kind)
    made: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            made[field.name] = build(typing.cast(type, hint), values)
        elif field.name in values:
            value = values[field.name]
            if value is not None and Path in members(hint):
                value = Path(value)
            made[field.name] = tuple(value) if isinstance(value, list) else value
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
    shown = _shown(option.default)
    text = f"{option.help} ({shown})" if shown else option.help
    head = ", ".join(option.flags) or option.flag
    if option.flags and not option.switch:
        name = option.metavar
        many = f"{name} [{name} ...]" if option.several and not option.mark(Repeated) else name
        head += f" [{name}]" if option.mark(Bare) else f" {many}"
    return head, text


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
