"""The size of an image from its file's header: pixels are not decoded."""

import contextlib
from pathlib import Path

from PIL import ExifTags, Image

from ...models.inference.images import BadImageError

# a camera held sideways: the picture is shown with its sides exchanged
SIDEWAYS = (5, 6, 7, 8)


def image_size(path: Path, *, oriented: bool) -> tuple[int, int]:
    """Height and width of an image file, as its pixels are stored, or ``oriented``, as viewers show it, turned as the
    camera's EXIF tag says.

    Raises:
        FileNotFoundError: no such file.
        BadImageError: not an image.
    """
    orientation = 1
    try:
        with Image.open(path) as image:
            width, height = image.size
            with contextlib.suppress(Exception):  # a damaged tag is no reason to lose the picture
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if oriented else 1
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path} does not exist") from None
    except Exception as error:  # pillow raises nearly anything on a damaged file
        first_line = str(error).strip().split("\n")[0] or type(error).__name__
        raise BadImageError(f"image {path} cannot be read: {first_line}") from error
    return (width, height) if orientation in SIDEWAYS else (height, width)
