"""The folder of a reader's data, made once for all test processes."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.docs.prepared import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to: tests copy it, or parts of it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / "prepared", base / "prepared.done"
    with FileLock(base / "prepared.lock"):
        if not done.exists():
            folder.mkdir()
            prepare(folder)
            done.touch()
    return folder


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared folder."""
    return shutil.copytree(prepared, tmp_path / "data")
