"""Writing files so that a reader, or a crash, never meets half of one."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..models.files import atomic_file


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty neighbour of ``path``; it takes that name only if the block succeeds.

    Raises:
        FileExistsError: ``path`` is there already, and not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already and is not an empty folder; name another, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` to ``path`` as JSON, whole or not at all."""
    with atomic_file(path) as file:
        file.write(json.dumps(content).encode())
