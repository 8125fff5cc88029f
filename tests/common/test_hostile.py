"""Names, links and files of others: what is printed is shown, what is written replaces a link, what is read ends."""

import os
import sys
import time
from pathlib import Path

import pytest

from msdeform.cli import main
from msdeform.common.files import atomic_file, check_readable, read_json, told_of
from msdeform.common.text import printable
from tests.fuzz.fuzzing import is_a_sentence


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert printable("a\x1b[2J\r\n\x07\x9b\u202eb") == r"a\x1b[2J\r\n\x07\x9b\u202eb"
    assert printable("Straße 日本 🙂") == "Straße 日本 🙂"
    assert printable("\ud800") == r"\ud800"


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("as it was")
    (tmp_path / "out.json").symlink_to(tmp_path / "victim")
    with atomic_file(tmp_path / "out.json") as file:
        file.write(b"new")
    assert (tmp_path / "victim").read_text() == "as it was"
    assert (tmp_path / "out.json").read_text() == "new"
    assert not (tmp_path / "out.json").is_symlink()


@pytest.mark.parametrize("kind", ["nested", "large", "fifo", "device", "bytes", "cut"])
def test_no_configuration_takes_any_time_or_memory(kind: str, tmp_path: Path) -> None:
    path, begun = tmp_path / "config.json", time.monotonic()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        with open(path, "wb") as file:
            file.truncate(2**40)
    else:
        path.write_bytes({"nested": b"[" * 100_000, "bytes": b"\xff\xfe\x00", "cut": b'{"a": '}[kind])
    with pytest.raises(ValueError, match="cannot be read as JSON") as caught:
        read_json(path)
    assert is_a_sentence(caught.value)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("error", [KeyError("a\nb"), IndexError(), AttributeError("x" * 999), RecursionError("deep")])
def test_what_a_damaged_file_raises_is_a_sentence(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint .* is damaged: ") as caught, told_of(tmp_path, "checkpoint"):
        raise error
    assert is_a_sentence(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such pipes")
def test_no_command_waits_for_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "a.pt"
    os.mkfifo(pipe)
    for kind in ("file", "folder", "path"):
        with pytest.raises(ValueError, match="expected a file, got the pipe or device"):
            check_readable(pipe, kind)
    for words in (
        ["convert", str(pipe), str(tmp_path / "out"), "--to", "msdeform"],
        ["replay", str(pipe)],
        ["train", "--resume", str(pipe)],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert "got the pipe or device" in capsys.readouterr().err


def test_an_error_is_printed_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path / "a\x1b]0;title\x07\nmsdeform: all is well.pt"
    name.write_bytes(b"no checkpoint")
    assert main(["convert", str(name), str(tmp_path / "out"), "--to", "msdeform"]) == 1
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())
