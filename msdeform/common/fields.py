"""The fields of a dataclass of options: each as an option with its type, help and default, and the way back."""

import ast
import dataclasses
import functools
import glob
import inspect
import itertools
import re
import reprlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from .files import check_readable, check_writable
from .options import HUB_NAME, Form, Metavar, Positional, Reads, Repeated, Word, Writes, marks_of
from .text import either, suggest

T = TypeVar("T")


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
        """A word as the option's type. Raises ValueError."""
        for kind in self.kinds:
            if kind is types.NoneType and word == "None":
                return None
        named = self.mark(Word)
        if named is not None and word == named.word:
            return named.value
        kind = next(kind for kind in self.kinds if kind is not types.NoneType)
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            for choice in choices:
                if word == str(choice):
                    return choice
            names = list(map(str, choices))
            raise ValueError(suggest(f"expected {either(names)}, got {word!r}", word, names))
        if kind in (int, float):
            try:
                return kind(word)
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                what += f" or {named.word}" if named is not None else ""
                raise ValueError(f"expected {what}, got {word!r}") from None
        if kind is Path:
            if not word:  # the current folder to pathlib
                raise ValueError("expected a path, got nothing")
            return Path(word).expanduser()
        form = self.mark(Form)
        if form is not None and not re.fullmatch(form.pattern, word):
            raise ValueError(f"expected {form.expected}, got {word!r}")
        return word

    def check_path(self, word: str) -> None:
        """Raises ValueError where the path that a word says is not there, or cannot be written."""
        path = Path(word).expanduser()
        reads, writes = self.mark(Reads), self.mark(Writes)
        try:
            matched = reads is not None and reads.patterns and any(glob.iglob(word, recursive=True))
            matched = matched or (reads is not None and reads.hub and re.fullmatch(HUB_NAME, word) is not None)
            if reads is not None and word not in (*reads.words, "None") and not matched:
                check_readable(path, reads.kind)
            if writes is not None and word != "None":
                check_writable(path, writes.kind)
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise ValueError(f"cannot use {word}: {(error.strerror or str(error)).lower()}") from None


def members(hint: Any) -> tuple[Any, ...]:
    """The types that a union is of; another type by itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


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
        marks, hint = marks_of(hint)
        yield Option(field.name, hint, marks, _default(field, default), helps.get(field.name, ""), kind)


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
            if isinstance(value, str) and Path in members(hint):
                value = Path(value)
            value = tuple(value) if isinstance(value, list) else value
            if not _fits(value, hint):
                raise ValueError(f"{field.name}: expected {_told(hint)}, got {reprlib.repr(value)}")
            made[field.name] = value
    return kind(**made)


def _fits(value: Any, hint: Any) -> bool:
    """Is a value of its field's type?"""
    if isinstance(value, tuple) and typing.get_origin(hint) is tuple:
        return all(_fits(each, typing.get_args(hint)[0]) for each in value)
    for kind in members(hint):
        if typing.get_origin(kind) is Literal:
            if isinstance(value, str | int) and value in typing.get_args(kind):
                return True
        elif typing.get_origin(kind) is not tuple and isinstance(value, (int, float) if kind is float else kind):
            return kind is bool or not isinstance(value, bool)
    return False


def _told(hint: Any) -> str:
    """A field's type in words."""
    if typing.get_origin(hint) is tuple:
        return f"a list, of each {_told(typing.get_args(hint)[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    words[types.NoneType] = "nothing"
    kinds = members(hint)
    return either(
        [
            *(words.get(kind, str(kind)) for kind in kinds if typing.get_origin(kind) is not Literal),
            *(str(choice) for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)),
        ]
    )


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
