"""To what size a detector's images are brought. Nothing here needs PyTorch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """To what size images are brought: the shorter side to ``short`` unless the longer would exceed ``longest``."""

    short: int = 800
    longest: int = 1333

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The size an image of (height, width) is resized to, rounded as the official code rounds.

        (torchvision's own Resize(size, max_size) rounds the other side differently on 3% of COCO's images. Rounding
        the shorter side first, the longer of a very thin image can come out above ``longest``, as in the official
        code, which ends at no pixels at all where this ends at one.)
        """
        low, high = min(height, width), max(height, width)
        short = self.short
        if high / low * short > self.longest:
            short = max(1, round(self.longest * low / high))
        if low == short:
            return height, width
        long = int(short * high / low)
        return (short, long) if height <= width else (long, short)

    def scaled(self, pixels: int) -> int:
        """What ``pixels`` of the published recipe, made for 800, are at this size."""
        return max(1, round(pixels * self.short / 800))


@dataclass(frozen=True, init=False)
class ExactSize(Size):
    """One size for all images, which are stretched to it: how RT-DETR and its kin are trained."""

    height: int = 640
    width: int = 640

    def __init__(self, height: int, width: int) -> None:
        super().__init__(min(height, width), max(height, width))
        # frozen
        object.__setattr__(self, "height", height)
        object.__setattr__(self, "width", width)

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """This size, whatever the image's."""
        return self.height, self.width


def size_of(longest: int | None, *, square: bool) -> Size:
    """The size by a longest side in pixels, or the side of a `square`; the published one for None."""
    if longest is None:
        return Size()
    return ExactSize(longest, longest) if square else Size(longest, longest)
