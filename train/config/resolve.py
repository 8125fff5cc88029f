"""From a command line, a preset and a file to the settings of a run, and what is told and kept of them.

Later ones win: defaults, ``--preset``, ``--config``, flags. A run that is resumed starts from its checkpoint's settings
instead of the first three. A file is YAML or TOML, in the groups of `TrainOptions` or without them:

    optim:
      lr: 1e-4
    total_batch_size: 16        # or total-batch-size, in its group or not

A value must be of its setting's type. Relative paths are relative to the working directory, as those of flags.
"""

import argparse
import dataclasses
import re
import reprlib
import shlex
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ...common.command_line import check, parse
from ...common.fields import Option, options_of
from ...common.files import atomic_file, checkpoints_in, read_yaml, told_of
from ...common.text import shown, suggest
from ...models.catalog import TRANSFORMERS
from ..data.augmentation.options import in_one_line
from .official_flags import counterpart
from .options import SETTINGS_HEAD, Recipe, TrainOptions, flatten, from_plain, merged, to_plain
from .presets import PRESETS, list_presets, preset

# what a run is, rather than what it does: for the command line alone
NOT_IN_FILES = ("config", "resume", "eval")
OPTIONS = {option.name: option for option in options_of(TrainOptions)}
GROUPS = {group: tuple(settings) for group, settings in to_plain(TrainOptions()).items()}
FORMER_GROUPS = {"seeing": "logging"}  # in a config.yaml of an earlier version


def checkpoint_options(path: Path) -> TrainOptions:
    """The settings that a checkpoint of ours holds, or of a folder, its newest whole one. Raises as load_checkpoint."""
    from ..engine.checkpoint import (
        load_checkpoint,  # brings PyTorch, which the answer to a wrong flag does not wait for
    )

    with told_of(path, "checkpoint"):
        return from_plain(TrainOptions, load_checkpoint(path)["options"])


def resolve(
    words: Sequence[str],
    program: str = "msdeform train",
    load: Callable[[Path], TrainOptions] = checkpoint_options,
) -> TrainOptions:
    """The settings that a command line asks for.

    ``--resume auto`` is settled here: ``run.resume`` is the folder ``--out`` if that holds checkpoints, whose settings
    then win over preset and file, so that the same command line starts a run and goes on with it; else it is None.

    Args:
        words: those after the command's name.
        load: the settings that a checkpoint, or a run's folder, holds.

    Raises:
        ValueError, FileNotFoundError: a wrong preset, file or checkpoint, in one sentence.
        SystemExit: a wrong flag (status 2), or ``--help`` and ``--preset list``, which are answered here (0).
    """
    words = list(words)
    helping = bool({"-h", "--help"} & {*words})
    if not helping:
        check(TrainOptions, words, program, counterpart)  # before a file or a checkpoint is read
    # the flags that decide what the others are added to; the parser reads them too, and checks them
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--config", "--resume", "--out"):
        ahead.add_argument(flag, nargs="?", type=lambda word: None if word in ("", "None") else word)
    given = ahead.parse_known_args(words)[0]
    if given.preset == "list":
        print(list_presets())
        raise SystemExit(0)
    asked = None if helping else given.resume
    if asked not in (None, "auto"):
        if given.preset or given.config:
            flag = "--preset" if given.preset else "--config"
            raise ValueError(
                f"{flag}: expected none beside --resume, which continues with the run's own settings; "
                "single flags do change them"
            )
        base = merged(load(Path(asked)), {"out": None, "resume": None})
        return parse(TrainOptions, words, program, base, advice=counterpart)
    base, model_named = _starting_point(given.preset, Path(given.config) if given.config else None)
    resume = None
    if asked == "auto":
        out = given.out or base.run.out
        if out is None:
            raise ValueError("resume: auto resumes the run in --out; name that folder with --out DIR")
        resume = Path(out) if checkpoints_in(Path(out)) else None
        if resume is not None:
            base = load(resume)
    options = parse(TrainOptions, words, program, base, advice=counterpart)
    if asked == "auto":  # which the flag itself says
        options = merged(options, {"out": out, "resume": resume})
    model_named = model_named or any(word.split("=")[0] == "--model" for word in words)
    if given.preset and PRESETS[given.preset].needs_weights and options.model.init_from is None and not model_named:
        raise ValueError(
            f"init-from: preset {given.preset} starts from weights; name them: --init-from FOLDER, or OWNER/NAME "
            "of the Hugging Face Hub"
        )
    ours = model_named and options.model.model != TRANSFORMERS
    if resume is not None or ours or options.model.init_from is None:
        return options
    from ..engine.build import (
        with_model_of_start,  # brings PyTorch, which a run that starts from no file does not wait for
    )

    return with_model_of_start(options)


