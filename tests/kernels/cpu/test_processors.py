"""The CPU kernels as they are compiled for other processors: run where this one can, else looked at as assembly.

What a processor's registers hold decides how points and channels are cut into vectors, so kernels for 64, 32 and 16
bytes are three programs. Of systems other than this one only the machine code is seen: nothing here ran on them.
"""

import itertools
import platform
import re
from collections.abc import Iterator

import pytest
import torch

llvm = pytest.importorskip("llvmlite.binding", reason="the CPU backend needs llvmlite")

from msdeform.kernels import call_cache  # noqa: E402
from msdeform.kernels.cpu import backward, emit, forward, launch  # noqa: E402
from msdeform.kernels.cpu.points import Kind  # noqa: E402
from msdeform.kernels.diagnostics.checks import Case, check_case  # noqa: E402

HASWELL = ("haswell", {"avx": True, "avx2": True, "fma": True, "f16c": True})
NEHALEM = ("nehalem", {"sse4.2": True})
X86 = platform.machine().lower() in ("x86_64", "amd64")


def forget() -> None:
    launch._forward.cache_clear()
    launch._backward.cache_clear()
    call_cache.forget()


@pytest.fixture
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kernels are compiled for another x86 processor, whose instructions this one has."""
    name, features = request.param
    here = llvm.get_host_cpu_features() if X86 else {}
    if not all(here.get(feature) for feature in features):
        pytest.skip(f"code for {name} does not run on this processor")
    described = llvm.get_process_triple(), name, llvm.FeatureMap(features)
    monkeypatch.setattr(emit, "_processor", lambda: described)
    monkeypatch.setattr(emit, "_compiler", None)
    forget()
    yield name
    forget()


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# on one processor or the other every dtype and both functions
QUICK = [(HASWELL, 4, torch.float32), (HASWELL, None, torch.float16), (NEHALEM, None, torch.float64)]
QUICK += [(NEHALEM, 4, torch.bfloat16)]


@pytest.mark.parametrize(
    ("processor", "coordinates", "dtype"),
    [
        pytest.param(
            *kind, marks=[] if kind in QUICK else [pytest.mark.slow], id="-".join([kind[0][0], *map(str, kind[1:])])
        )
        for kind in itertools.product((HASWELL, NEHALEM), (None, 4), DTYPES)
    ],
    indirect=["processor"],
)
def test_kernels_for_narrower_registers(processor: str, coordinates: int | None, dtype: torch.dtype) -> None:
    if dtype is torch.float16 and processor == "nehalem":
        pytest.skip("x86 processors without F16C have no CPU backend")
    assert emit.vector_bytes() == {"haswell": 32, "nehalem": 16}[processor]
    for D, P, sizes in ((32, 4, ((5, 6), (2, 3), (1, 1), (1, 4))), (11, 3, ((4, 5),))):
        case = Case(B=2, Q=9, H=2, D=D, P=P, sizes=sizes, dtype=dtype, coordinates=coordinates)
        breaches = [finding for finding in check_case(case, ["cpu"], "cpu") if not finding.comparison.ok]
        assert not breaches, (case.describe(), breaches)


@pytest.mark.parametrize("processor", [HASWELL, NEHALEM], indirect=True, ids=lambda p: p[0])
def test_an_infinite_pixel_beyond_narrower_registers(processor: str) -> None:
    """The exact way, which takes over where a sum is not finite."""
    value = torch.ones(1, 16, 1, 12)
    value[0, 5, 0, 11] = float("inf")
    locations = torch.tensor([[0.3, 0.3], [0.7, 0.8]]).view(1, 2, 1, 1, 1, 2)
    output = launch_forward(value, locations)
    assert (output[0, 0] == torch.tensor([*[1.0] * 11, float("inf")])).all()
    assert (output[0, 1] == 1).all(), "it is not a neighbour"


def launch_forward(value: torch.Tensor, locations: torch.Tensor) -> torch.Tensor:
    tensors = value, locations, torch.ones(locations.shape[:-1])
    return launch.prepare_forward((4, 4), tensors)((4, 4), tensors)


SYSTEMS = {
    "macOS on ARM": ("arm64-apple-macosx11.0.0", "apple-m1", 16, "bl"),
    "Linux on ARM": ("aarch64-unknown-linux-gnu", "neoverse-n1", 16, "bl"),
    "Windows": ("x86_64-pc-windows-msvc", "haswell", 32, "call"),
    "macOS on x86": ("x86_64-apple-macosx10.15.0", "haswell", 32, "call"),
}


KINDS = [("float32", "float32"), ("float16", "float32"), ("bfloat16", "float64")]


@pytest.mark.parametrize(
    ("system", "value", "compute"),
    [
        pytest.param(system, *kind, marks=[] if (i + j) % 3 == 0 else [pytest.mark.slow])
        for i, system in enumerate(SYSTEMS)
        for j, kind in enumerate(KINDS)
    ],
)
def test_code_for_other_systems_calls_nothing(
    system: str, value: emit.Float, compute: emit.Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compiles, and needs no function of a run-time library, which the system might not have."""
    triple, cpu, wide, call = SYSTEMS[system]
    features = {"avx": True} if wide == 32 else {}
    monkeypatch.setattr(emit, "_processor", lambda: (triple, cpu, features))
    assert emit.vector_bytes() == wide
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=2)
    kind = Kind(value, value, value, value, compute, 32, 4, 4, 2)
    wanted = backward.Wanted(True, True, True, True)
    emitters = [backward.emit(kind, wanted, shared=shared, summed=True) for shared in (False, True)]
    for emitter in (forward.emit(kind), *emitters):
        assembly = machine.emit_assembly(llvm.parse_assembly(str(emitter.finish())))
        called = set(re.findall(rf"^\s+{call}q?\s+(\S+)", assembly, re.MULTILINE))
        assert len(assembly.splitlines()) > 500
        assert called == set()
        assert re.search(r"\sprefetcht1|\sprfm\s+pldl2keep", assembly), "pixels are fetched ahead"
