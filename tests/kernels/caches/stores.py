"""The two caches of compiled kernels on disk, behind one interface, and processes in which tests try them."""

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from msdeform.kernels.cuda import compile as nvrtc

NOBODY = 65534
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


@dataclass
class Cache:
    """A cache in a folder of the test's: ``keep`` puts machine code into it, ``kept`` is what would be loaded."""

    folder: Path
    """Machine code lies in it, or in a folder of it."""
    keep: Callable[[bytes], None]
    kept: Callable[[], bytes | None]

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def cuda(root: Path, name: str = "one") -> Cache:
    path = root / "cuda" / f"{name}.cubin"
    return Cache(path.parent, lambda code: nvrtc._write(path, code), lambda: nvrtc._read(path))


def triton(root: Path, name: str = "one") -> Cache:
    """Through the functions that Triton's compiler calls."""
    pytest.importorskip("triton")
    from triton.runtime.cache import get_cache_manager

    from msdeform.kernels.triton.cache import checked_cache

    os.environ["TRITON_CACHE_DIR"] = str(root / "triton")
    key = name.encode().hex()

    def keep(code: bytes) -> None:
        with checked_cache():
            manager = get_cache_manager(key)
            group = {file: manager.put(content, file) for file, content in (("k.cubin", code), ("k.json", "{}"))}
            manager.put_group("k.json", group)

    def kept() -> bytes | None:
        with checked_cache():
            group = get_cache_manager(key).get_group("k.json")
        return None if group is None else Path(group["k.cubin"]).read_bytes()

    return Cache(root / "triton" / "msdeform", keep, kept)


CACHES = {"cuda": cuda, "triton": triton}


@contextmanager
def readable_folder() -> Iterator[Path]:
    """An empty folder that every account may enter, as those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="msdeform-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def in_child(work: Callable[[], Any], account: int | None = None) -> Any:
    """What ``work`` returns in a forked process, of another account where one is given. Raises what it raised."""
    assert FORK is not None
    ours, theirs = FORK.Pipe()

    def run() -> None:
        if account is not None:
            os.setgroups([])
            os.setgid(account)
            os.setuid(account)
        try:
            theirs.send((work(), None))
        except Exception as error:
            theirs.send((None, error))

    process = FORK.Process(target=run)
    process.start()
    theirs.close()
    try:
        result, error = ours.recv()
    finally:
        process.join()
    if error is not None:
        raise error
    return result
