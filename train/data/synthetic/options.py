"""The options of ``msdeform data synth``."""

from dataclasses import dataclass

from ....common.options import WriteFolder, at_least, between


@dataclass(frozen=True)
class SynthOptions:
    """Make a synthetic COCO-format data set."""

    out: WriteFolder
    """Folder to make; must be absent or empty."""
    train: int = 2000
    """Images in train2017."""
    val: int = 200
    """Images in val2017."""
    size: int = 128
    """Width and height of an image, in pixels."""
    classes: int = 5
    """Number of classes, 1 to 8: disc, square, triangle, star, cross, heart, arrow, crescent."""
    seed: int = 0
    """Same seed, same data."""
    workers: int = 2
    """Processes that draw; their number changes nothing in the files."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        between("classes", self.classes, 1, 8)
        at_least("size", self.size, 64, "pixels")
        at_least("train", self.train, 1)
        at_least("val", self.val, 1)
        at_least("workers", self.workers, 1)
        at_least("seed", self.seed, 0)
