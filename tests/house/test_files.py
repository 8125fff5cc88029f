"""What no committed file may hold: paths of one machine, or the address of a package registry."""

import re
import subprocess

import pytest

from tests.house.project import ROOT

FORBIDDEN = re.compile(
    r"(?<![\w.~$}])/(?:work|tmp|root|home|opt|mnt|Users)/\w"  # a path from someone's disk
    r"|[A-Z]:\\\\?Users"
    r"|pypi\.org|pythonhosted\.org|anaconda\.org|ghcr\.io"
)


def tracked() -> list[str]:
    answer = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in answer.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for name in tracked():
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{name}:{text.count(chr(10), 0, m.start()) + 1}: {m.group()}" for m in FORBIDDEN.finditer(text)]
    assert found == []


def test_the_pattern_catches() -> None:
    for folder in ("work", "tmp", "root", "home", "opt"):
        assert FORBIDDEN.search(f'open("/{folder}/x.json")')
    assert FORBIDDEN.search("https://" + "pypi" + ".org/simple")
    for fine in ("models/home/x", "~/work/x", "$HOME/tmp/x", "/usr/bin/env", "a /tmp file"):
        assert not FORBIDDEN.search(fine), fine
