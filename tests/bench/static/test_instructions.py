"""`msdeform bench instructions`: a kernel counted by hand, our own kernels, and others' from their sources."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench import options
from msdeform.bench.operator.cases import Case
from msdeform.bench.operator.inputs import make_inputs
from msdeform.bench.static import instructions, kernel_calls, listings
from msdeform.bench.static.counts import COUNTS
from msdeform.bench.static.kernel_calls import Call
from msdeform.cli import main
from msdeform.kernels.cuda import compile as nvrtc

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

pytestmark = pytest.mark.aot
needs_compiler = pytest.mark.skipif(nvrtc._compiler_unavailable() is not None, reason="nothing compiles CUDA C++ here")
TINY = Case("tiny", ((8, 8), (4, 4), (2, 2), (2, 2)), B=1)


@triton.jit
def scale_kernel(input_ptr, output_ptr, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(output_ptr + place, tl.load(input_ptr + place * STRIDE) * 2)


def counts_of(stride: int) -> dict[str, Any]:
    numbers, out = torch.ones(512 * 8), torch.empty(512)
    call = Call("ours", "scaling", lambda _: scale_kernel[(1,)](numbers, out, 512, stride))
    case = Case("two pairs", ((1, 1),), B=1, Q=2, H=1)
    [row] = instructions.counted(call, case, "float32", 90)
    assert out.eq(2).all()
    return row


def test_a_kernel_by_hand() -> None:
    """512 numbers by 4 warps, 16 bytes a thread: 512 bytes a warp of four wavefronts and 16 sectors; for two pairs."""
    row = counts_of(1)
    assert (row["kernel"], row["call"], row["case"], row["arch"]) == ("scale", "scaling", "two pairs", 90)
    assert row["wavefronts"] == (4 * 4 + 4 * 4) / 2
    assert row["sectors"] == (4 * 16 + 4 * 16) / 2
    assert row["reductions"] == row["shared_conflicts"] == row["spilled_bytes"] == 0
    # every warp executes the whole listing, as there is no branch
    assert row["warp_instructions"] == row["ptx"] * 4 / 2
    # numbers eight apart are 32 bytes each: a sector for every number, and four of them to a line
    assert counts_of(8)["sectors"] == (512 + 4 * 16) / 2


PTX = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry other() { ret; }
.visible .entry kernel(
	.param .u64 kernel_param_0
)
.reqntid 128
{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<3>;
	.reg .b64 	%rd<3>;
	ld.param.u64 	%rd1, [kernel_param_0];
	cvta.to.global.u64 	%rd2, %rd1;
	mov.u32 	%r1, %tid.x;
	setp.ne.s32 	%p1, %r1, 0;
$L__BB0_1: // a label, and a comment;
	@%p1 bra 	$L__BB0_2;
	st.global.u32 	[%rd2], %r1;
$L__BB0_2:
	ret;
}
"""


def test_a_listing_by_hand() -> None:
    found = listings.listing(PTX, "kernel")
    assert found["ptx"] == 7
    assert 4 < found["sass"] < 20
    assert found["registers"] >= 4
    assert found["spilled_bytes"] == 0
    with pytest.raises(ValueError, match="kernel kern: not in this PTX"):
        listings.listing(PTX, "kern")


def test_our_calls_and_their_kernels() -> None:
    inputs = make_inputs(TINY, torch.float32, torch.device("cpu"), 0)
    calls = {call.name: call for call in kernel_calls.triton(inputs, TINY, 90)}
    assert list(calls)[:2] == ["forward fused", "forward plain"]
    rows = {name: instructions.counted(calls[name], TINY, "float32", 90) for name in ("forward fused",)}
    [forward] = rows["forward fused"]
    # four rows of 128 bytes for each of 16 points, and what finds them
    assert 64 <= forward["wavefronts"] < 128
    assert forward["registers"] > 32


@pytest.mark.slow
def test_each_backward_has_kernels_of_its_own() -> None:
    inputs = make_inputs(TINY, torch.float32, torch.device("cpu"), 0)
    calls = {call.name: call for call in kernel_calls.triton(inputs, TINY, 90)}
    atomics, in_order = (
        instructions.counted(calls[name], TINY, "float32", 90) for name in ("backward fused", "backward fused, sorted")
    )
    assert (len(atomics), len(in_order)) == (1, 4)
    assert atomics[0]["reductions"] > 16
    assert not any(row["reductions"] for row in in_order)


# what stands where deformops has its kernels, with the arguments that its launches have
KERNELS = """
import torch
import triton
import triton.language as tl

@triton.jit
def msda_forward_kernel(value, shapes, starts, locations, weights, output, B, Q, H, L, P, D,
                        vb, vs, vh, vd, lb, lq, lh, ll, lp, lc, ab, aq, ah, al, ap, ob, oq, oh, od,
                        BLOCK_SIZE_Q: tl.constexpr, BLOCK_SIZE_D: tl.constexpr, aggregate: tl.constexpr):
    d = tl.arange(0, BLOCK_SIZE_D)
    q = tl.program_id(0) * BLOCK_SIZE_Q + tl.arange(0, BLOCK_SIZE_Q)[:, None]
    place = q * oq + tl.program_id(1) * oh + d * od
    tl.store(output + place, tl.load(value + d + q * 0) + aggregate, mask=q < Q)

@triton.jit
def _add(grad_value, D: tl.constexpr):
    tl.atomic_add(grad_value + tl.arange(0, D), tl.full([D], 1.0, tl.float32))

def atomic_backward_launch(grad_output, value, shapes, starts, locations, weights):
    _add[(1,)](torch.zeros(32), 32)
"""


