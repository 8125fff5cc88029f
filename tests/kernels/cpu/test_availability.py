"""Where the CPU backend runs, and what is said and done where it does not."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from packaging.requirements import Requirement

from msdeform.kernels import registry
from msdeform.kernels.cpu import backend
from msdeform.kernels.diagnostics.info import describe
from msdeform.kernels.registry import BackendUnavailable, example_inputs
from tests.house.project import PYPROJECT

Install = Callable[..., None]
GAIN = "CPU tensors then run on kernels compiled for this processor, many times faster than `reference`)"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts another llvmlite in the place of the installed one, and has the backend ask again."""

    def put(version: str = "0.50.0", triple: str = "x86_64-unknown-linux-gnu", **features: bool) -> None:
        def get_process_triple() -> str:
            if triple == "broken":
                raise OSError("Could not find/load shared object file 'libllvmlite.so'")
            return triple

        package, binding = ModuleType("llvmlite"), ModuleType("llvmlite.binding")
        package.__dict__.update(__version__=version, binding=binding)
        binding.__dict__.update(get_process_triple=get_process_triple, get_host_cpu_features=lambda: features)
        monkeypatch.setitem(sys.modules, "llvmlite", package)
        monkeypatch.setitem(sys.modules, "llvmlite.binding", binding)

    monkeypatch.delitem(registry._availability, "cpu", raising=False)
    yield put
    registry._availability.pop("cpu", None)


def check_that_auto_falls_to_reference(reason: str) -> None:
    """``info`` gives the reason, ``auto`` takes the reference, and a call that names the backend raises."""
    call = example_inputs("cpu")
    told = describe(call)
    assert f"cpu        does not run: {backend.BACKEND.summary}\n           because {reason}\n" in told
    assert "auto takes 'reference'" in told
    assert registry.resolve(call, "auto") == "reference"
    with pytest.raises(BackendUnavailable) as caught:
        registry.resolve(call, "cpu")
    assert str(caught.value).endswith(f": {reason}")


def test_missing(install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)  # as if it were not installed
    check_that_auto_falls_to_reference(f"llvmlite is not installed (pip install 'msdeform[cpu]'; {GAIN}")
    assert not caplog.records


def test_broken(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install(triple="broken")
    check_that_auto_falls_to_reference(
        "llvmlite is installed but fails to import: OSError: Could not find/load shared object file 'libllvmlite.so' "
        f"(pip install --force-reinstall llvmlite; {GAIN}"
    )
    assert len(caplog.records) == 1  # said once, where a fast backend was lost


def test_too_old(install: Install) -> None:
    install("0.45.1", f16c=True)
    check_that_auto_falls_to_reference(
        f"llvmlite: expected version 0.46 or newer, got 0.45.1 (pip install 'llvmlite>=0.46'; {GAIN}"
    )


def test_the_extra_asks_for_a_version_that_does() -> None:
    (extra,) = (Requirement(line) for line in PYPROJECT["project"]["optional-dependencies"]["cpu"])
    oldest = ".".join(map(str, backend.OLDEST))
    assert str(extra.specifier) == f">={oldest}"


@pytest.mark.parametrize("version", ["0.46.0", "0.46.0rc1", "1.0.0", "0.100", "unknown"])
def test_new_enough(install: Install, version: str) -> None:
    install(version, f16c=True)
    assert backend.unavailable() is None


@pytest.mark.parametrize(
    ("triple", "features", "reason"),
    [
        ("x86_64-pc-windows-msvc", {"f16c": True}, None),
        ("arm64-apple-darwin25.0.0", {}, None),
        ("aarch64-unknown-linux-gnu", {}, None),
        ("x86_64-apple-darwin", {}, "the processor has no F16C instructions, which x86 processors have had since 2013"),
        ("i686-pc-windows-msvc", {"f16c": True}, "expected an x86-64 or a 64-bit Arm processor, got i686"),
        ("powerpc64le-linux-gnu", {}, "expected an x86-64 or a 64-bit Arm processor, got powerpc64le"),
    ],
)
def test_processors(install: Install, triple: str, features: dict[str, bool], reason: str | None) -> None:
    install(triple=triple, **features)
    assert backend.unavailable() == reason


def test_info_names_the_processor_and_its_threads() -> None:
    from llvmlite import __version__
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        told = describe(example_inputs("cpu"))
    finally:
        torch.set_num_threads(before)
    features = get_host_cpu_features()
    bits = 512 if features.get("avx512f") else 256 if features.get("avx") else 128
    assert f"\nllvmlite {__version__}\n" in told
    expected = f"processor: {get_host_cpu_name()}, vectors of {bits} bits; threads 3, by torch.set_num_threads"
    assert f"\n{expected}\n" in told
