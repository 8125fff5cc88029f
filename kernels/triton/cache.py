"""Triton's cache of compiled kernels, for our kernels: what is loaded from it is whole, and ours.

Triton takes whatever lies in its cache: a damaged file is loaded as machine code, a folder that another account may
write to is trusted, and a folder that cannot be written ends the call. Here a file counts as absent, and the kernel is
compiled again, unless its checksum is right and no other account could have written it. Where the cache cannot be used
at all, the kernels of this process are kept in a temporary folder of its own.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path

from triton import knobs
from triton.runtime.cache import CacheManager, FileCacheManager

from ...common.trusted import make_folder, read_trusted, write_trusted

_log = logging.getLogger("msdeform")
_alone = threading.RLock()
_own: dict[int, Path] = {}  # temporary folders by the process that made them
_FOLDER = "msdeform"  # apart from files that Triton wrote by itself, without checksums


@contextmanager
def checked_cache() -> Iterator[None]:
    """Within, Triton compiles into `CheckedCache`, and loads from there; unless another cache manager is set."""
    settings = knobs.cache
    if settings.manager_class is not None:
        yield
        return
    with _alone:
        # not by its setter, which sets a variable of the environment that child processes would inherit
        settings.__dict__["manager_class"] = _manager
        try:
            yield
        finally:
            del settings.__dict__["manager_class"]


def _manager(key: str, override: bool = False, dump: bool = False) -> CacheManager:
    """As Triton calls it. What a developer dumps, or gives in place of a kernel, stays where Triton has it."""
    return FileCacheManager(key, override=override, dump=dump) if override or dump else CheckedCache(key)


class CheckedCache(CacheManager):
    """The files of one compilation, each beside the SHA-256 of its key, its name and its content."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.folder = Path(knobs.cache.dir) / _FOLDER / key
        if str(self.folder).startswith("~"):  # an account without a home folder: Triton would take the current one
            self._fall_back(OSError("this account has no home folder; TRITON_CACHE_DIR names another"))
            return
        try:
            make_folder(self.folder)
        except OSError as error:
            self._fall_back(error)

    def get_file(self, filename: str) -> str | None:
        path = self.folder / filename
        try:
            content, digest = read_trusted(path), read_trusted(_beside(path))
        except OSError:
            return None
        return str(path) if digest == self._digest(filename, content) else None

    def put(self, data: object, filename: str, binary: bool = True) -> str:
        content = data if isinstance(data, bytes) else str(data).encode()
        try:
            self._write(filename, content)
        except OSError as error:
            self._fall_back(error)
            self._write(filename, content)
        return str(self.folder / filename)

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The files of a group by their names, or None where one of them is missing."""
        listed = self.get_file(_group(filename))
        if listed is None:
            return None
        files = {name: self.get_file(name) for name in json.loads(Path(listed).read_text())}
        return files if all(files.values()) else None  # type: ignore[return-value]

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        return self.put(json.dumps(sorted(group)), _group(filename))

    def _write(self, filename: str, content: bytes) -> None:
        path = self.folder / filename
        write_trusted(path, content)
        write_trusted(_beside(path), self._digest(filename, content))

    def _digest(self, filename: str, content: bytes) -> bytes:
        return hashlib.sha256(f"{self.key}\0{filename}\0".encode() + content).hexdigest().encode()

    def _fall_back(self, error: OSError) -> None:
        """From now on in this process's own folder. Raises OSError where that is what failed, or there can be none."""
        pid = os.getpid()  # a child that was forked has another
        own = _own.get(pid)
        if own is None:
            own = _own[pid] = Path(tempfile.mkdtemp(prefix="msdeform-triton-"))
            # also at the end of a worker process, which runs nothing of atexit
            Finalize(None, shutil.rmtree, args=(own,), kwargs={"ignore_errors": True}, exitpriority=0)
            _log.warning("compiled Triton kernels cannot be kept in %s, only until exit: %s", knobs.cache.dir, error)
        elif own in self.folder.parents:
            raise error
        self.folder = own / self.key


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _group(filename: str) -> str:
    return f"__grp__{filename}"