def test_someone_elses_triton_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = tmp_path / "deformops" / "backends" / "triton" / "_kernels"
    kernels.mkdir(parents=True)
    (tmp_path / "deformops" / "__init__.py").write_text("raise RuntimeError('wants a newer Python')\n")
    (kernels / "__init__.py").touch()
    (kernels / "msda_query_tiled.py").write_text(KERNELS)
    name = options.COUNTED_CASES[0]
    monkeypatch.setattr(instructions, "CASES", {name: replace(TINY, name=name)})
    loaded = [name for name in sys.modules if name.split(".")[0] == "deformops"]
    for module in loaded:
        monkeypatch.delitem(sys.modules, module)
    try:
        words = ["--deformops", str(tmp_path), "--cases", name, "--dtypes", "float32", "--out", str(tmp_path)]
        assert main(["bench", "instructions", *words]) == 0
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "deformops"]:
            monkeypatch.delitem(sys.modules, name)
    rows = [json.loads(line) for line in (tmp_path / "executed.jsonl").read_text().splitlines()]
    assert [(row["implementation"], row["call"], row["kernel"]) for row in rows] == [
        ("deformops", "forward plain", "msda_forward"),
        ("deformops", "forward softmax inside", "msda_forward"),
        ("deformops", "backward plain", "_add"),
    ]
    assert rows[2]["reductions"] > 0
    assert str(tmp_path) not in rows[0]["command"]
    assert "sass / ptx" in capsys.readouterr().out


def test_each_line_is_printed_when_its_call_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []
    told: list[str] = []

    def counted(call: Call, case: Case, dtype: str, arch: int) -> list[dict[str, Any]]:
        seen = capsys.readouterr()
        printed.append(seen.out)
        told.append(seen.err)
        row = {"case": case.name, "implementation": "triton", "call": call.name, "kernel": "k", "dtype": dtype}
        return [{**row, **dict.fromkeys(COUNTS, 1.0), "sass": 9, "ptx": 10, "registers": 40, "spilled_bytes": 0}]

    calls = [Call("triton", name, lambda _: None) for name in ("one", "two")]
    monkeypatch.setattr(instructions, "counted", counted)
    monkeypatch.setattr(instructions, "_OURS", {"triton": lambda *_: iter(calls)})
    words = ["--cases", "decoder-400x533", "--dtypes", "float32", "--implementations", "triton"]
    assert main(["bench", "instructions", *words]) == 0
    assert "warp instructions" in printed[0]  # the head
    assert printed[1].split()[:3] == ["decoder-400x533", "triton", "one"]
    assert told == [f"compiling and executing triton, {name}, float32, decoder-400x533\n" for name in ("one", "two")]


# what stands where the official kernels are, with the arguments that their launches have
OFFICIAL = """
#include <ATen/ATen.h>
#define POINTS const T* value, const int64_t* shapes, const int64_t* starts, const T* locations, const T* weights
#define SIZES const int B, const int S, const int H, const int D, const int L, const int Q, const int P

template <typename T>
__global__ void ms_deformable_im2col_gpu_kernel(const int n, POINTS, SIZES, T* output) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) output[i] = value[0] + D;
}

template <typename T, unsigned int blockSize>
__global__ void ms_deformable_col2im_gpu_kernel_shm_blocksize_aware_reduce_v1(
    const int n, const T* grad_output, POINTS, SIZES, T* grad_value, T* grad_locations, T* grad_weights) {
    if (blockDim.x == blockSize) atomicAdd(grad_value + threadIdx.x, grad_output[blockSize - 1]);
}

template <typename scalar_t>
void ms_deformable_im2col_cuda(cudaStream_t stream) {}
"""


@needs_compiler
def test_the_official_kernels_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "ms_deform_im2col_cuda.cuh"
    file.write_text(OFFICIAL)
    inputs = make_inputs(TINY, torch.float32, torch.device("cpu"), 0)
    forward, backward = kernel_calls.official(file)(inputs, TINY, 90)
    [row] = instructions.counted(forward, TINY, "float32", 90)
    assert (row["implementation"], row["kernel"]) == ("official", "ms_deformable_im2col_gpu")
    # a warp reads one number and writes a line
    assert (row["wavefronts"], row["sectors"], row["reductions"]) == (2.0, 5.0, 0.0)
    [row] = instructions.counted(backward, TINY, "float32", 90)
    assert (row["wavefronts"], row["sectors"], row["reductions"]) == (2.0, 1.0, 4.0)
    assert 4 < row["sass"] < 40
    assert not list(kernel_calls.official(file)(make_inputs(TINY, torch.float16, torch.device("cpu"), 0), TINY, 90))


def test_another_file_is_not_the_official_one(tmp_path: Path) -> None:
    file = tmp_path / "other.cuh"
    file.write_text("int main() {}\n")
    with pytest.raises(ValueError, match="--official: expected Deformable DETR's ms_deform_im2col_cuda.cuh, got"):
        kernel_calls.official(file)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--official", "none.cuh"], "--official: expected a file; none.cuh does not exist"),
        (["--deformops", "tests"], "--deformops: expected a folder with the package in it, got tests"),
        (
            ["--cases", "encodr"],
            "--cases: no case is called 'encodr'; there are encoder-400x533, decoder-400x533",
        ),
        (["--arch", "9"], "--arch: expected a compute capability times ten, such as 80 or 90, got '9'"),
    ],
)
def test_wrong_words(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "instructions", *words])
    assert capsys.readouterr().err == f"msdeform bench instructions: {sentence}\n"
