"""Where a data set tells a detector to look: a Gaussian over each box, drawn over the image in its class's colour."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...common.files import atomic_file
from ...models.layers.boxes import cxcywh_to_xyxy
from ..data.dataset import Sample
from .boxes import class_colour, legend

Array = np.ndarray

# of what a map's value of 1 covers of the image, which stays recognisable below it
OPACITY = 0.85
# pixels: the scale's bars
BAR = (110, 14)


def gaussian_maps(boxes: Array, labels: Array, size: tuple[int, int], sigma: float) -> dict[int, Array]:
    """One map a class: at each pixel's centre the highest of the Gaussians of that class's boxes, 1 in their middles.

    The highest and not the sum, so that maps of one box and of many have one scale.

    Args:
        boxes: (N, 4) cxcywh, normalised to the image.
        labels: (N,) classes.
        size: (height, width) in pixels.
        sigma: standard deviation along x as part of a box's width, along y of its height.

    Returns:
        By label, (height, width) float32 in [0, 1].
    """
    height, width = size
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    maps: dict[int, Array] = {}
    for (cx, cy, w, h), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        across = np.exp(-0.5 * ((x - cx) / (sigma * w)) ** 2)
        down = np.exp(-0.5 * ((y - cy) / (sigma * h)) ** 2)
        one = (down[:, None] * across).astype(np.float32)
        maps[label] = np.maximum(maps[label], one) if label in maps else one
    return maps


def paint(picture: Image.Image, maps: dict[int, Array]) -> Image.Image:
    """The picture, grey and darkened, under the maps: the colour of the highest class, as opaque as it is high."""
    below = np.asarray(picture.convert("L"), np.float32)[..., None].repeat(3, -1) * 0.6
    if maps:
        values = np.stack(list(maps.values()))
        colours = np.array([class_colour(label) for label in maps], np.float32)[values.argmax(0)]
        opaque = OPACITY * values.max(0)[..., None]
        below = below * (1 - opaque) + colours * opaque
    return Image.fromarray(below.round().astype(np.uint8))


def draw_scale(labels: Sequence[int], names: Sequence[str], width: int) -> Image.Image:
    """A bar from 0 to 1 for each class, over a grey that stands for the image, in as many lines as it takes."""
    rising = np.linspace(0, 1, BAR[0], dtype=np.float32)[None].repeat(BAR[1], 0)
    bars = [paint(Image.new("L", BAR, 128), {label: rising}) for label in labels]
    samples = [(bar, f"0 to 1: {name}") for bar, name in zip(bars, names, strict=True)]
    return legend(samples, width, 13, "height of the Gaussian, the highest of each class at every pixel:")


def save_maps(samples: Sequence[Sample], sigma: float, path: Path) -> None:
    """Writes what was drawn, in the samples' own pixels, as an npz, whole or not at all.

    Of the sample of place i in the picture: ``image_id_i``; ``boxes_i`` (N, 4) xyxy in pixels; ``labels_i`` (N,);
    ``classes_i`` (C,), those that it has; ``maps_i`` (C, height, width), float16, one for each of them.
    """
    numbers: dict[str, Array] = {"sigma": np.array(sigma)}
    for place, (pixels, target) in enumerate(samples):
        height, width = pixels.shape[-2:]
        boxes, labels = target["boxes"].numpy(), target["labels"].numpy()
        maps = gaussian_maps(boxes, labels, (height, width), sigma)
        numbers[f"image_id_{place}"] = np.array(target["image_id"])
        numbers[f"boxes_{place}"] = cxcywh_to_xyxy(target["boxes"]).numpy() * [width, height, width, height]
        numbers[f"labels_{place}"] = labels
        numbers[f"classes_{place}"] = np.array(list(maps), int)
        numbers[f"maps_{place}"] = np.array(list(maps.values()), np.float16).reshape(-1, height, width)
    with atomic_file(path) as file:
        np.savez_compressed(file, **numbers)  # type: ignore[arg-type]
