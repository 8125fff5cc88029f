"""The CPU backend compiles in memory: no file is written, so there is no cache that could be damaged or planted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# imports first: Python may write what it compiles of them
PROGRAM = """
import resource, sys
import torch
import msdeform
from msdeform.kernels.registry import unavailable
reason = unavailable("cpu")
if reason is not None:
    sys.exit(f"skip: {reason}")
import torch._dynamo  # the first call imports it

# from here on the system refuses every byte that any code of this process, also LLVM's, writes to a file
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with open("refused", "wb", buffering=0) as file:
        file.write(b"1")
    print("the limit does not hold")
except OSError:
    pass
value = torch.randn(2, 14, 2, 8, requires_grad=True)
locations, weights, levels = torch.rand(2, 5, 2, 2, 3, 2), torch.rand(2, 5, 2, 2, 3), torch.tensor([[3, 4], [1, 2]])
found = []
for backend in ("cpu", "reference"):
    output = msdeform.ms_deform_attn(value, levels, locations, weights, backend=backend)
    found.append((output, *torch.autograd.grad(output.sum(), value)))
for one, other in zip(*found):
    torch.testing.assert_close(one, other)
print("right")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_nothing_is_written_to_any_file(tmp_path: Path) -> None:
    """With every folder that caches are put into by habit in an empty one, which stays so."""
    places = {name: str(tmp_path / "home") for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR", "MSDEFORM_CACHE")}
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **places, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path / "home")},
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        check=False,
    )
    if "skip: " in answer.stderr:
        pytest.skip(answer.stderr)
    assert (answer.stdout, answer.returncode) == ("right\n", 0), answer.stderr
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["refused"]
