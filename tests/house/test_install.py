"""The three ways to have MSDeform: a wheel, an editable install, and PYTHONPATH alone.

Each is tried in a subprocess that sees this environment's third-party packages and nothing of this checkout but what
was installed there. Builds read a copy of the source, so that nothing is left in the checkout.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.house.project import FOLDERS, ROOT, copy_source, modules

OFFLINE = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
# finding a module costs no torch; the wheel's test imports them all
WHERE = """
from importlib.util import find_spec
import msdeform.cli
assert all(find_spec(f"msdeform.{name}") for name in ("kernels.triton.launch", "models.attention", "train.engine.run"))
print(find_spec("msdeform.kernels.api").origin)
"""


def run(python: Path | str, *arguments: str, cwd: Path, pythonpath: Path | None = None) -> str:
    """Standard output of a Python process that inherits no PYTHONPATH from this one."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if pythonpath is not None:
        environment["PYTHONPATH"] = str(pythonpath)
    command = [str(python), *arguments]
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", str(folder), str(source), cwd=folder)
    (file,) = folder.glob("msdeform-*.whl")
    return file


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment that borrows this one's packages, but runs none of its .pth files.

    An editable install of MSDeform in this environment is such a file, and so stays out of sight.
    """
    folder = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=tmp_path)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_wheel_holds_every_module_and_every_cuda_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package.replace('.', '/')}/{file.name}"
        for package, folder in FOLDERS.items()
        for pattern in ("*.py", "*.cu", "*.cuh", "*_sizes.json", "py.typed", "*.js", "*.css", "*.html")
        for file in (ROOT / folder).glob(pattern)
    }
    code = {name for name in names if ".dist-info/" not in name}
    assert code == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.startswith("msdeform/kernels/cuda/") and name.endswith(".cu") for name in names)


def test_wheel_works_and_all_its_modules_import(wheel: Path, python: Path, empty: Path) -> None:
    run(python, "-m", "pip", "install", *OFFLINE, str(wheel), cwd=empty)
    where = run(python, "-c", WHERE, cwd=empty)
    assert Path(where).is_relative_to(python.parents[1]), where
    names = [name for name in modules() if not name.endswith(".__main__")]  # those run when imported
    if importlib.util.find_spec("triton") is None:
        names = [name for name in names if ".triton." not in name]
    run(python, "-c", f"from importlib import import_module\nfor name in {names!r}: import_module(name)", cwd=empty)
    assert "usage" in run(python.with_name("msdeform"), "--help", cwd=empty).lower()


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_install_works(mode: str, source: Path, python: Path, empty: Path) -> None:
    run(
        python,
        "-m",
        "pip",
        "install",
        *OFFLINE,
        "--config-settings",
        f"editable_mode={mode}",
        "-e",
        str(source),
        cwd=empty,
    )
    where = Path(run(python, "-c", WHERE, cwd=empty))
    assert where.resolve().is_relative_to(source.resolve()), where


def test_pythonpath_alone_works(source: Path, python: Path, empty: Path) -> None:
    assert run(python, "-c", WHERE, cwd=empty, pythonpath=source) == str(source / "kernels" / "api.py")
    assert run(python, "-c", WHERE, cwd=source) == str(source / "kernels" / "api.py"), "from the root itself"


def test_without_any_of_them_there_is_no_msdeform(python: Path, empty: Path) -> None:
    assert run(python, "-c", "import importlib.util as u; print(u.find_spec('msdeform'))", cwd=empty) == "None"
