"""What ``--augment`` takes: a preset's name, or a list of transforms, in a file or written out. No PyTorch here."""

import reprlib
from pathlib import Path
from typing import Any

from ....common.files import read_yaml
from ....common.text import either, shown, suggest

# Lists in the form of a file; the values are customary ones, not tuned. light leaves hue alone, which takes as long as
# all else in it. The colours of strong are those of RandomPhotometricDistort without its exchange of channels, as a
# class may be told by its colour.
PRESETS = {
    "light": """
- RandomHorizontalFlip: {p: 0.5}
- RandomAffine: {degrees: 0, translate: [0.1, 0.1], scale: [0.8, 1.2], interpolation: bilinear, fill: 114}
- ColorJitter: {brightness: 0.2, contrast: 0.2, saturation: 0.2}
""",
    "turns": """
- RandomQuarterTurn
- RandomHorizontalFlip: {p: 0.5}
- RandomAffine: {degrees: 0, translate: [0.1, 0.1], scale: [0.8, 1.2], interpolation: bilinear, fill: 114}
- ColorJitter: {brightness: 0.2, contrast: 0.2, saturation: 0.2}
""",
    "strong": """
- Mosaic:
    p: 0.5
    scale: [0.5, 1.5]
    until: 0.8
    otherwise:
    - RandomZoomOut: {side_range: [1.0, 2.0], fill: 114, p: 0.3}
    - RandomIoUCrop
- ColorJitter: {brightness: 0.125, contrast: 0.5, saturation: 0.5, hue: 0.05}
- RandomHorizontalFlip: {p: 0.5}
""",
}
# those that are no such lists come first
NAMES = ("official", *PRESETS, "flip", "none")

_EXAMPLE = "- RandomHorizontalFlip: {p: 0.5}"

# a transform's name and its arguments
Step = tuple[str, dict[str, Any]]


def written_out(value: str) -> str:
    """``value``, but for a YAML file its content in one line, so that what is stored repeats the run without the file.

    Raises:
        ValueError: there is no such file, or it is not a list of transforms.
    """
    path = Path(value)
    if value.lstrip().startswith("[") or path.suffix not in (".yaml", ".yml"):
        return value
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:  # the last of a home folder that there is not
        told = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise ValueError(f"augment: file {path} {told}") from None
    steps_of(text, f"augment: {path}")
    return in_one_line(read_yaml(text))


def in_one_line(content: Any) -> str:
    """A list of transforms as text that `steps_of` reads."""
    import yaml

    return yaml.safe_dump(content, default_flow_style=True, sort_keys=False, width=10**6).strip()


def check(name: str, value: str) -> None:
    """Raises ValueError, which begins with ``name``, unless it is a preset's name or a list of transforms."""
    if value in NAMES:
        return
    if not value.lstrip().startswith("["):
        raise ValueError(
            suggest(f"{name}: expected {either([*NAMES, 'a .yaml file'])}, got {shown(value)!r}", value, NAMES)
        )
    steps_of(value, name)


def steps_of(text: str, where: str = "augment") -> list[Step]:
    """The transforms of a list in YAML, by name, with their arguments, those nested in them too; or of a preset.

    Raises:
        ValueError: it is not such a list; the sentence begins with ``where``.
    """
    try:
        content = read_yaml(PRESETS.get(text, text))
    except ValueError as error:
        raise ValueError(f"{where}: not YAML: {error}") from None
    return _steps(content, where)


def _steps(content: Any, where: str) -> list[Step]:
    if not isinstance(content, list):
        raise ValueError(f"{where}: expected a list of transforms, such as {_EXAMPLE}, got {reprlib.repr(content)}")
    return [_step(each, where) for each in content]


def _step(content: Any, where: str) -> Step:
    whole = {content: None} if isinstance(content, str) else content
    if not isinstance(whole, dict) or len(whole) != 1:
        raise ValueError(
            f"{where}: expected one transform with its arguments, such as {_EXAMPLE}, got {reprlib.repr(content)}"
        )
    ((name, arguments),) = whole.items()
    if not isinstance(arguments, dict | None):
        got = reprlib.repr(arguments)
        raise ValueError(f"{where}: {shown(name)}: expected arguments by name, such as {{p: 0.5}}, got {got}")
    given = dict(arguments or {})
    for nested in {"transforms", "otherwise"} & {*given}:
        given[nested] = _steps(given[nested], f"{where}: {name}: {nested}")
    return str(name), given
