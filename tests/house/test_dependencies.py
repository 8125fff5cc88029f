"""Ranges in pyproject.toml, pins in both constraints files, Python versions, what each platform is asked to install."""

import re
import sys
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.project import PYPROJECT, ROOT
from tests.house.supply.closure import closure, pinned, pins

BASE = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines] for name, lines in PYPROJECT["project"]["optional-dependencies"].items()
}
PYTHONS = re.findall(r"^PYTHONS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
ALL = BASE + [requirement for requirements in EXTRAS.values() for requirement in requirements]


NEWEST, OLDEST = pins("constraints.txt"), pins("constraints-oldest.txt")
# the set that this environment was made with
PINS = OLDEST if Version(version("numpy")) == pinned(OLDEST["numpy"]) else NEWEST

# the values that pip's markers take on each platform
PLATFORMS = {
    "linux": {"platform_system": "Linux", "platform_machine": "x86_64", "sys_platform": "linux", "os_name": "posix"},
    "linux-arm": {"platform_system": "Linux", "platform_machine": "aarch64", "sys_platform": "linux"},
    "macos": {"platform_system": "Darwin", "platform_machine": "arm64", "sys_platform": "darwin", "os_name": "posix"},
    "windows": {"platform_system": "Windows", "platform_machine": "AMD64", "sys_platform": "win32", "os_name": "nt"},
}


def wanted(platform: str, python: str) -> set[str]:
    values = {**PLATFORMS[platform], "python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    return {canonicalize_name(r.name) for r in ALL if r.marker is None or r.marker.evaluate(values)}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_triton_and_cuda_are_asked_for_on_linux_only(platform: str, python: str) -> None:
    device_parts = {"triton", "cuda-core", "cuda-pathfinder"}
    assert wanted(platform, python) & device_parts == (device_parts if platform == "linux" else set())
    assert {"torch", "numpy", "torchvision", "scipy"} <= wanted(platform, python)


def test_the_base_is_the_operator_alone() -> None:
    assert {canonicalize_name(r.name) for r in BASE} == {"numpy", "torch", "triton", "cuda-core", "cuda-pathfinder"}
    assert set(EXTRAS) == {"cpu", "train", "explain", "explore", "video", "serve", "dev"}
    assert {str(r) for r in EXTRAS["cpu"]} <= {str(r) for r in EXTRAS["train"]}


def test_one_list_of_pythons() -> None:
    prefix = "Programming Language :: Python :: 3."
    classifiers = PYPROJECT["project"]["classifiers"]
    assert [f"3.{line.removeprefix(prefix)}" for line in classifiers if line.startswith(prefix)] == PYTHONS
    assert PYPROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == PYTHONS[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")


@pytest.mark.parametrize("pinning", [NEWEST, OLDEST], ids=["newest", "oldest"])
def test_pins_lie_in_the_ranges(pinning: dict[str, Requirement]) -> None:
    names = {canonicalize_name(r.name) for r in ALL}
    assert names - set(pinning) == set(), "not pinned"
    outside = [str(r) for r in ALL if pinned(pinning[canonicalize_name(r.name)]) not in r.specifier]
    assert outside == [], "pinned outside its range"


def test_oldest_pins_are_the_lower_bounds() -> None:
    bounds = {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in ALL}
    assert {name: pinned(OLDEST[name]) for name in bounds} == bounds


@pytest.fixture(scope="module")
def brought() -> set[str]:
    """Every distribution that the requirements bring, direct and indirect, as far as it is installed here."""
    return set(closure(ALL))


def test_everything_installed_is_pinned(brought: set[str]) -> None:
    assert brought >= {"torch", "numpy", "pytest", "pluggy"}
    assert brought - set(PINS) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="the CUDA pins are only asked for on Linux")
def test_nothing_is_pinned_in_vain(brought: set[str]) -> None:
    if any(canonicalize_name(r.name) not in brought for r in ALL):
        pytest.skip("part of the requirements is not installed here, so their own requirements are unknown")
    asked_for = {name for name, pin in PINS.items() if pin.marker is None or pin.marker.evaluate()}
    assert asked_for - brought == set()
