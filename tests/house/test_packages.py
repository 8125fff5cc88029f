"""The package list in pyproject.toml, the folders on disk, and the arrows between them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.project import FOLDERS, ROOT, SETUPTOOLS, modules

# who may import whom: a folder sees itself and what stands to its right
ORDER = ("bench", "explain", "train", "models", "kernels", "common")
SEES = {folder: {*ORDER[place:]} for place, folder in enumerate(ORDER)}


def folders_with_code() -> set[str]:
    tops = ["msdeform", *ORDER[:-1]]
    return {str(file.parent.relative_to(ROOT)) for top in tops for file in (ROOT / top).rglob("*.py")}


def test_packages_are_the_folders_on_disk() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(FOLDERS)
    assert folders_with_code() == set(FOLDERS.values())
    for package, folder in FOLDERS.items():
        assert package == ".".join(dict.fromkeys(["msdeform", *folder.split("/")])), (package, folder)


def test_only_the_bridge_has_an_init() -> None:
    inits = [file for folder in FOLDERS.values() for file in (ROOT / folder).glob("__init__.py")]
    assert inits == [ROOT / "msdeform" / "__init__.py"]
    assert not (ROOT / "conftest.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def imported(module: str, file: Path) -> Iterator[str]:
    """Every absolute module name that a file imports, wherever in the file the statement stands."""
    parents = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def strays(module: str, file: Path) -> list[str]:
    """What a module imports against the arrows.

    Of the bridge itself folders may use `__version__`, and an entry point (`__main__`) the command it stands for;
    the benchmark of the command line sees what it measures.
    """
    sees_cli = module.endswith(".__main__") or module in ("msdeform.bench.options", "msdeform.bench.cpu.startup")
    allowed = SEES[module.split(".")[1]] | {"__version__"} | ({"cli"} if sees_cli else set())
    names = [name.split(".") for name in imported(module, file)]
    return [".".join(name) for name in names if name[0] == "msdeform" and (name[1:2] or [""])[0] not in allowed]


@pytest.mark.parametrize("module", [name for name in modules() if name.split(".")[1:2] and name.split(".")[1] in SEES])
def test_imports_follow_the_arrows(module: str) -> None:
    assert strays(module, modules()[module]) == []


@pytest.mark.parametrize(
    ("module", "line", "caught"),
    [
        ("msdeform.kernels.api", "from ..models.attention import MSDeformAttn", True),
        ("msdeform.kernels.triton.launch", "from ... import models", True),
        ("msdeform.common.options", "from ..kernels import contract", True),
        ("msdeform.kernels.info", "from ..common.options import parse", False),
        ("msdeform.models.zoo", "def f():\n    from ..train import data", True),
        ("msdeform.models.zoo", "import msdeform.bench.cases", True),
        ("msdeform.models.zoo", "from .. import create_model", True),
        ("msdeform.models.zoo", "from ..kernels.api import ms_deform_attn", False),
        ("msdeform.kernels.triton.launch", "from ..backend import Backend", False),
        ("msdeform.train.loop", "from ..cli import main", True),
        ("msdeform.train.loop", "from ..explain.capture import capture", True),
        ("msdeform.explain.maps", "from ..bench.records import Row", True),
        ("msdeform.train.loop", "import msdeform", True),
        ("msdeform.train.__main__", "from ..cli import main", False),
        ("msdeform.bench.provenance", "from .. import __version__", False),
    ],
)
def test_the_arrow_test_catches(tmp_path: Path, module: str, line: str, caught: bool) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    assert bool(strays(module, file)) is caught


def circle(files: dict[str, Path]) -> list[str]:
    """Modules that import one another in a circle, wherever in a file the statement stands; empty if there is none.

    The registry's import of backends by name is no statement, and no arrow here: backends do not import the registry.
    """
    arrows = {}
    for module, file in files.items():
        names = set(imported(module, file))
        arrows[module] = sorted((names | {name.rpartition(".")[0] for name in names}) & files.keys())
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module not in done:
            for other in arrows[module]:
                if found := follow(other, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in arrows if (found := follow(module, []))), [])


def kernel_files() -> dict[str, Path]:
    return {name: file for name, file in modules().items() if name.startswith("msdeform.kernels.")}


def test_no_files_of_kernels_import_one_another_in_a_circle() -> None:
    assert len(kernel_files()) > 15
    assert circle(kernel_files()) == []


@pytest.mark.parametrize(
    ("module", "line", "caught"),
    [
        ("msdeform.kernels.contract", "def f():\n    from .api import ms_deform_attn", True),
        ("msdeform.kernels.triton.bilinear", "from . import launch", True),
        ("msdeform.kernels.contract", "import torch", False),
    ],
)
def test_the_test_for_circles_catches(tmp_path: Path, module: str, line: str, caught: bool) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    assert bool(circle(kernel_files() | {module: file})) is caught
