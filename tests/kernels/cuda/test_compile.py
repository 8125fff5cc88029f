"""The CUDA source compiles without a GPU, to machine code that spills nothing; the cache; why it cannot run."""

import contextlib
import importlib.machinery
import logging
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from msdeform.kernels.cuda import compile as nvrtc
from msdeform.kernels.cuda import launch
from msdeform.kernels.cuda.compile import Dtypes

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
NAMES = ("float64", "float32", "float16", "bfloat16")
FLOAT32 = Dtypes("float32", "float32", "float32")
FLOAT64 = Dtypes("float64", "float64", "float64")
BFLOAT16 = Dtypes("bfloat16", "float32", "float32")
MAIN = (FLOAT32, Dtypes("float16", "float32", "float32"), BFLOAT16)


@pytest.fixture(autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's cache is read or written; tests of this file compile each combination once."""
    monkeypatch.setenv("MSDEFORM_CACHE", str(tmp_path_factory.getbasetemp() / "cubins"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("MSDEFORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def _compiler() -> None:
    if (reason := nvrtc._compiler_unavailable()) is not None:
        pytest.skip(reason)


needs_compiler = pytest.mark.usefixtures("_compiler")


def disassembler(tool: str) -> str:
    """A tool of the CUDA toolkit, as Triton's wheel ships it."""
    triton = pytest.importorskip("triton")
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    if not path.is_file():
        pytest.skip(f"needs {tool}, which Triton's wheel has on Linux")
    return str(path)


def resources(code: bytes, folder: Path) -> dict[str, dict[str, int]]:
    """Registers and bytes of stack, shared and local memory by kernel."""
    file = folder / "code.cubin"
    file.write_bytes(code)
    text = subprocess.run(
        [disassembler("cuobjdump"), "-res-usage", str(file)], capture_output=True, text=True, check=True
    ).stdout
    return {
        name: {key: int(number) for key, number in re.findall(r"(\w+):(\d+)", usage)}
        for name, usage in re.findall(r"Function (\w+):\s*\n\s*(.*)", text)
    }


def assembly(code: bytes, folder: Path) -> dict[str, str]:
    """Machine code by kernel, as text."""
    file = folder / "code.cubin"
    file.write_bytes(code)
    text = subprocess.run(
        [disassembler("nvdisasm"), "-c", str(file)], capture_output=True, text=True, check=True
    ).stdout
    sections = re.split(r"//-+ \.text\.(\w+)", text)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


@needs_compiler
@pytest.mark.parametrize("dtypes", MAIN, ids=lambda dtypes: dtypes.value)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_registers_and_spills(arch: str, dtypes: Dtypes, tmp_path: Path) -> None:
    usage = resources(nvrtc.cubin(arch, dtypes), tmp_path)
    assert set(usage) == {nvrtc.FORWARD, nvrtc.BACKWARD}
    for name, kernel in usage.items():
        assert kernel["STACK"] == kernel["LOCAL"] == 0, f"{name} spills: {kernel}"
    # 64 registers let a multiprocessor hold 32 warps, 128 let it hold 16
    assert usage[nvrtc.FORWARD]["REG"] <= 64
    assert usage[nvrtc.BACKWARD]["REG"] <= 128


@needs_compiler
@pytest.mark.parametrize(
    ("arch", "dtypes", "suffix"),
    [
        ("sm_80", FLOAT32, "F32"),
        ("sm_90", FLOAT32, "F32"),
        ("sm_90", BFLOAT16, "F32"),
        ("sm_90", FLOAT64, "F64"),
        ("sm_120", FLOAT32, "F32"),
    ],
)
def test_grad_value_is_added_by_one_instruction(arch: str, dtypes: Dtypes, suffix: str, tmp_path: Path) -> None:
    backward = assembly(nvrtc.cubin(arch, dtypes), tmp_path)[nvrtc.BACKWARD]
    reductions = re.findall(r"\bREDG?\.E\.ADD\.(\w+)", backward)
    assert len(reductions) >= 4
    assert {name.removesuffix("x1") for name in reductions} == {suffix}
    assert "CAS" not in backward


@needs_compiler
@pytest.mark.parametrize("first", range(4))
def test_every_dtype_in_every_place(first: int) -> None:
    value, locations, weights, _ = NAMES[first:] + NAMES[:first]
    assert nvrtc.cubin("sm_90", Dtypes(value, locations, weights)).startswith(b"\x7fELF")


def test_dtypes_of_tensors() -> None:
    tensors = [torch.empty(0, dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.float16)]
    assert Dtypes.of(*tensors) == ("bfloat16", "float32", "float16")
    assert Dtypes.of(*tensors).accumulate == "float32"
    assert Dtypes("bfloat16", "float64", "float32").accumulate == "float64"


@needs_compiler
def test_a_cached_cubin_is_not_compiled_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = nvrtc.cubin("sm_90", FLOAT32)
    files = list(cache.rglob("*.*"))
    assert [file.suffix for file in files] == [".cubin"]

    def refuse(*_: object) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(nvrtc, "_compile", refuse)
    assert nvrtc.cubin("sm_90", FLOAT32) == first
    with pytest.raises(AssertionError, match="compiled again"):
        nvrtc.cubin("sm_80", FLOAT32)


@needs_compiler
def test_the_key_follows_the_sources(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvrtc.cubin("sm_90", FLOAT32)
    for count, name in enumerate(("SOURCE", "_SHARED_SOURCE"), 2):
        file: Path = getattr(nvrtc, name)
        edited = tmp_path / file.name
        edited.write_text(file.read_text() + "// edited\n")
        monkeypatch.setattr(nvrtc, name, edited)
        nvrtc.cubin("sm_90", FLOAT32)
        assert len(list(cache.rglob("*.cubin"))) == count


@needs_compiler
@pytest.mark.parametrize("keep", [0, 31, 5000])
def test_a_damaged_cache_file_is_replaced(cache: Path, keep: int) -> None:
    first = nvrtc.cubin("sm_90", FLOAT32)
    (file,) = cache.rglob("*.cubin")
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    assert nvrtc.cubin("sm_90", FLOAT32) == first
    assert file.read_bytes()[32:] == first


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")
def test_processes_that_compile_at_once_agree(cache: Path) -> None:
    """None of them finds anything; all write the same file."""
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    processes = [fork.Process(target=lambda: answers.put(nvrtc.cubin("sm_90", FLOAT32))) for _ in range(4)]
    for process in processes:
        process.start()
    found = {answers.get() for _ in processes}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert found == {nvrtc.cubin("sm_90", FLOAT32)}
    assert [file.suffix for file in cache.rglob("*.*")] == [".cubin"]


@needs_compiler
def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MSDEFORM_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="msdeform"):
        assert nvrtc.cubin("sm_90", FLOAT32)
    assert "cannot keep its compiled kernels" in caplog.text


def test_where_the_cache_is(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert nvrtc.cache_dir() == cache
    monkeypatch.delenv("MSDEFORM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nvrtc.cache_dir() == tmp_path / "msdeform"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert nvrtc.cache_dir() == tmp_path / ".cache" / "msdeform"


@needs_compiler
def test_an_unknown_architecture() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)NVRTC failed for sm_10: .*--gpu-architecture"):
        nvrtc.cubin("sm_10", FLOAT32)


def test_why_cuda_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert nvrtc.unavailable() == "no CUDA device was found"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert nvrtc.unavailable() == "this PyTorch was built without CUDA"


@needs_compiler
def test_what_reaches_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the launch itself: cuda.core takes the grid, the block and 64-bit arguments that it gets."""
    import cuda.core

    seen = []
    monkeypatch.setattr(cuda.core, "launch", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(launch, "kernels", lambda device, dtypes: nvrtc.Kernels("forward", "backward"))
    monkeypatch.setattr(launch, "bind_context", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    value, levels = torch.randn(2, 6, 3, 32), torch.tensor([[2, 3]])
    tensors = value, torch.rand(2, 5, 3, 1, 4, 2), torch.rand(2, 5, 3, 1, 4)
    output = launch.forward((2, 3), tensors)
    launch.backward(output, levels, tensors, (True, False, True))
    (stream, forward, kernel, *arguments), (_, backward, _, *more) = seen
    assert (stream, kernel) == ("stream", "forward")
    assert forward.grid[0] == 4  # 30 rows, 8 to a block of 256 threads
    assert tuple(forward.block) == (32, 8, 1)
    assert arguments[1:10] == [0, 2 << 32 | 3, *[0] * 7]  # sizes by value: no pointer, and eight pairs
    assert arguments[13:] == [30, 5, 6, 3, 32, 1, 4, *value.stride()]
    assert backward.grid[0] == 8  # 4 to a block of 128
    assert tuple(backward.block) == (32, 4, 1)
    assert more[2:11] == [levels.data_ptr(), *[0] * 8]  # and by a pointer
    assert more[14] == 0  # no gradient of the locations
    assert all(type(argument) is int for argument in (*arguments, *more))


class _Intercept:
    """Stands before Python's own finders: cuda.core is absent, or broken."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "cuda.core":
            return None
        if self.error is None:
            raise ModuleNotFoundError("No module named 'cuda'", name="cuda")
        return importlib.machinery.ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        assert self.error is not None
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "cuda.core is not installed"),
        (ImportError("libx.so is missing"), "installed but fails to import: ImportError: libx.so is missing"),
        (RuntimeError("bad version"), "installed but fails to import: RuntimeError: bad version"),
    ],
)
def test_why_nothing_can_be_compiled(
    error: Exception | None, expected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "_broken", {})
    monkeypatch.delitem(sys.modules, "cuda.core", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Intercept(error), *sys.meta_path])
    with caplog.at_level(logging.WARNING, logger="msdeform"):
        assert expected in str(nvrtc.unavailable())
        assert expected in str(nvrtc.unavailable())
    assert caplog.text.count("fails to import") == (0 if error is None else 1)
    with pytest.raises(RuntimeError, match=r"cannot compile for sm_90: cuda\.core is"):
        nvrtc.cubin("sm_90", FLOAT32)


@needs_compiler
@pytest.mark.parametrize(
    ("version", "enough"),
    [
        *(("0.1.1", False), ("0.4.2", False), ("0.4.10", False), ("0.5.0", True), ("0.10.0", True), ("1.2.2", True)),
        *(("0.5", True), ("0.5.0rc1", True), ("1.3.0.dev12+gabc", True), ("0", False), ("unknown", True)),
    ],
)
def test_an_old_cuda_core_is_a_sentence(version: str, enough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that are imported from `cuda.core` came there with 0.5; an older one has them under `experimental`."""
    import cuda.core

    monkeypatch.setattr(cuda.core, "__version__", version)
    reason = nvrtc._compiler_unavailable()
    assert (reason is None) == enough
    if not enough:
        assert f"cuda.core: expected version 0.5 or newer, got {version} (pip install" in str(reason)
        with pytest.raises(RuntimeError, match=r"cannot compile for sm_90: cuda\.core: expected version 0\.5"):
            nvrtc.cubin("sm_90", FLOAT32)


def test_importing_costs_neither_torch_nor_cuda() -> None:
    code = "import sys, msdeform.kernels.cuda.compile; print('torch' in sys.modules, 'cuda.core' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]
