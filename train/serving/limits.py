"""What a request may bring: a body of so many bytes, an image of so many pixels. Each refusal is one sentence."""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import Request
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from torch import Tensor

from ...models.inference.images import BadImageError, read_image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Of images, as Pillow calls them: those that `msdeform predict` takes, and no other decoder is ever reached."""
_DRAINED = 1.0  # seconds


class Refused(Exception):
    """A request that gets no detections: the HTTP status, and why in one sentence."""

    def __init__(self, status: int, sentence: str, *, unread: bool = False) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.unread = unread
        """May a part of the body not have been read?"""


def check_type(content_type: str) -> bool:
    """Is the body a form, rather than the image itself? Raises Refused for what cannot be an image."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return True
    if kind.startswith("image/") or kind in ("", "application/octet-stream"):
        return False
    raise Refused(
        415, f"Content-Type: expected image/*, application/octet-stream or multipart/form-data, got {kind}", unread=True
    )


async def read_body(request: Request, most: int) -> bytes:
    """The body of at most ``most`` bytes.

    Raises Refused when it is longer, as soon as that is known, or empty; ClientDisconnect when the client goes away.
    """
    announced = request.headers.get("content-length", "0")
    sentence = f"the body is longer than {most} bytes"
    if announced.isdecimal() and int(announced) > most:
        raise Refused(413, sentence, unread=True)
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(413, sentence, unread=more)
    if not body:
        raise Refused(400, "the body is empty; expected the bytes of an image")
    return bytes(body)


async def drain(request: Request) -> bool:
    """Throws away what still comes of a refused body, for a second at most; has all of it come?

    A client that only sends reads no answer, and one that is cut off while it sends never sees it.
    """
    if "expect" in request.headers:  # it asked before sending, and sends nothing
        return False
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAINED):
            while (await request.receive()).get("more_body", False):
                pass
            return True
    return False


async def image_of_form(request: Request, body: bytes, most: int) -> bytes:
    """The field ``image`` of a multipart form. Raises Refused where there is none."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, whole(), max_files=1, max_fields=1, max_part_size=most)
    parser.spool_max_size = most + 1  # longer than any: nothing goes to the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, f"the form cannot be read: {error.message}") from error
    try:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            names = ", ".join(form) or "no field"
            raise Refused(400, f"the form: expected a file in the field image, got {names}")
        if content := await image.read():
            return content
        raise Refused(400, "the form: the field image is empty; expected the bytes of an image")
    finally:
        await form.close()


def open_image(body: bytes, most_pixels: int) -> Image.Image:
    """The image of a file's bytes, of which the header alone is read. Raises Refused; 413 for too many pixels."""
    try:
        image = Image.open(io.BytesIO(body), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Refused(415, f"the body is no image in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    except Image.DecompressionBombError as error:
        raise Refused(413, f"the image has more than {most_pixels} pixels") from error
    except Exception as error:  # pillow's readers raise nearly anything on a damaged file
        raise Refused(422, f"the image cannot be decoded: {str(error) or type(error).__name__}") from error
    if image.width * image.height > most_pixels:
        raise Refused(413, f"the image has {image.width} x {image.height} pixels, more than {most_pixels}")
    return image


def decode(image: Image.Image) -> Tensor:
    """Its pixels, upright, as RGB (3, H, W) uint8. Raises Refused for a damaged file."""
    try:
        return read_image(image, name="the image")
    except BadImageError as error:
        raise Refused(422, str(error)) from error


class PixelBudget:
    """Decoded images are held for so many pixels at most, whatever waits; one image alone may always be held."""

    def __init__(self, total: int) -> None:
        self._total, self._held = total, 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def holding(self, pixels: int) -> AsyncIterator[None]:
        """Within the block so many pixels are held; waits before it until they fit."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._total)
            self._held += pixels
        try:
            yield
        finally:
            self._held -= pixels
            async with self._changed:
                self._changed.notify_all()
