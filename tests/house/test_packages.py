"""The rooms and the arrows: packages and folders agree, and every file imports only what it may."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msdeform.cli import COMMANDS
from tests.house.project import FOLDERS, ROOT, SETUPTOOLS, modules

# who may import whom: a folder sees itself and what stands to its right
ORDER = ("bench", "explain", "train", "integrations", "models", "kernels", "common")
SEES = {folder: {*ORDER[place:]} for place, folder in enumerate(ORDER)}
MOST_ENTRIES = 12
MODULES = modules()
ROOMS = [name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in SEES]
COMMAND_MODULES = {f"msdeform.{command.run.partition(':')[0]}" for command in COMMANDS.values()}
PRIVATE_PLACE = "msdeform.kernels.call_cache"
# private names of PyTorch that stand elsewhere, and why
PRIVATE = {
    ("msdeform.bench.harness.measure", "torch.cuda._sleep"): "no public call makes a device wait",
    ("msdeform.bench.operator.implementations", "torch._functorch.config"): "a compiled reference needs its buffers",
    ("msdeform.models.export.faster_rcnn", "torch._check"): "documented: how an exported program is told a bound",
    ("msdeform.models.export.formats", "torch._inductor"): "documented: AOTInductor has no other name",
}

# who puts something in the place of another module's names, and why
STANDS_IN = {"msdeform.bench.static.ptx.nvrtc": "the machine stands for the device that kernels run on"}


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


def entries(folder: Path) -> list[str]:
    """What a listing of a folder shows."""
    return sorted(one.name for one in folder.iterdir() if not one.name.startswith((".", "__pycache__")))


@pytest.mark.parametrize("folder", sorted({*FOLDERS.values(), "tests", *(f"tests/{name}" for name in ORDER)}))
def test_no_folder_shows_more_than_a_dozen_entries(folder: str) -> None:
    shown = entries(ROOT / folder)
    assert len(shown) <= MOST_ENTRIES, shown


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


def imported_modules(module: str, file: Path) -> set[str]:
    """Those of our modules that a file imports, or imports something from."""
    names = set(imported(module, file))
    return (names | {name.rpartition(".")[0] for name in names}) & MODULES.keys() - {module, "msdeform"}


def strays(module: str, file: Path) -> list[str]:
    """What a module imports against the arrows.

    Of the bridge itself folders may use `__version__`, and an entry point (`__main__`) the command it stands for;
    the benchmark of the command line sees what it measures.
    """
    sees_cli = module.endswith(".__main__") or module in ("msdeform.bench.options", "msdeform.bench.cpu.startup")
    allowed = SEES[module.split(".")[1]] | {"__version__"} | ({"cli"} if sees_cli else set())
    names = [name.split(".") for name in imported(module, file)]
    return [".".join(name) for name in names if name[0] == "msdeform" and (name[1:2] or [""])[0] not in allowed]


def commands(module: str, file: Path) -> list[str]:
    """The commands that a module imports; nothing may."""
    return sorted(imported_modules(module, file) & COMMAND_MODULES - {"msdeform.cli"})


def attributes(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a file reads, imports, or names in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def private_names(module: str, file: Path) -> list[str]:
    """Private names of PyTorch that a file uses and PRIVATE does not list."""
    found = {
        name
        for name in attributes(ast.parse(file.read_text()))
        if re.fullmatch(r"torch(\.\w+)*\._[a-zA-Z]\w*(\.\w+)*", name)
    }
    return sorted(name for name in found if not any(m == module and name.startswith(known) for m, known in PRIVATE))


def foreign_writes(module: str, file: Path) -> list[str]:
    """Assignments to the globals of another of our modules."""
    tree = ast.parse(file.read_text())
    parents = module.split(".")[:-1]
    others = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            others |= {alias.asname or alias.name for alias in node.names if f"{prefix}.{alias.name}" in MODULES}
    found = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = [part for one in node.targets for part in (one.elts if isinstance(one, ast.Tuple) else [one])]
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "mock.patch.object", "patch.object"):
            found += [ast.unparse(node) for name in node.args[:1] if isinstance(name, ast.Name) and name.id in others]
        for target in targets:
            base: ast.expr = target
            while isinstance(base, ast.Attribute | ast.Subscript):
                base = base.value
            if base is not target and isinstance(base, ast.Name) and base.id in others:
                found.append(ast.unparse(target))
    return found


def circles(files: dict[str, Path]) -> list[str]:
    """Modules that import one another in a circle, wherever in a file the statement stands; empty if there is none.

    The registry's import of backends by name is no statement, and no arrow here: backends do not import the registry.
    """
    arrows = {module: sorted(imported_modules(module, file) & files.keys()) for module, file in files.items()}
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


RULES: dict[str, Callable[[str, Path], list[str]]] = {
    "imports follow the arrows": strays,
    "no command is imported": commands,
    "private names of PyTorch stand in the call cache": private_names,
    "no module writes another's globals": foreign_writes,
}


@pytest.mark.parametrize("rule", RULES)
def test_every_file_keeps_the_rules(rule: str) -> None:
    found = {module: RULES[rule](module, MODULES[module]) for module in ROOMS}
    exceptions = {private_names: {PRIVATE_PLACE}, foreign_writes: set(STANDS_IN)}.get(RULES[rule], set())
    # an exception that breaks no rule is none any more
    assert {module for module, broken in found.items() if broken} == exceptions, found


def test_every_exception_is_still_one() -> None:
    for module, name in PRIVATE:
        used = attributes(ast.parse(MODULES[module].read_text()))
        assert any(one.startswith(name) for one in used), (module, name)


def test_no_files_import_one_another_in_a_circle() -> None:
    assert len(MODULES) > 200
    assert circles(MODULES) == []


@pytest.mark.parametrize(
    ("rule", "module", "line", "caught"),
    [
        (strays, "msdeform.kernels.api", "from ..models.attention import MSDeformAttn", True),
        (strays, "msdeform.kernels.triton.launch", "from ... import models", True),
        (strays, "msdeform.common.options", "from ..kernels import contract", True),
        (strays, "msdeform.kernels.diagnostics.info", "from ...common.options import parse", False),
        (strays, "msdeform.models.zoo", "def f():\n    from ..train import data", True),
        (strays, "msdeform.models.zoo", "import msdeform.bench.operator.cases", True),
        (strays, "msdeform.models.zoo", "from .. import create_model", True),
        (strays, "msdeform.models.zoo", "from ..kernels.api import ms_deform_attn", False),
        (strays, "msdeform.kernels.triton.launch", "from ..backend import Backend", False),
        (strays, "msdeform.train.engine.run", "from ...cli import main", True),
        (strays, "msdeform.train.engine.run", "from ...explain.core.capture import capture", True),
        (strays, "msdeform.explain.core.maps", "from ...bench.harness.records import Row", True),
        (strays, "msdeform.train.engine.run", "import msdeform", True),
        (strays, "msdeform.train.__main__", "from ..cli import main", False),
        (strays, "msdeform.bench.harness.provenance", "from ... import __version__", False),
        (commands, "msdeform.bench.gpu.stages", "from ...kernels.diagnostics.info import info", True),
        (commands, "msdeform.bench.gpu.stages", "def f():\n    from ...kernels.diagnostics import info", True),
        (commands, "msdeform.bench.gpu.stages", "from ...kernels.registry import report", False),
        (private_names, "msdeform.models.zoo", "import torch\ntorch._C._get_tracing_state()", True),
        (private_names, "msdeform.models.zoo", "from torch._dynamo import config", True),
        (private_names, "msdeform.models.zoo", "import_module('torch._dynamo.config')", True),
        (private_names, "msdeform.models.zoo", "import torch\ntorch.nn.functional.linear", False),
        (foreign_writes, "msdeform.bench.gpu.search", "from ...kernels.triton import launch\nlaunch.RUN = 1", True),
        (foreign_writes, "msdeform.bench.gpu.search", "from ...kernels import registry\ndel registry.A['x']", True),
        (
            foreign_writes,
            "msdeform.bench.gpu.search",
            "from ...kernels import registry\nsetattr(registry, 'A', 1)",
            True,
        ),
        (foreign_writes, "msdeform.bench.gpu.search", "import os\nos.environ['A'] = 'b'", False),
    ],
)
def test_the_rules_catch(
    tmp_path: Path, rule: Callable[[str, Path], list[str]], module: str, line: str, caught: bool
) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    assert bool(rule(module, file)) is caught


@pytest.mark.parametrize(
    ("module", "line", "caught"),
    [
        ("msdeform.kernels.contract", "def f():\n    from .api import ms_deform_attn", True),
        ("msdeform.kernels.triton.bilinear", "from . import launch", True),
        ("msdeform.models.configs", "from .zoo import create_model", True),
        ("msdeform.kernels.contract", "import torch", False),
    ],
)
def test_the_rule_of_circles_catches(tmp_path: Path, module: str, line: str, caught: bool) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    below = {name: one for name, one in MODULES.items() if name.startswith(("msdeform.kernels.", "msdeform.models."))}
    assert bool(circles(below | {module: file})) is caught
