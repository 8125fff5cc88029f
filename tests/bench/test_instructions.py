"""`msdeform bench instructions`: our CUDA kernels, a cubin from elsewhere, and a package's Triton kernels by name."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from msdeform.bench import instructions
from msdeform.bench.cases import find
from msdeform.cli import main
from msdeform.kernels.cuda import compile as nvrtc

pytestmark = pytest.mark.aot

pytest.importorskip("triton")  # whose wheel has the disassemblers
needs_compiler = pytest.mark.skipif(nvrtc._compiler_unavailable() is not None, reason="nothing compiles CUDA C++ here")

# what stands where deformops has its kernels, with the names of arguments that a launch would give
KERNELS = """
import triton
import triton.language as tl

@triton.jit
def msda_forward_kernel(value_ptr, loc_ptr, output_ptr, num_levels, num_points, stride_oq, stride_od,
                        BLOCK_SIZE_Q: tl.constexpr, BLOCK_SIZE_D: tl.constexpr, aggregate: tl.constexpr):
    d = tl.arange(0, BLOCK_SIZE_D)
    q = tl.arange(0, BLOCK_SIZE_Q)
    total = tl.zeros([BLOCK_SIZE_Q, BLOCK_SIZE_D], tl.float32)
    for level in range(num_levels):
        for point in range(num_points):
            total += tl.load(value_ptr + q[:, None] * 32 + d + level * 1000 + point * 10).to(tl.float32)
    tl.store(output_ptr + q[:, None] * stride_oq + d * stride_od, total)

@triton.jit
def _msda_backward_kernel(value_ptr, grad_value_ptr, batch_size,
                          BLOCK_SIZE_Q: tl.constexpr, BLOCK_SIZE_D: tl.constexpr):
    d = tl.arange(0, BLOCK_SIZE_D)
    tl.store(grad_value_ptr + d, tl.load(value_ptr + d).to(grad_value_ptr.dtype.element_ty))
"""


@needs_compiler
def test_a_cubin_is_counted_and_kept_without_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.cubin"
    file.write_bytes(nvrtc.cubin("sm_90", nvrtc.Dtypes("float32", "float32", "float32")))
    words = ["--cubin", str(file), "--implementation", "theirs", "--kernels", nvrtc.FORWARD, nvrtc.BACKWARD]
    assert main(["bench", "instructions", *words, "--out", str(tmp_path / "rows")]) == 0
    assert "theirs" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows" / "instructions.jsonl").read_text().splitlines()]
    forward, backward = rows
    assert (forward["kernel"], backward["kernel"], forward["arch"]) == ("forward plain", "backward plain", 90)
    assert 1000 < forward["instructions_per_query_and_head"] < backward["instructions_per_query_and_head"]
    assert forward["registers"] > 16
    assert forward["spilled_bytes"] == 0
    assert str(tmp_path) not in forward["command"]
    assert "--cubin theirs.cubin" in forward["command"]
    # the same that a measured row of ours takes its floor from
    case = find("encoder-800x1066-b2")
    assert instructions.per_query_and_head("cuda", "both", "float32", False, case, 90) == sum(
        row["instructions_per_query_and_head"] for row in rows
    )


@needs_compiler
def test_points_cost_what_a_loop_over_them_costs() -> None:
    counts = [
        instructions._count("cuda", "forward", "float32", False, find(name), 90)
        for name in ("encoder-800x1066-b2", "bevformer-like", "encoder-single-scale")
    ]
    four, eight, single = (count or 0 for count in counts)
    assert 1.7 < eight / four < 2.0  # 8 points a level against 4, and what comes once a level
    assert 0.25 < single / four < 0.4  # one level against four, and what comes before
    assert instructions.per_query_and_head("cuda", "forward", "float32", True, find("odd"), 90) is None
    assert instructions.per_query_and_head("core", "both", "float32", False, find("odd"), 90) is None


def test_someone_elses_triton_kernels_by_the_names_of_their_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = tmp_path / "deformops" / "backends" / "triton" / "_kernels"
    kernels.mkdir(parents=True)
    (tmp_path / "deformops" / "__init__.py").write_text("raise RuntimeError('wants a newer Python')\n")
    (kernels / "__init__.py").touch()
    (kernels / "msda_query_tiled.py").write_text(KERNELS)
    for name in [name for name in sys.modules if name.split(".")[0] == "deformops"]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["bench", "instructions", "--deformops", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("deformops")]
    assert len(rows) == 4 * 3
    for name in [name for name in sys.modules if name.split(".")[0] == "deformops"]:
        monkeypatch.delitem(sys.modules, name)


def test_our_triton_kernel_for_a_case() -> None:
    reduced = find("decoder-reduced")
    whole = instructions.per_query_and_head("triton", "forward", "float32", True, reduced, 90)
    assert whole is not None
    assert 50 < whole < 500
    assert whole == instructions.per_query_and_head("triton", "forward", "float32", True, reduced, 90)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cubin", "none.cubin"], "--cubin: expected a file, with --implementation and --kernels beside it"),
        (["--deformops", "tests"], "--deformops: expected a folder with the package in it, got tests"),
        (["--arch", "9"], "argument --arch: expected a compute capability times ten, such as 80 or 90, got 9"),
    ],
)
def test_slips(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "instructions", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"msdeform bench instructions: {sentence}\n"


@needs_compiler
def test_an_unknown_kernel_of_a_cubin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.cubin"
    file.write_bytes(nvrtc.cubin("sm_90", nvrtc.Dtypes("float32", "float32", "float32")))
    words = ["--cubin", str(file), "--implementation", "theirs", "--kernels", "forwards", "backward"]
    assert main(["bench", "instructions", *words]) == 1
    assert "expected a part of one of msda_backward, msda_forward, got 'forwards'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "expected"), [("cells", ["keys", "cells", "pixels", "points"]), ("auto", ["backward"])]
)
def test_a_backward_counts_as_it_is_launched(method: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    aot = pytest.importorskip("msdeform.kernels.triton.aot")
    from msdeform.kernels.triton import launch

    monkeypatch.setattr(launch, "backward_method", method)
    compiled = []

    def ten(kind: str, arch: int, **_: Any) -> Any:
        compiled.append(kind)
        return SimpleNamespace(per_query=10.0)

    monkeypatch.setattr(aot, "compile_kernel", ten)
    monkeypatch.setattr(instructions, "_counted", {})
    case = find("encoder-800x1066-b2")
    assert instructions.per_query_and_head("triton", "backward", "float32", True, case, 90) == 10.0 * len(expected)
    assert compiled == expected
