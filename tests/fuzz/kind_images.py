"""Image files: small ones of every format and mode, right ones and those whose bytes were damaged.

A right one must be read as Pillow reads it. Of a damaged one, all ways of reading must agree on its size: the
annotations are held against what its header says, the model meets what it decodes to.
"""

import functools
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from msdeform.models.inference.images import BadImageError, image_size, orientation, read_image
from msdeform.train.data.cache import ImageCache
from tests.fuzz.choices import Choices, made_of, mutated
from tests.fuzz.fuzzing import Kind, Outcome, folder, refused

MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L", "RGB"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "L", "P", "1", "CMYK", "I;16", "F", "I", "RGBA", "LAB"),
}
OTHER_BYTES = (
    *(b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"x"),
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    *(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0" * 300),
    *(b"P6 2 2 255\n" + b"abc" * 4, b"P6 99999 99999 255\n", b"P3 1 1 9 1 2 x", b"SIMPLE  =                    T" * 90),
    b"8BPS\0\x01" + b"\0" * 60,
    *(b"\0\0\x01\0\x01\0" + b"\xff" * 40, b"qoif\xff\xff\xff\xff\xff\xff\xff\xff\x04\0"),
)
# large enough for a warning, or a refusal, of Pillow; none is allocated
HUGE = (2**31 - 1, 2**32 - 1, 2**30, 100_000, 65_535, 0)


@dataclass
class File:
    """An image file, and how it is read."""

    content: bytes
    suffix: str
    oriented: bool
    whole: bool
    """Whether nothing is damaged."""
    cached: bool


@functools.cache
def image_file(kind: str, mode: str, turn: int, frames: int) -> bytes:
    """A right one of 7 x 5 pixels, with EXIF's tag of orientation where ``turn`` is one, and so many frames."""
    numbers = np.random.default_rng(0)
    pixels: Any = numbers.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    if mode in ("I;16", "I", "F"):
        wide = numbers.integers(0, 65_536, (5, 7))
        wide = wide / 65_535 if mode == "F" else wide
        image = Image.fromarray(wide.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        image = Image.fromarray(pixels).convert("RGBA").convert(mode) if mode != "LAB" else Image.new("LAB", (7, 5))
    exif = Image.Exif()
    exif[0x0112] = turn
    more: dict[str, Any] = {"exif": exif} if turn and kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    if frames > 1 and kind in ("GIF", "WEBP", "TIFF", "PNG"):
        more |= {"save_all": True, "append_images": [image.rotate(180)] * (frames - 1)}
    held = io.BytesIO()
    image.save(held, kind, **more)
    return held.getvalue()


def make(choices: Choices) -> File:
    kind = choices.one_of(tuple(MODES))
    content = image_file(kind, choices.one_of(MODES[kind]), choices.below(10), choices.one_of((1, 1, 1, 2)))
    how = choices.below(10)
    whole = how in (0, 1, 2)
    if how in (3, 4, 5):
        content = mutated(content, choices, choices.between(1, 4))
    elif how == 6:
        content = content[: choices.below(len(content) + 1)]
    elif how == 7:
        content = of_another_size(kind, content, choices)
    elif how == 8:  # the head of one, the rest of another
        other = choices.one_of(tuple(MODES))
        rest = image_file(other, choices.one_of(MODES[other]), 0, 1)
        cut = choices.between(1, 60)
        content = content[:cut] + rest[choices.below(cut + 1) :]
    elif how == 9:
        content = choices.one_of(OTHER_BYTES) + (content if choices.chance(3) else b"")
    suffix = choices.one_of((".jpg", ".png", ".tif", ".webp", ".bmp", ""))
    return File(content, suffix, choices.chance(2), whole, choices.chance(8))


def of_another_size(kind: str, content: bytes, choices: Choices) -> bytes:
    """The same pixels below a header that tells another width and height."""
    sides = [choices.one_of((*HUGE, 1, 6, 8, 300)) for _ in range(2)]
    changed = bytearray(content)
    if kind == "PNG":
        changed[16:24] = struct.pack(">II", *(min(side, 2**32 - 1) for side in sides))
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif kind == "GIF":
        changed[6:10] = struct.pack("<HH", *(side & 0xFFFF for side in sides))
    elif kind == "BMP":
        changed[18:26] = struct.pack("<II", *sides)
    elif kind == "JPEG":
        start = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        changed[start + 5 : start + 9] = struct.pack(">HH", *(side & 0xFFFF for side in sides))
    else:
        place = choices.below(len(changed))
        changed[place : place + 4] = struct.pack(choices.one_of(("<I", ">I")), sides[0])
    return bytes(changed)


def check(file: File) -> Outcome:
    path = folder()[0] / f"image{file.suffix}"
    path.write_bytes(file.content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of images that are large or damaged
        size = answer(lambda: image_size(path, oriented=file.oriented), file, path)
        turned = answer(lambda: orientation(path), file, path)
        pixels = answer(lambda: read_image(path, oriented=file.oriented), file, path)
        if pixels is None:
            return "refused"
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3
        assert turned in range(1, 9), turned
        assert size == tuple(pixels.shape[1:]), f"{size} by its header, {tuple(pixels.shape)} by its pixels"
        if file.whole or file.cached:
            held = Image.open(io.BytesIO(file.content))
            assert torch.equal(read_image(held, oriented=file.oriented), pixels)
        if file.cached:
            sizes = np.array([size])
            for kind in ("files", "pixels"):
                cache = ImageCache(kind, [path], sizes, oriented=file.oriented, progress=False)
                kept = cache.read(0, path)
                assert kept is not None
                assert torch.equal(kept, pixels), kind
        if file.whole and not file.oriented:
            image = Image.open(io.BytesIO(file.content))
            if image.mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA"):
                assert np.array_equal(np.asarray(image.convert("RGB")).transpose(2, 0, 1), pixels)
    return "answered"


def answer(read: Callable[[], Any], file: File, path: Path) -> Any:
    """What a way of reading comes to; None where it refuses the file in a sentence that names it."""
    try:
        return read()
    except BadImageError as error:
        refused(error, why=not file.whole, names=(str(path),))
        return None


KIND = Kind("image files", made_of(make, 64), check)
