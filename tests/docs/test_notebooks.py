"""The notebooks of docs/notebooks: each runs, its two files have the same cells, and its outputs can be published."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.house.project import ROOT
from tests.house.test_files import FORBIDDEN

FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "execute")

jupytext = pytest.importorskip("jupytext", reason="needs jupytext, nbclient and ipykernel, which notebooks run with")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/notebooks/execute.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(notebook: "nbformat.NotebookNode") -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook: "nbformat.NotebookNode") -> list["nbformat.NotebookNode"]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts(notebook: "nbformat.NotebookNode") -> str:
    """All that the outputs say in words."""
    said = [output.get("text", "") for output in outputs(notebook)]
    said += [text for output in outputs(notebook) for kind, text in output.get("data", {}).items() if "text" in kind]
    return "\n".join(said)


def problems(notebook: "nbformat.NotebookNode", script: ModuleType) -> list[str]:
    """What keeps the outputs from being published."""
    found = [f"error: {output.ename}" for output in outputs(notebook) if output.output_type == "error"]
    found += [f"path: {match.group()}" for match in FORBIDDEN.finditer(texts(notebook))]
    found += ["a code cell was not run" for cell in notebook.cells if cell.get("execution_count", 0) is None]
    if not script.pictures(notebook):
        found.append("no picture")
    return found


def test_there_are_five_and_the_index_and_the_script_name_each(script: ModuleType) -> None:
    assert len(NAMES) == 5
    assert sorted(script.NOTEBOOKS) == NAMES
    linked = re.findall(r"^\|.*?\]\((\w+)\.ipynb\)", (FOLDER / "index.md").read_text(), re.MULTILINE)
    assert sorted(set(linked)) == NAMES
    assert sorted(path.stem for path in (FOLDER / "thumbnails").glob("*.png")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_files_have_the_same_cells(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    assert cells(notebook) == cells(jupytext.read(FOLDER / f"{name}.py"))


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_outputs_can_be_published(name: str, script: ModuleType) -> None:
    file = FOLDER / f"{name}.ipynb"
    assert problems(nbformat.read(file, 4), script) == []
    assert file.stat().st_size <= script.LARGEST


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_with_the_smallest_settings(
    name: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MSDEFORM_RUN", "MSDEFORM_NOTEBOOK_STEPS", "TRITON_INTERPRET"):
        monkeypatch.delenv(variable, raising=False)
    environment = {"PYTHONPATH": str(ROOT), "MSDEFORM_NOTEBOOK_SMALL": "1", "OMP_NUM_THREADS": "1"}
    notebook = script.execute(FOLDER / f"{name}.py", tmp_path, environment, timeout=300)
    assert problems(notebook, script) == []


def test_problems_are_found(script: ModuleType) -> None:
    cell = nbformat.v4.new_code_cell("1 / 0")
    cell.outputs = [
        nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="", traceback=[]),
        nbformat.v4.new_output("stream", text="wrote /" + "home/someone/x.json"),
    ]
    found = problems(nbformat.v4.new_notebook(cells=[cell]), script)
    assert [one.split(":")[0] for one in found] == ["error", "path", "a code cell was not run", "no picture"]
