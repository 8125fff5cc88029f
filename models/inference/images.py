"""From whatever holds an image to what a detector takes: read, resize, normalise.

One copy of each, for training, evaluation and prediction alike, so that a model meets the pixels it was trained on.
"""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ...common.text import printable

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Of the files in a folder that are taken for images."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# what brings an image with this orientation tag upright. ImageOps.exif_transpose would write all tags anew, and leaves
# the picture of a camera whose other tags are of odd types on its side
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_SIDEWAYS = (5, 6, 7, 8)


class BadImageError(ValueError):
    """An image that cannot be read, told in one sentence, also when a worker process of a DataLoader met it."""

    def __init__(self, message: str) -> None:
        # a DataLoader raises the worker's error again with the worker's whole traceback as its message
        super().__init__(message.strip().rsplit(f"{type(self).__name__}: ", 1)[-1])


def read_image(image: ImageLike, *, name: str = "image", oriented: bool = True) -> Tensor:
    """An image as RGB (3, H, W) uint8, whatever holds it.

    Grey becomes three equal channels, palettes their colours, CMYK what Pillow makes of it. Alpha is dropped, not
    composited, as the official code's ``convert("RGB")`` does. 16 bits are scaled to 8 (65535 to 255), not clipped.
    Of several frames or pages the first is taken.

    Args:
        image: the path of a file; a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor
            (1, H, W), (3, H, W) or (4, H, W), which stays on its device. Arrays and tensors hold RGB, in uint8, uint16,
            or floats from 0 to 1.
        name: what errors call an image that has no path.
        oriented: bring a file or PIL image upright, as viewers show it, where the camera's EXIF tag says how.
            (Pillow does that to TIFF files by itself.)

    Raises:
        FileNotFoundError: no such file.
        BadImageError: a file that is not an image, or a truncated one; a wrong shape, dtype or range.
        TypeError: none of these types.
    """
    if isinstance(image, str | os.PathLike):
        return _from_file(Path(image), oriented)
    if isinstance(image, Image.Image):
        return _from_pillow(image, name, oriented)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if isinstance(image, Tensor):
        return _from_tensor(image, name)
    raise TypeError(
        f"{name}: expected a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), got {type(image).__name__}"
    )


