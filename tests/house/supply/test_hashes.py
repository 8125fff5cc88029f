"""CI installs only files whose hash stands in constraints-hashes.txt, and that file has what constraints.txt has."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.project import ROOT
from tests.house.test_dependencies import NEWEST, PLATFORMS, PYTHONS

LINES = [line for line in (ROOT / "constraints-hashes.txt").read_text().splitlines() if not line.startswith("#")]
PINS = [Requirement(line.removesuffix("\\")) for line in LINES if not line.startswith(" ")]
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def on(pins: list[Requirement], python: str) -> dict[str, str]:
    """Name -> version of what these pins say to a Python on Linux."""
    values = {**PLATFORMS["linux"], "python_version": python, "python_full_version": f"{python}.0"}
    return {canonicalize_name(p.name): str(p.specifier) for p in pins if p.marker is None or p.marker.evaluate(values)}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_pins_are_those_of_constraints(python: str) -> None:
    assert on(PINS, python) == on(list(NEWEST.values()), python), "constraints.txt changed: run `make lock`"


def test_every_pin_has_hashes_and_nothing_else_is_said() -> None:
    assert len(PINS) == len(NEWEST)
    hashes = 0
    for line, after in zip(LINES, [*LINES[1:], ""], strict=True):
        if line.startswith(" "):
            assert HASH.fullmatch(line), line
            hashes += 1
        else:
            assert line.endswith("\\"), f"no hash follows {line}"
        # the backslash continues a requirement, and its last hash has none
        assert line.endswith("\\") == after.startswith(" "), line
    assert hashes > 10 * len(PINS)


def test_ci_installs_with_hashes_only() -> None:
    """Each of CI's installs checks hashes, but for that of the checkout itself, which brings nothing."""
    script = (ROOT / ".ci" / "run").read_text()
    assert "secure=(install --quiet --disable-pip-version-check --require-hashes --only-binary :all:)" in script
    installs = re.findall(r"^.*-m pip (?!check).*$", script, re.MULTILINE)
    assert len(installs) == 4
    plain = [line for line in installs if '"${secure[@]}"' not in line]
    assert plain == ["    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e ."]


@pytest.mark.parametrize("right", [True, False])
def test_a_wrong_hash_stops_the_install(tmp_path: Path, right: bool) -> None:
    """pip, as CI calls it, with a small wheel whose hash is right, and with one digit of it changed."""
    wheel = tmp_path / "hashed_example-1-py3-none-any.whl"
    about = "hashed_example-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr("hashed_example.py", "")
        opened.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: hashed-example\nVersion: 1\n")
        opened.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        opened.writestr(f"{about}/RECORD", "hashed_example.py,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if not right:
        digest = ("1" if digest[0] == "0" else "0") + digest[1:]
    (tmp_path / "hashes.txt").write_text(f"hashed-example==1 --hash=sha256:{digest}\n")
    install = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes"]
    install += ["--only-binary", ":all:", "--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "to")]
    answer = subprocess.run([*install, "-r", str(tmp_path / "hashes.txt")], capture_output=True, text=True, check=False)
    assert (answer.returncode == 0) is right, answer.stderr
    assert ("DO NOT MATCH THE HASHES" in answer.stderr) is not right
    assert (tmp_path / "to" / "hashed_example.py").exists() is right


AUDITS = {
    "clean": ("echo 'No known vulnerabilities found' >&2", 0, "No known vulnerabilities found"),
    "found": ("echo 'jinja2 2.0 PYSEC-1'; echo 'Found 1 known vulnerability' >&2; exit 1", 2, "jinja2 2.0 PYSEC-1"),
    "unreachable": ("echo 'a traceback' >&2; echo 'no route' >&2; exit 1", 2, "nothing was audited: no route\n"),
}


@pytest.mark.parametrize("case", AUDITS)
def test_an_audit_without_an_answer_is_no_clean_audit(tmp_path: Path, case: str) -> None:
    script, status, printed = AUDITS[case]
    tool = tmp_path / "bin" / "pip-audit"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    (tmp_path / ".ready").touch()
    command = ["make", "-C", str(ROOT), "audit", f"VENV={tmp_path}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == status, answer.stderr
    assert printed in answer.stdout + answer.stderr
    assert ("nothing was audited" in answer.stderr) is (case == "unreachable")
