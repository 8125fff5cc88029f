"""What an image processor of transformers does to an image, beside what ours does."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...models.inference.image_size import ExactSize, Size
from ...models.inference.images import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class ImageSettings:
    """To what size and range images are brought."""

    size: Size | None
    """None where images are not resized."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of colours from 0 to 1."""
    processor: str = "RTDetrImageProcessor"
    """The class of transformers that does the same."""

    @classmethod
    def of(cls, processor: Any) -> "ImageSettings":
        """Those of an image processor. Raises ValueError for one that resizes in a way that is not known here."""
        to_unit = float(processor.rescale_factor) * 255 if processor.do_rescale else 255.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        size = _size(dict(processor.size)) if processor.do_resize else None
        # (to_unit * x - mean) / std
        return cls(
            size, tuple(one / to_unit for one in mean), tuple(one / to_unit for one in std), type(processor).__name__
        )

    def convert(self, batch: Tensor, mask: Tensor) -> Tensor:
        """Images (B, 3, H, W) of ImageNet's mean and deviation, in these; zero where the mask (B, H, W) is True."""
        if (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD):
            return batch
        numbers = (IMAGENET_MEAN, IMAGENET_STD, self.mean, self.std)
        our_mean, our_std, mean, std = (batch.new_tensor(one)[:, None, None] for one in numbers)
        return ((batch * our_std + our_mean - mean) / std).masked_fill(mask[:, None], 0.0)


def _size(size: dict[str, Any]) -> Size:
    """Raises ValueError for keys other than height and width, or shortest and longest edge."""
    given = {key: value for key, value in size.items() if value is not None}
    if given.keys() == {"height", "width"}:
        return ExactSize(given["height"], given["width"])
    if given.keys() == {"shortest_edge", "longest_edge"}:
        return Size(given["shortest_edge"], given["longest_edge"])
    raise ValueError(
        f"image processor: expected a size of height and width, or of shortest_edge and longest_edge, got {given}"
    )
