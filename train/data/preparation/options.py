"""The options of ``msdeform data convert`` and ``msdeform data check``. Nothing here needs PyTorch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ....common.options import NotNegative, Positional, ProgressOption, ReadPath, Share, WriteFile, WriteFolder
from ..layouts import Format


@dataclass(frozen=True, kw_only=True)
class DataOptions(ProgressOption):
    """Which data set."""

    data: Annotated[ReadPath, Positional("DIR")]
    """A folder of images with boxes, in any layout of docs/data.md; or a YOLO data.yaml, or a COCO file, in it."""
    val_share: Share | None = None
    """Where there is one set of images: hold out this share (0.2) for validation, with its share of every class."""
    split_seed: NotNegative = 0
    """Which images --val-share holds out; the same seed, the same images."""
    data_format: Literal["auto", "coco", "voc", "yolo"] = "auto"
    """The format that counts, in a folder that holds several."""


@dataclass(frozen=True, kw_only=True)
class ConvertDataOptions(DataOptions):
    """Write a data set anew in the format of COCO, YOLO or Pascal VOC."""

    to: Format
    """The format."""
    out: WriteFolder
    """Folder to make; must be absent or empty."""
    images: Literal["copy", "link"] = "copy"
    """link: hard links, which take no space, where --out is on the same file system."""
    bad_data: Literal["fatal", "skip"] = "fatal"
    """What a missing or unreadable image or a wrong annotation does: end it, or be left out and listed."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(DataOptions):
    """List everything in a data set that looks like a mistake, with its image, box and class."""

    json: WriteFile | None = None
    """Also write all findings to this JSON file."""
    out: WriteFile | None = None
    """Picture, a png or jpg, of the suspicious boxes and images; runs/data/NAME/check.png when not given."""
    strict: bool = False
    """End with status 1 if anything was found."""
    tiny: NotNegative = 4
    """A box is tiny below this width or height, in pixels."""
    few: NotNegative = 10
    """A class has few boxes below this number of training boxes."""
