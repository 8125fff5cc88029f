"""Every command of the manual, in blocks and between backticks, can be typed as it stands."""

import contextlib
import re
import shlex
from pathlib import Path

import pytest

from msdeform.cli import COMMANDS
from tests.docs.pages import pages
from tests.house.project import ROOT


def commands() -> list[list[str]]:
    """The words of every use of the command, without its own name."""
    manual = "\n".join((ROOT / page).read_text() for page in pages())
    blocks = re.findall(r"```sh\n(.*?)```", manual, re.DOTALL)
    inline = re.findall(r"`(msdeform [^`]+)`", manual)
    lines = "\n".join([*blocks, *inline]).replace("\\\n", " ").replace("-m msdeform.train ", "msdeform train ")
    found = {}
    for line in lines.splitlines():
        words = shlex.split(line, comments=True)
        if "msdeform" in words:  # after torchrun or srun, too
            rest = [word for word in words[words.index("msdeform") + 1 :] if word != "..."]
            found[tuple(rest)] = rest
    return list(found.values())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_can_be_typed_as_they_stand(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where none of their files are, what is missing is a file."""
    monkeypatch.chdir(tmp_path)
    if not words or words[0].startswith("COMMAND") or words[0] == "--help":
        return
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    assert name in COMMANDS
    rest = words[len(name.split()) :]
    with contextlib.suppress(SystemExit, FileNotFoundError):  # a missing file; a run to resume
        COMMANDS[name].read(rest, f"msdeform {name}")
    error = capsys.readouterr().err
    assert not error or not rest or "does not exist" in error
