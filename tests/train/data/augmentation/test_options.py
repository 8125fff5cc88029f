"""``--augment FILE``: read once, stored whole, and mistakes in it told in a sentence."""

import re
from pathlib import Path

import pytest

from msdeform.models.inference.image_size import Size
from msdeform.train.config.options import Input, TrainOptions, from_plain, to_plain
from msdeform.train.config.resolve import read_settings, resolve, save_settings
from msdeform.train.data.augmentation.options import PRESETS, steps_of
from msdeform.train.data.augmentation.steps import augmentation

TEXT = """
# my photographs
- Mosaic: {p: 0.3, otherwise: [RandomIoUCrop]}
- RandomHorizontalFlip: {p: 0.5}
- RandomGrayscale
"""
# each line nine times as many values as the one above
BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
STEPS = [
    ("Mosaic", {"p": 0.3, "otherwise": [("RandomIoUCrop", {})]}),
    ("RandomHorizontalFlip", {"p": 0.5}),
    ("RandomGrayscale", {}),
]


def test_a_file_is_stored_whole(tmp_path: Path) -> None:
    file, kept = tmp_path / "mine.yaml", tmp_path / "config.yaml"
    file.write_text(TEXT)
    options = resolve(["--augment", str(file)])
    file.unlink()
    assert steps_of(options.input.augment) == STEPS
    assert from_plain(TrainOptions, to_plain(options)) == options
    save_settings(options, kept)
    again = resolve(["--config", str(kept)])
    assert again.input == options.input
    assert resolve(["--augment", options.input.augment]).input == options.input


def test_settings_may_hold_the_list_itself(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("augment:\n- Mosaic: {p: 0.3, otherwise: [RandomIoUCrop]}\n- RandomHorizontalFlip: {p: 0.5}\n")
    assert steps_of(read_settings(file)["augment"]) == STEPS[:2]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("p: 0.5", "expected a list of transforms, such as - RandomHorizontalFlip: {p: 0.5}, got {'p': 0.5}"),
        ("", "expected a list of transforms, .* got None"),
        ("- 3", "expected one transform with its arguments, .* got 3"),
        ("- {ColorJitter: {}, Grayscale: {}}", "expected one transform with its arguments, .* got {'ColorJitter'"),
        ("- ColorJitter: 0.5", "ColorJitter: expected arguments by name, such as {p: 0.5}, got 0.5"),
        ("- Mosaic: {otherwise: RandomIoUCrop}", "Mosaic: otherwise: expected a list of transforms"),
        ("- [1", "not YAML: line 1: expected"),
        ("- " + "[" * 1000 + "]" * 1000, "not YAML: it is nested too deeply"),
        ("- !!timestamp x", "not YAML: "),
        ("- \x1b", "not YAML: .* special characters are not allowed"),
        ("- " + BOMB.replace("\n", "\n  "), "not YAML: its aliases unfold to"),
        ("- ? " + "x" * 5000 + "\n  : 3", "x{100}[.]{3}x{100}: expected arguments by name"),
    ],
)
def test_what_is_no_list_of_transforms_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^augment: .*mine.yaml: {sentence}"):
        Input(augment=str(file))


def test_other_values_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^augment: expected official, .*, got 'strnog'; did you mean strong?"):
        Input(augment="strnog")
    with pytest.raises(ValueError, match=r"^augment: file .*nowhere\.yaml does not exist"):
        Input(augment=str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ValueError, match="^augment: not YAML: line 1"):
        Input(augment="[{a: 1")


def test_the_files_in_the_documentation_are_files() -> None:
    page = (Path(__file__).parents[4] / "docs" / "augmentation.md").read_text()
    strong, other = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert steps_of(strong) == steps_of(PRESETS["strong"])
    augmentation(other, Size())
