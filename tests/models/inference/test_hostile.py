"""Images that would take any memory, run a program, or never end: each is refused in one sentence."""

import os
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from msdeform.models.inference.images import BadImageError, image_size, orientation, read_image
from tests.fuzz.fuzzing import is_a_sentence
from tests.models.weights.test_hostile import bounded_memory


def png_of(width: int, height: int, rows: int = 0) -> bytes:
    """The bytes of a PNG that says so, with some rows of black pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(30_000, 30_000, 1700))
    assert 45_000 < path.stat().st_size < 60_000
    with bounded_memory(), pytest.raises(BadImageError) as caught:
        read_image(path)
    assert is_a_sentence(caught.value)
    with pytest.raises(BadImageError):
        image_size(path, oriented=True)
    with pytest.raises(BadImageError):
        orientation(path)


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (0, 5), (10**6, 1)])
def test_a_size_that_no_pixels_follow_is_refused(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(*size))
    with bounded_memory(), pytest.raises(BadImageError) as caught:
        read_image(tmp_path / "a.png")
    assert is_a_sentence(caught.value)


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript run it, whatever the file's name."""
    asked: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *words, **_: asked.append(words))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    for image in (tmp_path / "a.jpg", Image.open(tmp_path / "a.jpg")):
        with pytest.raises(BadImageError, match="it is PostScript") as caught:
            read_image(image)
        assert is_a_sentence(caught.value)
    assert not asked


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/urandom", "fifo", "socket"])
def test_devices_and_pipes_are_not_read(target: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    if target == "fifo":
        os.mkfifo(path)
    elif target == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.symlink_to(target)
    begun = time.monotonic()
    for read in (read_image, orientation, lambda file: image_size(file, oriented=True)):
        with pytest.raises((BadImageError, FileNotFoundError)) as caught:
            read(path)
        assert is_a_sentence(caught.value)
    assert time.monotonic() - begun < 20


def test_names_that_a_terminal_obeys_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\n.png"
    path.write_bytes(b"x")
    with pytest.raises(BadImageError, match=r"a\\x1b\[2J\\n\.png") as caught:
        read_image(path)
    assert is_a_sentence(caught.value)