def _check_file(path: Path) -> None:
    """Raises FileNotFoundError for what is none: reading a pipe would wait, and a device may have no end."""
    if path.is_dir():
        raise FileNotFoundError(f"image {path} is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(printable(f"image {path} {'is no file' if path.exists() else 'does not exist'}"))


def _from_file(path: Path, oriented: bool) -> Tensor:
    _check_file(path)
    try:
        with Image.open(path) as file:
            return _from_pillow(file, f"image {path}", oriented)
    except BadImageError:
        raise
    except Exception as error:  # as below
        raise _undecodable(f"image {path}", error) from error


def _from_pillow(image: Image.Image, name: str, oriented: bool) -> Tensor:
    if image.format == "EPS":  # a program, which Pillow has Ghostscript run
        raise BadImageError(f"{name} cannot be decoded: it is PostScript; expected pixels, as of a PNG or a JPEG")
    if 0 in image.size:
        raise BadImageError(f"{name}: expected at least one pixel, got {image.width} wide and {image.height} high")
    try:
        if isinstance(image, TiffImageFile) and _orientation(image) in _SIDEWAYS:
            # Pillow 12 maps such a file into memory by its name, and takes its rows for columns
            image.filename = ""
        image.load()  # before the tag is read: a PNG may hold it behind its pixels, a TIFF is turned by loading
        turn = _UPRIGHT.get(_orientation(image)) if oriented else None
        if turn is not None:
            image = image.transpose(turn)
        if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
            return F.pil_to_tensor(image.convert("RGB"))
        # what convert would clip at 255
        wide = np.asarray(image)
    except Exception as error:  # pillow's decoders raise nearly anything on a damaged file
        raise _undecodable(name, error) from error
    if image.mode == "I":
        # how older Pillow opens 16-bit files
        if wide.min() < 0 or wide.max() > 65535:
            raise BadImageError(
                f"{name}: expected 16-bit pixels, from 0 to 65535, got {wide.min()} to {wide.max()} in mode I"
            )
        wide = wide.astype(np.uint16)
    return _from_array(wide, name)


def image_size(path: Path, *, oriented: bool) -> tuple[int, int]:
    """Height and width of an image file, from its header: pixels are not decoded.

    ``oriented``: as viewers show it, turned as the camera's EXIF tag says; else as its pixels are stored. Raises as
    `read_image`.
    """
    _check_file(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = _orientation(image) in _SIDEWAYS
            if isinstance(image, TiffImageFile):  # turned by being opened, in newer Pillow already here
                width, height = (image.tag_v2[tag] for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
            else:
                sideways = sideways and oriented
    except Exception as error:  # as below
        raise _undecodable(f"image {path}", error) from error
    return (width, height) if sideways else (height, width)


def orientation(path: Path) -> int:
    """EXIF's orientation of an image file, 1 to 8; 1 where it has none, or is turned by being opened, as a TIFF is."""
    _check_file(path)
    try:
        with Image.open(path) as image:
            return 1 if image.format == "TIFF" else _orientation(image)
    except Exception as error:  # as below
        raise _undecodable(f"image {path}", error) from error


def _undecodable(name: str, error: Exception) -> BadImageError:
    # pillow's own sentence already names the file when it knows no format for it
    first_line = str(error).strip().split("\n")[0]
    return BadImageError(printable(f"{name} cannot be decoded: {first_line or type(error).__name__}"))


def _orientation(image: Image.Image) -> int:
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation, 1)
        return tag if tag in _UPRIGHT else 1
    except Exception:  # a damaged tag is no reason to lose the picture: viewers, too, show it as it lies
        return 1


def _from_array(array: np.ndarray, name: str) -> Tensor:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or array.size == 0:
        hint = ""
        if array.ndim == 4:
            hint = "; several images are passed as a list"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.size:
            hint = "; channels come last in an array, first in a tensor"
        raise BadImageError(
            f"{name}: expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}{hint}"
        )
    if not (array.dtype == np.uint8 or array.dtype.newbyteorder("=") == np.uint16 or array.dtype.kind == "f"):
        raise BadImageError(f"{name}: expected uint8, uint16, or floats from 0 to 1, got {array.dtype}")
    array = (array if array.ndim == 3 else array[..., None]).transpose(2, 0, 1)
    # a copy in native order: what comes in may be read-only, or a view of another's memory with strides torch refuses
    kind = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return _from_tensor(torch.from_numpy(np.array(array, kind, order="C")), name)


def _from_tensor(image: Tensor, name: str) -> Tensor:
    if image.dim() != 3 or image.shape[0] not in (1, 3, 4) or 0 in image.shape:
        hint = ""
        if image.dim() == 4:
            hint = "; several images are passed as a list"
        elif image.dim() == 3 and image.shape[2] in (1, 3, 4):
            hint = "; channels come first in a tensor, last in an array"
        raise BadImageError(
            f"{name}: expected a tensor (1, H, W), (3, H, W) or (4, H, W), got {tuple(image.shape)}{hint}"
        )
    if not (image.dtype in (torch.uint8, torch.uint16) or image.is_floating_point()):
        raise BadImageError(f"{name}: expected uint8, uint16, or floats from 0 to 1, got {image.dtype}")
    pixels = image.detach()
    if pixels.is_floating_point():
        # two numbers at once: each read is a wait for the device
        low, high = torch.stack(pixels.aminmax()).tolist()
        if not (low >= 0 and high <= 1):  # written so that NaN fails
            raise BadImageError(
                f"{name}: expected floats from 0 to 1 (not normalised by mean and deviation), got {low:g} to {high:g}"
            )
        pixels = (pixels[:3].float() * 255).round().to(torch.uint8)
    elif pixels.dtype == torch.uint16:
        # to the nearest of 8 bits, 257 k to k; torch has little arithmetic on uint16
        pixels = ((pixels[:3].to(torch.int32) + 128) // 257).to(torch.uint8)
    return pixels.expand(3, -1, -1).contiguous() if len(pixels) == 1 else pixels[:3]


def normalise(image: Tensor) -> Tensor:
    """(3, H, W) uint8 to float32 with ImageNet's mean and standard deviation, on the image's own device."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=image.device).view(3, 1, 1)
    return (image.float() / 255 - mean) / std
