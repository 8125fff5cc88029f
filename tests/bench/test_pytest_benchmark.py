"""``pytest bench/ --benchmark-only``, the very command, on one of its cells."""

import subprocess
import sys

import pytest

from tests.house.project import ROOT

pytest.importorskip("pytest_benchmark")


def test_the_command_times_the_operator_and_says_what_it_skipped() -> None:
    chosen = "decoder-reduced and plain and forward and (core or mmcv) and not reference"
    command = [sys.executable, "-m", "pytest", "bench/", "--benchmark-only", "--benchmark-max-time=0.05", "-k", chosen]
    answer = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout
    assert "benchmark 'decoder-reduced plain forward': 1 tests" in answer.stdout
    assert "1 passed" in answer.stdout
    assert "mmcv: not installed" in answer.stdout