def _starting_point(named: str | None, file: Path | None) -> tuple[TrainOptions, bool]:
    """Defaults, preset and file; and whether the file names a model."""
    settings = read_settings(file) if file else {}
    in_file = settings.pop("preset", None)
    base = TrainOptions() if named is None else preset(named)
    try:
        if named is None and in_file is not None:
            base = preset(in_file)
        base = merged(base, settings)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return dataclasses.replace(base, recipe=Recipe(named or in_file, file)), "model" in settings


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a file gives, by name, whatever their group, each of its type.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML or TOML, an unknown setting, or a value of another type; each message names the file.
    """
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ValueError(f"config: expected a file that ends in .yaml, .yml or .toml, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else read_yaml(text, _Loader)
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "YAML"
        raise ValueError(f"{path} is not {kind}: {shown(' '.join(str(error).split()))}") from error
    if not content:
        raise ValueError(f"{path} holds no settings; expected lines such as lr: 1e-4")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected settings by name, such as lr: 1e-4, got {reprlib.repr(content)}")
    return take_settings(content, path)


class _Loader(yaml.SafeLoader):
    """YAML without the same key twice, of which the last would win unsaid, and where 1e-4 is a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_Loader` would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("+-0123456789")
    )


def take_settings(content: Mapping[Any, Any], path: Path | str) -> dict[str, Any]:
    """The settings out of such a file's content, each of its type; messages name ``path``. Raises ValueError."""
    flat: list[tuple[str, Any, str | None]] = []
    for key, value in content.items():
        name = _name(key)
        name = FORMER_GROUPS.get(name, name)
        if name in GROUPS and isinstance(value, dict):
            flat += [(_name(inner), each, name) for inner, each in value.items()]
        elif name not in GROUPS or value is not None:  # a group whose lines are all comments
            flat.append((name, value, None))
    settings: dict[str, Any] = {}
    for name, value, group in flat:
        if name in GROUPS and name not in OPTIONS:
            expected = f"settings of this group ({', '.join(GROUPS[name])})"
            raise ValueError(f"{path}: {name}: expected {expected}, got {reprlib.repr(value)}")
        if name not in OPTIONS:
            sentence, official = f"{path}: unknown setting {shown(name)}", counterpart(name)
            near = suggest(sentence, name, [*OPTIONS, *GROUPS], "msdeform train --help lists the settings")
            raise ValueError(f"{sentence}; {official}" if official else near)
        if group is not None and name not in GROUPS[group]:
            own = next(group for group, names in GROUPS.items() if name in names)
            raise ValueError(f"{path}: {name} belongs to the group {own}, not to {group}")
        if name in settings:
            raise ValueError(f"{path}: {name} is given twice, in its group and outside")
        if name not in NOT_IN_FILES:
            settings[name] = _value(OPTIONS[name], value, f"{path}: {name}")
        elif value not in (None, False):
            raise ValueError(f"{path}: {name} belongs on the command line, not in a file of settings")
    return settings


def _name(key: Any) -> str:
    return str(key).replace("-", "_")


def _value(option: Option, value: Any, where: str) -> Any:
    """A file's value as its option's type. Raises ValueError."""
    if option.name == "augment" and isinstance(value, list):  # as in a file of its own
        value = in_one_line(value)
    if option.several and isinstance(value, list):
        one = dataclasses.replace(option, hint=option.kinds[0])
        return tuple(_value(one, each, where) for each in value)
    if value is None and types.NoneType in option.kinds:
        return None
    if option.switch and isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 90000.0 steps
    if option.several or option.switch or not (isinstance(value, str) or {int, float} & {*option.kinds}):
        expected = "a list" if option.several else "true or false" if option.switch else "text"
        raise ValueError(f"{where}: expected {expected}, got {reprlib.repr(value)}")
    try:
        return option.value(str(value))
    except ValueError as error:
        told = str(error).replace(repr(str(value)), repr(value))  # of a number, without quotes
        raise ValueError(f"{where}: {shown(told, 1000)}") from None


def save_settings(options: TrainOptions, path: Path, given: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes all settings by group, so that `read_settings` gives them back, but for those that say which run it is.

    ``given``: objects of a script, which no file can hold, by name and type; a comment names them.
    """
    groups, recipe = to_plain(options), options.recipe
    del groups["recipe"]  # its settings are all here
    groups["run"] = {name: value for name, value in groups["run"].items() if name not in ("out", *NOT_IN_FILES)}
    again = shlex.join(["msdeform", "train", "--config", str(path), "--out", "FOLDER"])
    head = f"{SETTINGS_HEAD}; to repeat it: {again}\n"
    named = [f"{kind} {value}" for kind, value in (("preset", recipe.preset), ("file", recipe.config)) if value]
    if named:
        head += f"# From {', '.join([*named, 'and flags'])}.\n"
    if given:
        head += f"# Not here: {', '.join(f'{name} ({kind})' for name, kind in given.items())} of a Python script.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((head + yaml.dump(groups, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)).encode())


def settings_lines(options: TrainOptions, file: Path) -> list[str]:
    """What to print as a run starts: a line for each group with settings other than the defaults; ``file`` has all."""
    usual = dict(flatten(to_plain(TrainOptions())))
    lines = []
    for group, settings in to_plain(options).items():
        changed = [
            f"{name}={' '.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in settings.items()
            if value != usual[name]
        ]
        if changed:
            lines.append(f"  {group}: {' '.join(changed)}")
    if not lines:
        return [f"all settings are the defaults; all are in {file}"]
    return [f"settings that are not the defaults; all are in {file}:", *lines]
