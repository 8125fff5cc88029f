"""What the house tests know about the project: its root, its metadata, its packages and their files on disk."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]  # "msdeform.kernels" -> "kernels"


def modules() -> dict[str, Path]:
    """Dotted name -> file of every Python module of every package, found on disk."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).glob("*.py")):
            found[package if file.stem == "__init__" else f"{package}.{file.stem}"] = file
    return found


def copy_source(destination: Path) -> Path:
    """A copy of what a build reads, so that building leaves nothing in the checkout."""
    for folder in {folder.split("/")[0] for folder in FOLDERS.values()}:
        shutil.copytree(ROOT / folder, destination / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, destination)
    return destination
