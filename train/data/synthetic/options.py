"""The options of ``msdeform data synth``."""

from dataclasses import dataclass
from typing import Annotated

from ....common.options import AtLeast, Between, NotNegative, Positive, ProgressOption, WriteFolder


@dataclass(frozen=True)
class SynthOptions(ProgressOption):
    """Make a synthetic COCO-format data set."""

    out: WriteFolder
    """Folder to make; must be absent or empty."""
    train: Positive = 2000
    """Images in train2017."""
    val: Positive = 200
    """Images in val2017."""
    size: Annotated[int, AtLeast(64, "pixels")] = 128
    """Width and height of an image, in pixels."""
    classes: Annotated[int, Between(1, 8)] = 5
    """Number of classes, 1 to 8: disc, square, triangle, star, cross, heart, arrow, crescent."""
    seed: NotNegative = 0
    """Same seed, same data."""
    workers: Positive = 2
    """Processes that draw; their number changes nothing in the files."""
