"""The script that runs other projects' tests with our operator: what it counts, and what it says."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("run.py")

# in the form of roulbac's: three tests, of which ours passes one, and one cannot be run
THEIRS = """
import pytest, torch
from msda_triton import multi_scale_deformable_attention as attend

def test_shape():
    device = "cuda"
    shapes = torch.tensor([[2, 3]], device=device)
    value, locations = torch.rand(1, 6, 2, 4, device=device), torch.rand(1, 5, 2, 1, 3, 2, device=device)
    assert attend(value, shapes, None, locations, torch.rand(1, 5, 2, 1, 3, device=device)).shape == (1, 5, 8)

def test_refused():
    with pytest.raises(ValueError):
        pass

@pytest.mark.skip
def test_elsewhere():
    pass
"""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_what_passes_and_fails_is_counted(tmp_path: Path) -> None:
    clone = tmp_path / "roulbac/msda-triton"
    (clone / "tests").mkdir(parents=True)
    (clone / "tests/test_msda.py").write_text(THEIRS)
    ended = run("roulbac", "--clones", str(tmp_path))
    assert "| roulbac | no commit known | the operator | 2 | 1 | 1 |  |  | 1 |" in ended.stdout, ended.stderr
    assert "roulbac: tests/test_msda.py::test_refused: Failed: DID NOT RAISE ValueError" in ended.stdout
    assert ended.returncode == 1


def test_what_cannot_be_run_is_said(tmp_path: Path) -> None:
    ended = run("rziga", "--clones", str(tmp_path))
    assert f"not run: rziga: expected a clone of rziga/msda-triton at {tmp_path}/rziga/msda-triton" in ended.stdout
    assert ended.returncode == 1
    assert "unknown suite detrx; expected one of mmcv," in run("detrx").stderr
