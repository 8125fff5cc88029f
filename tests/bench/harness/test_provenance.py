"""What is written beside a number."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from msdeform.bench.harness import provenance as module
from msdeform.bench.harness.provenance import command_line, provenance
from msdeform.bench.options import OperatorsOptions, SeedsOptions

CPU = torch.device("cpu")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_every_field() -> None:
    row = provenance(CPU, ["python", "-m", "msdeform.bench.gpu", "--quick"])
    assert set(row) >= {"commit", "dirty", "device", "driver", "torch", "triton", "cuda", "python", "host_cpu", "date"}
    assert row["device"] == "cpu"
    assert row["torch"] == torch.__version__
    assert row["command"] == "python -m msdeform.bench.gpu --quick"
    assert json.loads(json.dumps(row)) == row


def test_commit_and_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    assert provenance(CPU, [])["commit"] is None
    assert provenance(CPU, [])["dirty"] is None
    # of a copy without git, what its owner says
    monkeypatch.setenv("MSDEFORM_COMMIT", "abc1234")
    assert (provenance(CPU, [])["commit"], provenance(CPU, [])["dirty"]) == ("abc1234", None)
    git(tmp_path, "init", "-q")
    for name in ("code.py", "bench/results/rows.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert provenance(CPU, [])["commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert provenance(CPU, [])["dirty"] is False
    (tmp_path / "bench/results/rows.jsonl").write_text("1\n2\n")
    assert provenance(CPU, [])["dirty"] is False  # results being appended
    (tmp_path / "code.py").write_text("2\n")
    assert provenance(CPU, [])["dirty"] is True
    # nor has a copy inside of another repository that one's commit
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.setattr(module, "_ROOT", copy)
    assert provenance(CPU, [])["commit"] == "abc1234"


def test_the_place_of_the_rows_is_no_part_of_the_command() -> None:
    options = OperatorsOptions(quick=True, out=Path("x"), backends=("core", "fakes:wrong"), limit=2)
    assert command_line("msdeform bench", options) == [
        *("msdeform", "bench", "--backends", "core", "fakes:wrong", "--quick", "--limit", "2")
    ]
    seeds = SeedsOptions(data=Path("somewhere/four"), runs=Path("elsewhere/runs"))
    assert command_line("msdeform bench seeds", seeds)[3:] == ["--data", "four"]
