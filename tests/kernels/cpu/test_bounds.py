"""The CPU backend reads and writes nothing beside its tensors: each lies against a page that cannot be touched."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# channels, (levels, points): every dtype and function comes with every number of channels and of points
DTYPES, FUNCTIONS = ("float32", "bfloat16", "float16", "float64"), (None, 2, 4)
SHAPES = [(1, (1, 1)), (3, (3, 1)), (30, (3, 5)), (71, (4, 4)), (256, (5, 4)), (30, (11, 3)), (71, (1, 1))]
KINDS = list(itertools.product(SHAPES, DTYPES, FUNCTIONS))
QUICK = [KINDS[i] for i in (0, 14, 28, 45, 65, 79)]

SOURCE = """
import ctypes, mmap, sys
from array import array
import torch
from torch import Tensor
from msdeform.kernels.cpu import launch
from msdeform.kernels.diagnostics.checks import Case, evaluate, make_inputs

page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
before = False  # where the page that cannot be touched lies

def guarded(size, fill):
    "A buffer of bytes whose first or last one lies next to that page."
    middle = -(-max(size, 1) // page) * page
    base = libc.mmap(None, ctypes.c_size_t(middle + 2 * page), 3, 0x22, -1, ctypes.c_long(0))
    for guard in (base, base + page + middle):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    start = base + page if before else base + page + middle - size
    ctypes.memset(start, fill, size)
    return (ctypes.c_char * size).from_address(start)

def tensor_of(shape, dtype, fill):
    count = 1
    for size in shape:
        count *= size
    if not count:
        return real_empty(shape, dtype=dtype)
    buffer = guarded(count * dtype.itemsize, fill)
    return torch.frombuffer(buffer, dtype=dtype).view(shape)

def shape_of(shape):
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape

real_empty = torch.empty
torch.empty = lambda *shape, dtype=torch.float32: tensor_of(shape_of(shape), dtype, 0xFF)
torch.zeros = lambda *shape, dtype=torch.float32: tensor_of(shape_of(shape), dtype, 0)
Tensor.new_empty = lambda self, *shape: tensor_of(shape_of(shape), self.dtype, 0xFF)

def guarded_copy(packed, length):
    buffer = guarded(length, 0)
    buffer.raw = packed
    return buffer

class Guarded:
    def __init__(self, letter, numbers):
        plain = array(letter, numbers).tobytes()
        self.size, self.buffer = len(plain), guarded_copy(plain, len(plain))
    def buffer_info(self):
        return ctypes.addressof(self.buffer), self.size

ctypes.create_string_buffer = guarded_copy
launch.array = Guarded
launch._WORTH_A_THREAD = 1

def move(tensor):
    moved = tensor_of(tensor.shape, tensor.dtype, 0)
    return moved.copy_(tensor)

def try_kind(D, levels_and_points, dtype, coordinates):
    global before
    L, P = levels_and_points
    case = Case(B=1, Q=7, H=1, D=D, P=P, dtype=getattr(torch, dtype), coordinates=coordinates, spread=2.0,
                sizes=tuple([(1, 1), (2, 3), (1, 4), (3, 1)][level % 4] for level in range(L)))
    for before in (False, True):
        launch._level_table.cache_clear()
        launch._order.cache_clear()
        tensors = list(make_inputs(case))
        far = tensors[-2][:, 1:3].clone().flatten()
        far[::5], far[1::5], far[2::5], far[3::5] = 1e30, -1e4, float("inf"), float("-inf")
        tensors[-2][:, 1:3] = far.view_as(tensors[-2][:, 1:3])
        tensors[-2][:, 3, ..., 0] = float("nan")
        tensors = [move(tensor) for tensor in tensors]
        grad_output = torch.ones(1, case.Q, case.D, dtype=case.dtype)
        grad_output[:, 4] = float("inf")
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results = evaluate(case, tensors, move(grad_output), "cpu")
            assert results["output"][:, 5:].isfinite().all()

if __name__ == "__main__":
    for kind in KINDS:
        print(kind, flush=True)
        try_kind(*kind)
    print("done")
"""


def run(folder: Path, kinds: list[tuple[object, ...]]) -> None:
    script = folder / "script.py"
    flat = [(D, sizes, dtype, coordinates) for (D, sizes), dtype, coordinates in kinds]  # type: ignore[misc, has-type]
    script.write_text(SOURCE.replace("in KINDS", f"in {flat!r}"))
    answer = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_PERTURB_": "85"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    said = answer.stdout.strip().splitlines() or ["nothing"]
    assert answer.returncode == 0, f"exit status {answer.returncode} after {said[-1]}: {answer.stderr[-2000:]}"
    assert said[-1] == "done"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards memory by Linux's mprotect")
@pytest.mark.parametrize(
    "kinds",
    [QUICK, pytest.param(KINDS, marks=[pytest.mark.slow, pytest.mark.timeout(1600)])],
    ids=["quick", "every"],
)
def test_nothing_beside_the_tensors_is_touched(kinds: list[tuple[object, ...]], tmp_path: Path) -> None:
    """Inputs, output, gradients, scratch memory, level table and order: forward, and backward with one thread and with
    three that share a head; points inside, outside, far outside, infinite and NaN."""
    run(tmp_path, kinds)
