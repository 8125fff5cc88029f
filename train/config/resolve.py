"""From the words of a command line to the settings of a run, and to what is told and kept of them.

Later ones win: defaults, ``--preset``, ``--config``, flags. A run that is resumed starts from its checkpoint's settings
instead of the first three.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ...common.files import checkpoints_in
from ...common.options import check, parse
from .files import merged_from_file, read_settings, write_settings
from .official_flags import counterpart
from .options import Recipe, TrainOptions, flatten, from_plain, merged, to_plain
from .presets import list_presets, preset


def checkpoint_options(path: Path) -> TrainOptions:
    """The settings that a checkpoint of ours holds, or of a folder, its newest whole one. Raises as load_checkpoint."""
    from ..engine.checkpoint import (
        load_checkpoint,  # brings PyTorch, which the answer to a wrong flag does not wait for
    )

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
    given = _look_ahead(words)
    if given.preset == "list":
        print(list_presets())
        raise SystemExit(0)
    if given.resume is None or helping:
        base, named = _starting_point(given)
        return _with_model(_parse(words, program, base), words, named)
    if given.resume != "auto":
        if given.preset or given.config:
            flag = "--preset" if given.preset else "--config"
            raise ValueError(
                f"{flag}: expected none beside --resume, which continues with the run's own settings; "
                "single flags do change them"
            )
        base = load(Path(given.resume))
        return _parse(words, program, _with_run(base, out=None, resume=None))
    base, named = _starting_point(given)
    out = given.out or base.run.out
    if out is None:
        raise ValueError("resume: auto resumes the run in --out; name that folder with --out DIR")
    resume = Path(out) if checkpoints_in(Path(out)) else None
    if resume is not None:
        base = load(resume)
    # the flag itself says auto
    options = _with_run(_parse(words, program, base), out=Path(out), resume=resume)
    return options if resume is not None else _with_model(options, words, named)


def save_settings(options: TrainOptions, folder: Path) -> Path:
    """Writes all settings of a run to ``config.yaml`` in its folder, which ``--config`` takes; returns the file."""
    path, recipe = folder / "config.yaml", options.recipe
    again = shlex.join(["msdeform", "train", "--config", str(path), "--out", "FOLDER"])
    named = [f"preset {recipe.preset}"] if recipe.preset else []
    named += [f"file {recipe.config}"] if recipe.config else []
    source = f"\nFrom {', '.join([*named, 'and flags'])}." if named else ""
    write_settings(options, path, f"Every setting of this run; to repeat it: {again}{source}")
    return path


def settings_lines(options: TrainOptions, file: Path | None = None, base: TrainOptions | None = None) -> list[str]:
    """What to print as a run starts: a line for each group with settings other than those of ``base``.

    Args:
        file: where all settings are.
        base: the defaults, unless given.
    """
    usual = dict(flatten(to_plain(base or TrainOptions())))
    rest = f"; all are in {file}" if file else ""
    lines = []
    for group, settings in to_plain(options).items():
        changed = [f"{name}={_shown(value)}" for name, value in settings.items() if value != usual[name]]
        if changed:
            lines.append(f"  {group}: {' '.join(changed)}")
    return [f"settings that are not the defaults{rest}:", *lines] if lines else [f"all settings are the defaults{rest}"]


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _look_ahead(words: list[str]) -> argparse.Namespace:
    """The flags that decide what the others are added to; the parser reads them too, and checks them."""
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--config", "--resume", "--out"):
        ahead.add_argument(flag, nargs="?", type=lambda word: None if word == "None" else word)
    return ahead.parse_known_args(words)[0]


def _starting_point(given: argparse.Namespace) -> tuple[TrainOptions, bool]:
    """Defaults, preset and file; and whether the file names a model."""
    file = Path(given.config) if given.config else None
    settings = read_settings(file) if file else {}
    named = settings.pop("preset", None)
    base = TrainOptions()
    try:
        if given.preset or named:
            base = merged(base, preset(given.preset or named).settings)
    except ValueError as error:
        raise ValueError(str(error) if given.preset else f"{file}: {error}") from None
    if file:
        base = merged_from_file(base, settings, file)
    return dataclasses.replace(base, recipe=Recipe(given.preset or named, file)), "model" in settings


def _with_model(options: TrainOptions, words: list[str], named: bool) -> TrainOptions:
    """The model of the weights that a run starts from, unless one is ``named``, in a file or by a flag."""
    if options.model.init_from is None or named or any(word.split("=")[0] == "--model" for word in words):
        return options
    from ..engine.build import (
        with_model_of_start,  # brings PyTorch, which a run that starts from no file does not wait for
    )

    return dataclasses.replace(options, model=with_model_of_start(options.model))


def _with_run(options: TrainOptions, out: Path | None, resume: Path | None) -> TrainOptions:
    return dataclasses.replace(options, run=dataclasses.replace(options.run, out=out, resume=resume))


def _parse(words: list[str], program: str, base: TrainOptions) -> TrainOptions:
    return parse(TrainOptions, words, program, base, advice=counterpart)
