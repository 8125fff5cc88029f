"""Settings in a file: YAML or TOML, in the groups of `TrainOptions` or without them.

    optim:
      lr: 1e-4
    total_batch_size: 16        # or total-batch-size, in its group or not

A value must be of its setting's type; YAML's slips (1e-4 is text to it) are put right. Relative paths are relative to
the working directory, as those of flags.
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...common.files import atomic_file
from ...common.options import suggest
from .official_flags import counterpart
from .options import TrainOptions, merged, to_plain

# what a run is, rather than what it does: for the command line alone
NOT_IN_FILES = ("config", "resume", "eval")


def _settings_by_group() -> dict[str, dict[str, Any]]:
    """Group -> setting -> type."""
    hints = typing.get_type_hints(TrainOptions)
    return {group.name: typing.get_type_hints(hints[group.name]) for group in dataclasses.fields(TrainOptions)}


GROUPS = _settings_by_group()
TYPES = {name: hint for settings in GROUPS.values() for name, hint in settings.items()}
FORMER_GROUPS = {"seeing": "logging"}  # in a config.yaml of an earlier version
GROUP_OF = {name: group for group, settings in GROUPS.items() for name in settings}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a file gives, by name, whatever their group, each of its type.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML or TOML, an unknown setting, or a value of another type; each message names the file.
    """
    return take_settings(_read(path), path)


def take_settings(content: Mapping[Any, Any], path: Path | str) -> dict[str, Any]:
    """The settings out of such a file's content, each of its type; messages name ``path``. Raises ValueError."""
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = _name(key)
        name = FORMER_GROUPS.get(name, name)
        if name in GROUPS and isinstance(value, dict):
            for inner, each in value.items():
                _take(settings, _name(inner), each, path, group=name)
        elif name in GROUPS and value is None:
            continue  # a group whose lines are all comments
        elif name in GROUPS and name not in TYPES:
            raise ValueError(
                f"{path}: {name}: expected settings of this group ({', '.join(GROUPS[name])}), got {value!r}"
            )
        else:
            _take(settings, name, value, path)
    return settings


def write_settings(options: TrainOptions, path: Path, comment: str) -> None:
    """Writes all settings by group, so that `read_settings` gives them back, but for those that say which run it is.

    Args:
        comment: lines for the top of the file.
    """
    groups = to_plain(options)
    del groups["recipe"]  # its settings are all here
    groups["run"] = {name: value for name, value in groups["run"].items() if name not in ("out", *NOT_IN_FILES)}
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((head + yaml.safe_dump(groups, sort_keys=False, allow_unicode=True, width=120)).encode())


def merged_from_file(base: TrainOptions, settings: dict[str, Any], path: Path) -> TrainOptions:
    """``base`` with a file's settings. Raises ValueError, naming the file, for values that no run could have."""
    try:
        return merged(base, settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> dict[Any, Any]:
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ValueError(f"config: expected a file that ends in .yaml, .yml or .toml, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{path} is not YAML: {line}{error.problem}") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        kind = "TOML" if path.suffix == ".toml" else "YAML"
        raise ValueError(f"{path} is not {kind}: {' '.join(str(error).split())}") from error
    if content is None or content == {}:
        raise ValueError(f"{path} holds no settings; expected lines such as lr: 1e-4")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected settings by name, such as lr: 1e-4, got {_kind(content)}")
    return content


class _Loader(yaml.SafeLoader):
    """YAML without the same key twice, of which the last would win unsaid."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _name(key: Any) -> str:
    return str(key).replace("-", "_")


def _take(settings: dict[str, Any], name: str, value: Any, path: Path | str, group: str | None = None) -> None:
    """Adds one setting, or says what is wrong with it."""
    if name not in TYPES:
        sentence, official = f"{path}: unknown setting {name}", counterpart(name)
        known = TYPES if group else [*TYPES, *GROUPS]
        near = suggest(sentence, name, known, "msdeform train --help lists the settings")
        raise ValueError(f"{sentence}; {official}" if official else near)
    if group is not None and GROUP_OF[name] != group:
        raise ValueError(f"{path}: {name} belongs to the group {GROUP_OF[name]}, not to {group}")
    if name in settings:
        raise ValueError(f"{path}: {name} is given twice, in its group and outside")
    if name in NOT_IN_FILES:
        if value not in (None, False):
            raise ValueError(f"{path}: {name} belongs on the command line, not in a file of settings")
        return
    try:
        settings[name] = _of_type(TYPES[name], value)
    except _OtherTypeError:
        raise ValueError(f"{path}: {name}: expected {expected(TYPES[name])}, got {value!r}") from None


class _OtherTypeError(Exception):
    """A value is not of the type that it should be."""


def _of_type(hint: Any, value: Any) -> Any:
    """The value as the type that a setting is declared with, or _OtherTypeError."""
    choices = typing.get_args(hint)
    if types.NoneType in choices:  # T | None
        return None if value is None else _of_type(next(kind for kind in choices if kind is not types.NoneType), value)
    if typing.get_origin(hint) is typing.Literal:
        if value in choices and isinstance(value, str):
            return value
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, list):
            return tuple(_of_type(choices[0], each) for each in value)
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint in (int, float):
        return _number(hint, value)
    elif isinstance(value, str):  # str and Path
        return Path(value).expanduser() if hint is Path else value
    raise _OtherTypeError


def _number(kind: type, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _OtherTypeError
    try:
        number = float(value)
    except ValueError:
        raise _OtherTypeError from None
    if kind is float:
        return number
    if not math.isfinite(number) or number != int(number):
        raise _OtherTypeError
    return value if isinstance(value, int) else int(number)


def expected(hint: Any) -> str:
    """What a setting takes, in words."""
    choices = typing.get_args(hint)
    if types.NoneType in choices:
        return " or ".join("null" if kind is types.NoneType else expected(kind) for kind in choices)
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(choices)}"
    if typing.get_origin(hint) is tuple:
        return f"a list, each of it {expected(choices[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}[hint]


def _kind(content: Any) -> str:
    if isinstance(content, list):
        return "a list"
    return "text" if isinstance(content, str) else repr(content)
