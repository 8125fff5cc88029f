"""What a command's options are written with: dataclasses, in which every option is a field.

A field's type is what its option takes: ``str``, ``int``, ``float``, ``bool`` (``--x`` and ``--no-x``), ``Path``,
``Literal``, each of these or None, and tuples of them (several words after the option). The docstring under a field is
its help. `Annotated` says more: `Positional`, `Repeated`, `Reads`, `Writes`, and what `Options` checks: `AtLeast`,
`Between`, `Above`, `Known`, `Checked`. A dataclass as a field is a group of options in ``--help``, and one that is
inherited is shared by several commands, whose own options come first; names have no prefix. What ``__post_init__``
refuses by a ValueError that begins with the field's name is told as the option's mistake.

:mod:`msdeform.common.command_line` reads them. Nothing here imports more than the standard library: a slip is answered
before PyTorch is loaded.
"""

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from .text import nearest


@dataclass(frozen=True)
class Positional:
    """A field that is an argument instead of an option; ``metavar`` is what ``--help`` calls it."""

    metavar: str = ""


@dataclass(frozen=True)
class Repeated:
    """A tuple whose option takes one value and may be given several times."""


HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.pt)(?<!\.pth)(?<!\.safetensors)"
"""A regular expression of OWNER/NAME of the Hugging Face Hub, which is no file of weights."""


@dataclass(frozen=True)
class Reads:
    """A path that must be there."""

    kind: Literal["file", "folder", "path"] = "path"
    words: tuple[str, ...] = ()
    """Words that may stand instead of a path."""
    patterns: bool = False
    """May it be a pattern, such as ``photos/**/*.jpg``, that matches something?"""
    hub: bool = False
    """May it be OWNER/NAME of the Hugging Face Hub, where there is nothing of that name here?"""


@dataclass(frozen=True)
class Writes:
    """A path that must be writable, or such that it can be made."""

    kind: Literal["file", "folder", "path"]


@dataclass(frozen=True)
class Bare:
    """An option that may stand without a value, and has this one then."""

    value: Any


@dataclass(frozen=True)
class Word:
    """A word that may stand for a value."""

    word: str
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
            below = f" and below {self.below:g}" if self.below < math.inf else " and finite" * (value == math.inf)
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
    marks = {field.name: marks_of(hints[field.name])[0] for field in dataclasses.fields(kind)}
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


def marks_of(hint: Any) -> tuple[tuple[Any, ...], Any]:
    """What `Annotated` says of a type or of what it is made of, and the type without that."""
    if typing.get_origin(hint) is Annotated:
        marks, inner = marks_of(hint.__origin__)
        return (*hint.__metadata__, *marks), inner
    parts = [marks_of(part) for part in typing.get_args(hint)]
    marks = tuple(mark for inside, _ in parts for mark in inside)
    if not marks:
        return (), hint
    inner = tuple(part for _, part in parts)
    several = typing.get_origin(hint) is tuple
    return marks, types.GenericAlias(tuple, inner) if several else functools.reduce(operator.or_, inner)
