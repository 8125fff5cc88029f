"""``pytest bench/ --benchmark-only``, the very command, on one of its cells."""

import os
import subprocess
import sys

import pytest

from tests.house.project import ROOT

pytest.importorskip("pytest_benchmark")


def test_the_command_times_the_operator_and_says_what_it_skipped() -> None:
    chosen = "decoder-reduced and plain and forward and (core or mmcv) and not reference"
    command = [sys.executable, "-m", "pytest", "bench/", "--benchmark-only", "--benchmark-max-time=0.05", "-k", chosen]
    # a process of pytest-xdist hands its variables on, and pytest-benchmark measures nothing where it finds them
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    answer = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "benchmark 'decoder-reduced plain forward': 1 tests" in answer.stdout
    assert "1 passed" in answer.stdout
    assert "mmcv: not installed" in answer.stdout
