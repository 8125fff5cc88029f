"""What docs/explain.md promises: its flags are those of explain, its pictures are there."""

import re

import pytest

from msdeform.cli import main
from tests.house.project import ROOT

MANUAL = (ROOT / "docs" / "explain.md").read_text()


def test_other_flags_are_of_explain(capsys: pytest.CaptureFixture[str]) -> None:
    """A flag between backticks alone is one of explain; others stand with their command."""
    alone = set(re.findall(r"`(--[a-z-]+)", MANUAL))
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    told = capsys.readouterr().out
    assert {flag for flag in alone if not re.search(rf"{flag}\b", told)} == set()


def test_the_pictures_are_there() -> None:
    quality = (ROOT / "docs" / "explanation-quality.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", MANUAL + quality)
    assert len(pictures) > 10
    assert {name for name in pictures if not (ROOT / "docs" / name).is_file()} == set()
    shown = {name.removeprefix("explain/") for name in pictures}
    assert {file.name for file in (ROOT / "docs" / "explain").iterdir()} == shown
