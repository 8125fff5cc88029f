"""Files that machine code is loaded from: only this account, or the system's, may have written them.

A checksum tells damage, and nothing about who wrote a file: whoever can write one can write the other. So owners and
modes decide. On Windows, which has other ones, folders of an account are its own already.
"""

import os
import stat
import tempfile
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def check_folder(folder: Path) -> None:
    """Raises PermissionError where another account could put a file into the folder, or another folder in its place."""
    if os.name == "nt":
        return
    folder = folder.absolute()
    # a link may lead elsewhere, and whoever may write beside it could let it lead somewhere else
    above = dict.fromkeys((*folder.parents, folder.resolve(), *folder.resolve().parents))
    for path in (folder, *above):
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} belongs to another account")
        writers = status.st_mode & _OTHERS
        if path != folder and status.st_mode & stat.S_ISVTX:  # as /tmp: others add entries, and cannot replace ours
            writers = 0
        if path != folder and status.st_gid == os.getegid():  # umask 002, where every account has its own group
            writers &= ~stat.S_IWGRP
        if writers:
            raise PermissionError(f"other accounts may write to {path} (chmod go-w {path} ends that)")


def make_folder(folder: Path) -> None:
    """Makes the folder, and those above it, which no other account may write to. Raises OSError as `check_folder`."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o755, exist_ok=True)
    check_folder(folder)


def read_trusted(path: Path) -> bytes:
    """A file's content. Raises OSError where there is none, or where another account could have written it."""
    check_folder(path.parent)
    # never waits, as a pipe without a writer would
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if os.name != "nt" and (status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS):
            raise PermissionError(f"{path} could have been written by another account")
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(f"{path} is no file")
        return file.read()


def write_trusted(path: Path, content: bytes) -> None:
    """Writes a file that no other account may write to, whole or not at all. Raises OSError where that cannot be.

    It is not synced to the disk: a checksum in it has to tell what a power failure left.
    """
    make_folder(path.parent)
    # its name cannot be guessed, and it is new: no link that somebody put there is followed
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            if os.name != "nt":
                os.fchmod(descriptor, 0o644)  # others may read what an administrator compiled for them
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
