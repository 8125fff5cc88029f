"""Caches of compiled kernels: what is loaded is what was compiled, whoever writes, damages, fills or takes the folder.

The damage is done to files of made-up machine code, which cost no compilation; tests beside the backends show that
their compilers go through these caches.
"""

import ctypes
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from msdeform.kernels.cuda import compile as nvrtc
from tests.kernels.caches.stores import CACHES, FORK, NOBODY, Cache, in_child, readable_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="about owners and modes of POSIX")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as another account, or mount a disk"
)
CODE = random.Random(0).randbytes(20_000)
PLANTED = b"\x7fELF planted"


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning is told, and no temporary folder made, by tests before."""
    monkeypatch.setattr(nvrtc, "_told", set())
    if find_spec("triton"):
        from msdeform.kernels.triton import cache

        monkeypatch.setattr(cache, "_own", {})
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that it is put back


@pytest.fixture(params=CACHES)
def make(request: pytest.FixtureRequest) -> object:
    return CACHES[request.param]


@pytest.fixture
def cache(make: object, tmp_path: Path) -> Cache:
    """With CODE in it."""
    cache: Cache = make(tmp_path)  # type: ignore[operator]
    cache.keep(CODE)
    return cache


@pytest.fixture
def public() -> Iterator[Path]:
    with readable_folder() as folder:
        yield folder


def test_what_is_kept_is_loaded(cache: Cache) -> None:
    assert cache.kept() == CODE
    assert in_child(cache.kept) == CODE
    for file in cache.files:
        assert file.stat().st_mode & 0o022 == 0
        assert file.parent.stat().st_mode & 0o022 == 0


def test_no_file_is_writable_by_others_whatever_the_umask(make: object, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache: Cache = make(tmp_path / "new")  # type: ignore[operator]
        tmp_path.chmod(0o755)
        (tmp_path / "new").mkdir(mode=0o755)
        cache.keep(CODE)
    finally:
        os.umask(before)
    assert cache.files
    assert all(file.stat().st_mode & 0o022 == 0 for file in cache.files)
    assert all(file.parent.stat().st_mode & 0o022 == 0 for file in cache.files)


def damages(content: bytes) -> Iterator[bytes]:
    """Truncated, longer, changed in one byte."""
    yield from (b"", content[:1], content[: len(content) // 2], content[:-1], content + b"\0", PLANTED)
    for place in {0, len(content) // 2, len(content) - 1}:
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_damaged_file_is_never_loaded(cache: Cache) -> None:
    """Every file, damaged in every way, and then kept anew."""
    tried = 0
    for file in cache.files:
        for content in damages(file.read_bytes()):
            file.write_bytes(content)
            assert cache.kept() is None, f"{file.name}, {content[:20]!r}"
            cache.keep(CODE)
            assert cache.kept() == CODE
            tried += 1
    print(f"\n{tried} damages")


def test_no_flipped_bit_is_loaded(cache: Cache) -> None:
    chance = random.Random(1)
    for _ in range(300):
        file = chance.choice(cache.files)
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        assert cache.kept() is None, file.name
        cache.keep(CODE)


@pytest.mark.parametrize("instead", ["nothing", "folder", "loop", "pipe", "link"])
def test_something_else_in_a_files_place(
    cache: Cache, instead: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in cache.files:
        file.unlink()
        if instead == "folder":
            file.mkdir()
        elif instead == "loop":
            file.symlink_to(file)
        elif instead == "pipe":
            os.mkfifo(file)
        elif instead == "link":
            (tmp_path / "mine").write_bytes(PLANTED)
            file.symlink_to(tmp_path / "mine")
        assert cache.kept() is None
        cache.keep(CODE)  # over a folder it cannot: that costs a warning
        if instead == "folder":
            file.rmdir()
            cache.keep(CODE)
        elif instead == "link":
            assert (tmp_path / "mine").read_bytes() == PLANTED
        assert cache.kept() == CODE


def test_another_kernels_files_are_not_loaded(make: object, tmp_path: Path) -> None:
    """Whole files with right checksums, under the wrong name."""
    one, two = make(tmp_path, "one"), make(tmp_path, "two")  # type: ignore[operator]
    one.keep(CODE)
    first = {file: file.read_bytes() for file in one.files}
    two.keep(PLANTED)
    others = [file for file in two.files if file not in first]
    for (file, _), other in zip(first.items(), others, strict=True):
        shutil.copy(other, file)
    assert two.kept() == PLANTED
    assert one.kept() is None


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_to_is_not_used(
    cache: Cache, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cache.files[0].parent
    folder.chmod(mode)
    assert cache.kept() is None
    before = {file: file.stat().st_mtime_ns for file in cache.files}
    with caplog.at_level(logging.WARNING, logger="msdeform"):
        cache.keep(CODE)
    assert {file: file.stat().st_mtime_ns for file in cache.files} == before
    assert "other accounts may write to" in caplog.text or cache.kept() == CODE
    folder.chmod(0o755)
    assert cache.kept() == CODE


def test_folders_above_count(cache: Cache, tmp_path: Path) -> None:
    tmp_path.chmod(0o757)
    assert cache.kept() is None  # others could put another folder in its place
    tmp_path.chmod(0o1757)
    assert cache.kept() == CODE  # as in a system's folder for temporary files, where they cannot
    tmp_path.chmod(0o775)
    assert cache.kept() == CODE  # of the account's own group


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_others_may_write_to_is_not_loaded(cache: Cache, mode: int) -> None:
    for file in cache.files:
        file.chmod(mode)
        assert cache.kept() is None
        file.chmod(0o644)
    assert cache.kept() == CODE


@needs_root
@pytest.mark.parametrize("what", ["file", "folder", "above"])
def test_what_belongs_to_another_account_is_not_loaded(cache: Cache, what: str) -> None:
    file = cache.files[0]
    path = {"file": file, "folder": file.parent, "above": cache.folder.parent}[what]
    os.chown(path, NOBODY, NOBODY)
    assert cache.kept() is None
    os.chown(path, 0, 0)
    assert cache.kept() == CODE


@needs_root
def test_another_account_plants_nothing(make: object, public: Path) -> None:
    """It made the folder first, and kept code of its own there, whole and with right checksums."""
    public.chmod(0o1777)
    cache: Cache = make(public / "shared")  # type: ignore[operator]
    in_child((public / "shared").mkdir, NOBODY)
    in_child(lambda: cache.keep(PLANTED), NOBODY)
    assert in_child(cache.kept, NOBODY) == PLANTED
    assert cache.kept() is None
    cache.keep(CODE)
    assert cache.kept() in (None, CODE)
    assert in_child(cache.kept, NOBODY) == PLANTED  # nor does ours write into its folder


@needs_root
def test_an_administrators_files_are_loaded_and_not_written(make: object, public: Path) -> None:
    cache: Cache = make(public)  # type: ignore[operator]
    cache.keep(CODE)
    before = {file: file.read_bytes() for file in cache.files}
    assert in_child(cache.kept, NOBODY) == CODE
    in_child(lambda: cache.keep(PLANTED), NOBODY)
    assert {file: file.read_bytes() for file in cache.files} == before


def test_many_processes_at_once(cache: Cache) -> None:
    """They begin with a damaged file, and keep and load it all at the same time."""
    assert FORK is not None
    cache.files[0].write_bytes(PLANTED)
    answers = FORK.SimpleQueue()

    def work(seed: int) -> None:
        chance, wrong, loaded = random.Random(seed), 0, 0
        for _ in range(40):
            if chance.random() < 0.5:
                cache.keep(CODE)
            found = cache.kept()
            loaded += found == CODE
            wrong += found not in (None, CODE)
        answers.put((wrong, loaded))

    processes = [FORK.Process(target=work, args=(seed,)) for seed in range(8)]
    for process in processes:
        process.start()
    results = [answers.get() for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(wrong for wrong, _ in results) == 0
    assert sum(loaded for _, loaded in results) > 0
    cache.keep(CODE)
    assert cache.kept() == CODE


def test_killed_while_it_writes(cache: Cache) -> None:
    assert FORK is not None

    def write() -> None:
        while True:
            cache.keep(CODE)

    chance, absent = random.Random(2), 0
    for _ in range(25):
        process = FORK.Process(target=write)
        process.start()
        time.sleep(0.01 + 0.02 * chance.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = cache.kept()
        assert found in (None, CODE)
        absent += found is None
    cache.keep(CODE)
    assert cache.kept() == CODE


def on_small_disk(cache: Cache, root: Path, options: str) -> tuple[bytes | None, str]:
    """In a mount namespace of its own: what is kept there, on a disk with these options, and what was warned of."""
    new_mounts = 0x00020000  # CLONE_NEWNS
    if ctypes.CDLL(None, use_errno=True).unshare(new_mounts) != 0:
        return b"skip", "no mount namespace"
    mounted = (
        subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False).returncode
        or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", root], check=False).returncode
    )
    if mounted != 0:
        return b"skip", "no file system can be mounted"
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("msdeform").addHandler(handler)
    cache.keep(CODE)
    return cache.kept(), "\n".join(said)


@needs_root
@pytest.mark.parametrize(
    ("options", "reason"), [("size=16k,mode=755", "No space left"), ("ro,mode=755", "Read-only file system")]
)
def test_a_full_disk_and_a_read_only_one(make: object, public: Path, options: str, reason: str) -> None:
    """The next process compiles again, and is told why in one line; Triton's kernels are kept until exit."""
    (public / "disk").mkdir()
    cache: Cache = make(public / "disk")  # type: ignore[operator]
    kept, said = in_child(lambda: on_small_disk(cache, public / "disk", options))
    if kept == b"skip":
        pytest.skip(said)
    assert reason in said
    assert said.count("\n") == 0
    assert kept == (CODE if make is CACHES["triton"] and "ro" in options else None)


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """An account that no list of accounts has, as in many containers; nothing is put into the current folder."""
    import pwd

    def unknown(account: int) -> None:
        raise KeyError(account)

    for name in ("HOME", "XDG_CACHE_HOME", "MSDEFORM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    assert nvrtc.cache_dir() is None
    monkeypatch.setattr(nvrtc, "_compiler_unavailable", lambda: None)
    monkeypatch.setattr(nvrtc, "_compile", lambda arch, source, options: CODE)
    with caplog.at_level(logging.WARNING, logger="msdeform"):
        for _ in range(2):
            assert nvrtc.cubin("sm_90", nvrtc.Dtypes("float32", "float32", "float32")) == CODE
    assert [record.getMessage() for record in caplog.records] == [
        "the cuda backend keeps no compiled kernels: this account has no home folder; MSDEFORM_CACHE names one"
    ]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert nvrtc.cache_dir() is None
