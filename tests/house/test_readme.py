"""What README promises: its Python runs as it stands, its commands exist and take the flags it gives them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msdeform
from msdeform.cli import COMMANDS
from tests.house.project import ROOT

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))


def run(*arguments: str, where: Path = ROOT) -> str:
    command, environment = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False, env=environment)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_the_python_blocks_run_in_order(tmp_path: Path) -> None:
    assert len(PYTHON) >= 4
    # elsewhere, as they write files
    assert "torch.Size([1, 300, 3]) torch.Size([1, 300, 4])" in run("-c", "\n".join(PYTHON), where=tmp_path)


def uses() -> list[tuple[str, tuple[str, ...]]]:
    """Every use of the command in a shell block: its name and the flags given."""
    found = []
    shell = SHELL.replace("\\\n", " ").replace("python -m msdeform.train", "msdeform train")
    for line in shell.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].split("/")[-1] == "msdeform":
            name = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
            found.append((name, tuple(word for word in words if word.startswith("--"))))
    return found


def test_each_command_is_in_the_readme() -> None:
    assert {name for name, _ in uses()} >= {"info", "verify", "train", "eval", "predict", "data synth"}


HELP = """
import sys
from msdeform.cli import main
for name in sys.argv[1:]:
    print("<<<", name)
    try:
        main([*name.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code, name
"""


def test_each_command_takes_its_flags() -> None:
    names = sorted({name for name, _ in uses()})
    texts = dict(part.split("\n", 1) for part in run("-c", HELP, *names).split("<<< ")[1:])
    assert sorted(texts) == names
    for name, flags in uses():
        for flag in flags:
            assert re.search(rf"{flag}\b", texts[name]), (name, flag)


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == msdeform.__version__
