"""Settings files, lists of transforms and the settings that a run recorded: right ones, and those with odd values.

Right settings must be read as they were written, and written settings must be read back. What is read of others must be
of the types that the options have.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

from msdeform.models.inference.image_size import size_of
from msdeform.train.config.options import TrainOptions, from_plain, merged, to_plain
from msdeform.train.config.resolve import GROUPS, OPTIONS, read_settings, save_settings
from msdeform.train.data.augmentation.options import check as check_augment
from msdeform.train.data.augmentation.options import written_out
from msdeform.train.data.augmentation.steps import augmentation
from tests.fuzz.choices import Choices, made_of, mutated
from tests.fuzz.fuzzing import Kind, Outcome, folder, refused

NAMES = tuple(OPTIONS)
RIGHT: tuple[tuple[str, Any], ...] = (
    *(("lr", 1e-4), ("lr", 1), ("epochs", 3.0), ("total_batch_size", 4), ("batch_size", "auto"), ("max_steps", None)),
    *(("augment", [{"RandomHorizontalFlip": {"p": 0.5}}]), ("augment", "light"), ("clip", 0), ("epochs", 3)),
    *(("model", "deformable_detr_tiny"), ("override", ["num_queries=10"]), ("override", []), ("compile", True)),
    *(("image_size", 96), ("bad_data", "skip"), ("schedule", "cosine"), ("seed", 0), ("data_format", "voc")),
    *(("wandb", "my project"), ("ema", 0.5), ("val_share", 0.25), ("tensorboard", False), ("workers", 0)),
)
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**70, 1e308, -0.0, float("nan"), float("inf"), 0.5, "", " ", "nan", "1", "None"),
    *("auto", "x" * 5000, "\x1b[31m", "a\nb", "\u2028", "../..", "~", "/", "yes", "1e-4", "0x10", "1_000", "%(x)s"),
    *([], {}, [[]], [None], [1, "a", None], ["=", "a=", "=1", "num_queries=-1"], {"lr": 1}, {1: 2}, [{}], {"": ""}),
    *("2024-01-01", "!!python/object:os.system", "[{RandomHorizontalFlip: {p: 0.5}}]", "[1]", "[", "none", "\0"),
    *(["num_queries=1e999"], ["backbone=[[[]]]"], ["dropout=nan"], ["hidden_dim=" + "9" * 5000], ["__class__=1"]),
)
RAW = (
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "&a [*a]", "*nowhere", "!!set {a, b}"),
    *("2024-13-45", "0b_", "1:99:99", "!!binary '='", "!!timestamp x", "!!int x", "[" * 400, "{" * 400),
    *("|\n  a", ">-", "? a", "%YAML 9.9", "--- a\n--- b", "\ufeff1", "!<tag:x> 1", "<<: 3", "!!omap [a]", "!!pairs 3"),
    *("&a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c]",),
    *("\t1", "\x1b", "'", '"\\ud800"', '"\\e[2J"', "@", "`", "!", "!!str", "~", "=", "0o9", "._", "+", "1__0", ".inf"),
)
TRANSFORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("RandomHorizontalFlip", {"p": 0.5}), ("RandomQuarterTurn", {}), ("ColorJitter", {"brightness": 0.2})),
    *(("RandomAffine", {"degrees": 5, "scale": [0.9, 1.1]}), ("RandomZoomOut", {"p": 0.3}), ("RandomIoUCrop", {})),
    *(("RandomApply", {"transforms": [{"RandomGrayscale": {"p": 0.1}}]}), ("GaussianBlur", {"kernel_size": 3})),
)
MOSAIC = {"Mosaic": {"p": 0.5, "scale": [0.5, 1.5], "otherwise": ["RandomIoUCrop"]}}
ODD_TRANSFORMS: tuple[Any, ...] = (
    *("Normalize", "Lambda", "NoSuch", "", "RandomCrop", "Resize", "Mosaic", "ToDtype", "Transform", "Identity"),
    *(None, 3, [], {}, {"a": {}, "b": {}}, {"RandomHorizontalFlip": [0.5]}, {"RandomHorizontalFlip": {"q": 1}}),
    *({"ColorJitter": {"hue": 9}}, {"Compose": {"transforms": [[]]}}, {"RandomChoice": {"transforms": []}}, {1: None}),
    *({"RandomOrder": {"transforms": "x"}}, {"Mosaic": {"scale": [0, 99]}}, {"Mosaic": {"p": float("nan")}}),
    *({"RandomHorizontalFlip": {1: 2}}, {"\x1b": None}, {"x" * 3000: None}, {"CenterCrop": {"size": -1}}),
)


@dataclass
class File:
    """A file, and what it is: settings, transforms, or what a checkpoint recorded."""

    what: Literal["settings", "toml", "transforms", "recorded"]
    content: bytes
    settings: dict[str, Any] | None = None
    """By name, where the file is right."""


def make(choices: Choices) -> File:
    what = choices.one_of(("settings", "settings", "transforms", "recorded", "toml", "settings"))
    damages = choices.one_of((0, 1, 1, 2))
    if what == "transforms":
        return transforms(choices, damages)
    # what is recorded has been read, and is of its type
    chosen = [choices.one_of(RIGHT[7:] if what == "recorded" else RIGHT) for _ in range(choices.between(1, 3))]
    settings: dict[Any, Any] = dict(chosen)
    if {"val_share", "epochs"} <= {*settings}:
        del settings["val_share"]
    right = dict(settings) if not damages else None
    for _ in range(damages):
        how = choices.below(6)
        if how in (0, 1, 2):
            settings[choices.one_of(NAMES)] = choices.one_of(ODD)
        elif how == 3:
            settings[choices.one_of(ODD[:24]) if choices.chance(2) else "learning_rate"] = 1
        elif how == 4:
            settings[choices.one_of(tuple(GROUPS))] = choices.one_of(ODD)
        elif how == 5:
            settings = {choices.one_of(tuple(GROUPS)): settings}
    if what == "recorded":
        return File(what, json.dumps(settings, default=str).encode(errors="replace"), right)
    if what == "toml":
        # a name that is no key stands in quotes, as all may
        text = "\n".join(
            f"{json.dumps(str(name))} = {json.dumps(value)}" for name, value in settings.items() if value is not None
        )
        right = None if right is None else {name: value for name, value in right.items() if value is not None}
        if not text or "augment" in settings:
            right = None
    elif right is not None and choices.chance(2):  # in their groups, and with hyphens
        grouped: dict[str, Any] = {}
        for name, value in settings.items():
            group = next(group for group, names in GROUPS.items() if name in names)
            grouped.setdefault(group, {})[name.replace("_", "-")] = value
        text = yaml.safe_dump(grouped)
    else:
        text = yaml.safe_dump(settings, allow_unicode=choices.chance(2))
    if damages and choices.chance(3):
        text += f"{choices.one_of(NAMES)}: {choices.one_of(RAW)}\n"
    content = text.encode(errors="replace")
    if damages and choices.chance(3):
        content = mutated(content, choices, choices.between(1, 3))
    return File(what, content, right)


def transforms(choices: Choices, damages: int) -> File:
    steps: list[Any] = [MOSAIC] if choices.chance(3) else []
    for _ in range(choices.between(1, 3)):
        name, arguments = choices.one_of(TRANSFORMS)
        steps.append({name: dict(arguments)} if arguments else name)
    for _ in range(damages):
        place, how = choices.below(len(steps)), choices.below(4)
        if how == 0:
            steps[place] = choices.one_of(ODD_TRANSFORMS)
        elif how == 1 and isinstance(steps[place], dict):
            (name, arguments) = next(iter(steps[place].items()), ("", {}))
            odd = choices.one_of(ODD)
            keys = [*arguments] if isinstance(arguments, dict) and arguments else ["p"]
            steps[place] = {name: {**dict.fromkeys(keys[:1], odd)}} if choices.chance(2) else {name: odd}
        elif how == 2:
            steps.insert(place, choices.one_of(ODD))
        else:
            steps = [{"RandomApply": {"transforms": steps}}]
    text = yaml.safe_dump(steps)
    if damages and choices.chance(3):
        text += f"- {choices.one_of(RAW)}\n"
    content = text.encode(errors="replace")
    if damages and choices.chance(3):
        content = mutated(content, choices, choices.between(1, 3))
    return File("transforms", content, None if damages else {})


def check(file: File) -> Outcome:
    path = folder()[0] / ("settings.toml" if file.what == "toml" else "settings.yaml")
    path.write_bytes(file.content)
    try:
        if file.what == "transforms":
            written = written_out(str(path))
            check_augment("augment", written)
            augmentation(written, size_of(64, square=False))
            assert written_out(written) == written
            return "answered"
        if file.what == "recorded":
            settings = json.loads(file.content)
            options = from_plain(TrainOptions, settings)
        else:
            settings = read_settings(path)
            settings.pop("preset", None)
            options = merged(TrainOptions(), settings)
    except (ValueError, OSError) as error:
        return refused(error, why=file.settings is None)
    if file.settings is not None:
        known = {name: value for group in to_plain(options).values() for name, value in group.items()}
        for name, value in file.settings.items():
            expected = {"auto": 0}.get(value, value) if name == "batch_size" else value
            assert name == "augment" or known[name] == expected, (name, known[name], value)
    if file.what != "recorded":
        saved = path.with_name("config.yaml")
        save_settings(options, saved)
        again = merged(TrainOptions(), read_settings(saved))
        keep = {"run": options.run, "recipe": options.recipe}
        assert replace(again, **keep) == options, f"{again} is not {options}"
    return "answered"


KIND = Kind("settings and augmentation files", made_of(make, 80), check)
