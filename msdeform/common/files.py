"""Writing files so that a reader, or a crash, never meets half of one; reading text; folders for one process alone."""

import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from .text import UNPRINTABLE, printable, shown


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a neighbour of ``path`` for writing; it takes that name, synced to disk, only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own beside the target: a rename is atomic only within one file system
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keeps other processes from the folder while the block runs, also if it ends by a kill.

    Raises:
        ValueError: a live process has it, or it cannot be made.
    """
    if sys.platform == "win32":  # has no such locks
        yield
        return
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be made: {error.strerror}; name another") from None
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            # not flock, which worker processes would inherit, and hold for seconds after a kill
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            who = file.read().strip() or "another process"
            raise ValueError(f"{folder} is in use by {who}; name another") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        yield


def remove_leftovers(folder: Path) -> None:
    """Removes what writes that were killed left in a folder that nobody else uses."""
    for file in folder.glob(".*.tmp"):
        if file.is_file():
            file.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` to ``path`` as JSON, whole or not at all."""
    with atomic_file(path) as file:
        file.write(json.dumps(content).encode())


def read_text(path: Path) -> str:
    """A file's text, without the mark that Windows' editors begin it with. Raises ValueError: it is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


_MOST_JSON = 64_000_000  # bytes of a configuration; the largest published ones have some ten thousand


def read_json(path: Path) -> Any:
    """What a configuration in JSON holds. Raises ValueError where it cannot be read, or is no configuration's size."""
    try:
        if not path.is_file():  # reading a pipe would wait, and a device may have no end
            raise ValueError("expected a file")
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"expected at most {_MOST_JSON} bytes, got {path.stat().st_size}")
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} cannot be read as JSON: it is nested too deep") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


@contextmanager
def told_of(path: Path, kind: str) -> Iterator[None]:
    """Raises ValueError, naming the file, where what the block does with a file's content finds another form of it."""
    try:
        yield
    except (LookupError, AttributeError, TypeError, ArithmeticError, RecursionError) as error:
        what = str(error).split("\n")[0][:200]
        what = f"it lacks {what}" if isinstance(error, KeyError) else what or type(error).__name__
        raise ValueError(printable(f"{kind} {path} is damaged: {what}")) from error


def list_of_names(path: Path) -> list[str]:
    """The lines of a file that names something in each. Raises ValueError: one has control characters in it."""
    lines = [line.strip() for line in read_text(path).split("\n")]
    for number, line in enumerate(lines, start=1):
        if UNPRINTABLE.search(line):
            raise ValueError(f"{path}, line {number}: expected a name, got control characters in {shown(line)!r}")
    return [line for line in lines if line]


# values, those that aliases repeat among them
MOST_VALUES = 100_000


def read_yaml(text: str, loader: Any = None) -> Any:
    """What a text in YAML says.

    Args:
        text: of a file.
        loader: PyYAML's, safe by itself.

    Raises:
        ValueError: it is not YAML, or is nested too deeply, or unfolds to more values than any file of ours has.
    """
    import yaml

    try:
        content = yaml.load(text, loader or yaml.SafeLoader)
        number = _values_of(content, {})
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(shown(f"{line}{error.problem or error.context}")) from error
    except RecursionError:
        raise ValueError("it is nested too deeply, or refers to itself") from None
    # PyYAML lets through what it meets in making dates and numbers
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(shown(" ".join(str(error).split()))) from error
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError("a value is not of the kind that its tag says") from error
    if number > MOST_VALUES:
        raise ValueError(f"its aliases unfold to {number} values, expected at most {MOST_VALUES}")
    return content


def _values_of(content: Any, counted: dict[int, int]) -> int:
    """How many values there are in lists and dictionaries, each counted wherever it is used."""
    if not isinstance(content, list | dict | set | tuple):
        return 1
    if id(content) not in counted:
        inside = [*content, *content.values()] if isinstance(content, dict) else content
        counted[id(content)] = 1 + sum(_values_of(each, counted) for each in inside)
    return counted[id(content)]


# beside a run's checkpoints: that of its highest AP
BEST = "best.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"))


def check_readable(path: Path, kind: str) -> None:
    if not path.exists():
        what = {"file": "a file", "folder": "a folder", "path": "a file or folder"}[kind]
        raise ValueError(f"expected {what}; {path} does not exist")
    if not path.is_file() and not path.is_dir():  # reading a pipe would wait, and a device may have no end
        raise ValueError(f"expected a file, got the pipe or device {path}")
    if kind == "file" and path.is_dir():
        raise ValueError(f"expected a file, got the folder {path}")
    if kind == "folder" and not path.is_dir():
        raise ValueError(f"expected a folder, got the file {path}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} may not be read by this user")


def check_writable(path: Path, kind: Literal["file", "folder", "path"]) -> None:
    """Raises ValueError for a path that cannot be written, or made with the folders above it; writes nothing."""
    if kind == "file" and path.is_dir():
        raise ValueError(f"expected a file to write, got the folder {path}")
    if path.exists() and not path.is_file() and not path.is_dir():  # a file put in its place would replace it
        raise ValueError(f"expected a {'place' if kind == 'path' else kind} to write, got the device {path}")
    if kind == "folder" and path.exists() and not path.is_dir():
        raise ValueError(f"expected a folder to write into, got the file {path}")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"expected a place that can be written; {path} may not be written by this user")
    above = path.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    if above == path.absolute():
        return
    if not above.is_dir():
        raise ValueError(f"expected a place that can be written; {above} is a file, and {path} would lie in it")
    if not os.access(above, os.W_OK | os.X_OK) or above.parts[:2] in (("/", "proc"), ("/", "sys")):
        raise ValueError(f"expected a place that can be written; the folder {above} is not writable")
