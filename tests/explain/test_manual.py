"""What docs/explain.md promises: its commands have the flags it names, its Python runs, its pictures are there."""

import re
import shlex

import pytest
import torch
from PIL import Image

from msdeform.cli import COMMANDS, main
from msdeform.models.size import Size
from tests.explain.models import uneven
from tests.house.project import ROOT

MANUAL = (ROOT / "docs" / "explain.md").read_text()


def uses() -> list[tuple[str, frozenset[str]]]:
    """Every use of the command, in blocks and between backticks: its name and the flags given."""
    blocks = re.findall(r"```sh\n(.*?)```", MANUAL, re.DOTALL)
    inline = re.findall(r"`(msdeform [^`]+)`", MANUAL)
    lines = "\n".join([*blocks, *inline]).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and words[0] == "msdeform":
            name = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
            found.append((name, frozenset(word for word in words if word.startswith("--"))))
    return found


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
