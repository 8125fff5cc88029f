"""The Makefile, CI and README name the same commands, and each of them exists."""

import re
import shutil
import subprocess

import pytest

from tests.house.project import ROOT

TARGETS = {
    *("help", "demo", "test", "test-full", "check", "docs", "bench", "gpu", "mutants", "fuzz", "lock", "audit", "dist"),
    "clean",
}


def make(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_help_lists_every_target() -> None:
    assert set(re.findall(r"^  make ([a-z-]+) +\S", make("help"), re.MULTILINE)) == TARGETS
    assert make() == make("help"), "help is what a bare make prints"


def test_a_wrong_python_gets_a_sentence(tmp_path: object) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "test", f"VENV={tmp_path}/venv", "PYTHON=no-such-python"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "needs Python 3.11 to 3.14; tried: no-such-python does not run;" in answer.stderr


def test_readme_names_only_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\bmake ([a-z-]+)", readme))
    assert {"demo", "test"} <= named <= TARGETS
    for path in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", readme):
        assert (ROOT / path).exists(), f"README links to {path}"


def test_ci_runs_the_readme_test_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in lines
    assert "make check" in lines
