"""What docs/explain.md promises: its commands can be typed as they stand, its Python runs, its pictures are there.

Commands of docs/training.md are held to the same.
"""

import contextlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from msdeform.cli import COMMANDS, main
from msdeform.models.inference.image_size import Size
from tests.explain.models import uneven
from tests.house.project import ROOT

MANUAL = (ROOT / "docs" / "explain.md").read_text()

PAGES = "\n".join(page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))


def commands(manual: str) -> list[list[str]]:
    """The words of every use of the command, in blocks and between backticks, without its own name."""
    blocks = re.findall(r"```sh\n(.*?)```", manual, re.DOTALL)
    inline = re.findall(r"`(msdeform [^`]+)`", manual)
    lines = "\n".join([*blocks, *inline]).replace("\\\n", " ").replace("-m msdeform.train ", "msdeform train ")
    found = []
    for line in lines.splitlines():
        words = shlex.split(line, comments=True)
        if "msdeform" in words:  # after torchrun or srun, too
            found.append([word for word in words[words.index("msdeform") + 1 :] if word != "..."])
    return found


def name_of(words: list[str]) -> str:
    return " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]


def uses() -> list[tuple[str, frozenset[str]]]:
    """Every use of the command in this manual: its name and the flags given."""
    flags = [frozenset(word for word in words if word.startswith("--")) for words in commands(MANUAL)]
    return [(name_of(words), given) for words, given in zip(commands(MANUAL), flags, strict=True)]


@pytest.mark.parametrize("words", commands(PAGES), ids=" ".join)
def test_commands_can_be_typed_as_they_stand(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where none of their files are, what is missing is a file."""
    monkeypatch.chdir(tmp_path)
    if not words or words[0].startswith("COMMAND") or words[0] == "--help":
        return
    name = name_of(words)
    assert name in COMMANDS
    rest = words[len(name.split()) :]
    with contextlib.suppress(SystemExit, FileNotFoundError):  # a missing file; a run to resume
        COMMANDS[name].read(rest, f"msdeform {name}")
    error = capsys.readouterr().err
    assert not error or not rest or "does not exist" in error


@pytest.mark.parametrize("name", sorted({name for name, _ in uses()}))
def test_commands_have_the_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in COMMANDS
    named = set().union(*(flags for used, flags in uses() if used == name))
    if not named:
        return
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert not stop.value.code
    told = capsys.readouterr().out
    assert {flag for flag in named if not re.search(rf"{flag}\b", told)} == set()


def test_other_flags_are_of_explain(capsys: pytest.CaptureFixture[str]) -> None:
    """A flag between backticks alone is one of explain, or of a command the same paragraph names."""
    alone = set(re.findall(r"`(--[a-z-]+)", MANUAL))
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    told = capsys.readouterr().out
    assert {flag for flag in alone if not re.search(rf"{flag}\b", told)} == set()


def test_the_python_runs(tmp_path, monkeypatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), (90, 120, 30)).save("street.jpg")
    model = uneven("deformable", dec_layers=6).float()
    model.input_size = Size(64, 64)
    names: dict = {"model": model, "images": [torch.rand(3, 64, 64)]}
    exec(block.replace("confidence=0.5", "confidence=0.0"), names)
    assert names["heat"].shape == (48, 64)
    assert names["points"].xy.shape == (2, 2, 2, 2)
    assert names["tape"]["decoder.5.cross"].locations.shape == (1, 10, 2, 2, 2, 2)


def test_the_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", MANUAL)
    assert len(pictures) > 15
    assert {name for name in pictures if not (ROOT / "docs" / name).is_file()} == set()
    shown = {name.removeprefix("explain/") for name in pictures}
    assert {file.name for file in (ROOT / "docs" / "explain").iterdir()} == shown
