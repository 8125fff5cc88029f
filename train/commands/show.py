"""``msdeform data show``: the images as training sees them, with their boxes, and what is in the data set."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from ...common.files import write_json
from ...common.text import counted
from ...models.layers.boxes import cxcywh_to_xyxy
from ..config.options import Loading
from ..data.dataset import CocoDetection, Sample, data_line
from ..data.loader import training_data, validation_data
from ..visual.boxes import Box, draw_on, save_picture
from ..visual.gaussians import draw_scale, gaussian_maps, paint, save_maps
from ..visual.statistics import draw_charts, print_table, statistics
from .options import ShowOptions

# pixels: the square that an image is brought to fit, and the strip below it that says which it is
CELL, CAPTION, GAP = 440, 24, 8
FONT_SIZE = 13
LONGEST_NAME = 32


def draw_samples(data: CocoDetection, count: int, repeat: int, seed: int) -> list[Sample]:
    """``count`` images of the data set, taken at random, ``repeat`` times each, one after the other."""
    _, firsts = np.unique(data.rows, return_index=True)  # overfitting offers an image many times
    items = np.sort(np.random.default_rng(seed).permutation(firsts)[:count]).tolist()
    return [data[epoch, item] for item in items for epoch in range(repeat)]


def draw_sheet(
    names: Sequence[str],
    samples: Sequence[Sample],
    repeat: int = 1,
    sigma: float | None = None,
    files: Mapping[int, str] | None = None,
) -> Image.Image:
    """The samples with their boxes in a grid; those of one image in a row where each is there several times.

    Args:
        names: of the classes, by label.
        samples: `repeat` of each image, one after the other.
        repeat: how many.
        sigma: of the Gaussian maps that are drawn beside the boxes; None for no maps.
        files: names of the images, by their ids, for the captions.
    """
    called = {image: _shortened(Path(name).name) for image, name in (files or {}).items()}
    cells = [
        [draw_cell(names, one, called), *([] if sigma is None else [draw_gaussians(one, sigma)])] for one in samples
    ]
    each = len(cells[0])
    columns = each * (repeat if repeat > 1 else max(1, round(math.sqrt(1.3 / each * len(samples)))))
    flat = torch.stack([F.pil_to_tensor(cell) for pair in cells for cell in pair])
    sheet = F.to_pil_image(make_grid(flat, nrow=columns, padding=GAP, pad_value=255))
    if sigma is None:
        return sheet
    labels = sorted({label for _, target in samples for label in target["labels"].tolist()})
    scale = draw_scale(labels, [names[label] for label in labels], sheet.width)
    whole = ImageOps.expand(sheet, (0, 0, 0, scale.height))
    whole.paste(scale, (0, sheet.height))
    return whole


def draw_cell(names: Sequence[str], sample: Sample, files: Mapping[int, str]) -> Image.Image:
    """One sample with its boxes, and below it the image's name (or id), its size as augmented, and how many boxes."""
    pixels, target = sample
    picture = _fitted(pixels)
    corners = (cxcywh_to_xyxy(target["boxes"]).numpy() * [*picture.size, *picture.size]).tolist()
    boxes = [Box((*xyxy,), label, names[label]) for xyxy, label in zip(corners, target["labels"].tolist(), strict=True)]
    # a small box is drawn last and named first, as it has few places for a name
    boxes.sort(key=lambda box: (box.xyxy[0] - box.xyxy[2]) * (box.xyxy[3] - box.xyxy[1]))
    nameless = draw_on(picture, boxes, font_size=FONT_SIZE, line=2)
    height, width = pixels.shape[-2:]
    image = target["image_id"]
    caption = f"{files.get(image, f'image {image}')}: {width} x {height}, {counted(len(boxes), 'box')}"
    if nameless:
        caption += f", {nameless} without room for a name"
    return _captioned(picture, caption)


def draw_gaussians(sample: Sample, sigma: float) -> Image.Image:
    """One sample under the Gaussian maps of its boxes."""
    pixels, target = sample
    picture = _fitted(pixels)
    size = (picture.height, picture.width)
    maps = gaussian_maps(target["boxes"].numpy(), target["labels"].numpy(), size, sigma)
    return _captioned(paint(picture, maps), f"target map: sigma {sigma:g} of each box's width and height")


def _fitted(pixels: Tensor) -> Image.Image:
    """(3, H, W) as large as a cell allows."""
    # enlarged, pixels stay squares that can be counted
    kernel = Image.Resampling.NEAREST if 2 * max(pixels.shape) < CELL else Image.Resampling.LANCZOS
    return ImageOps.contain(F.to_pil_image(pixels), (CELL, CELL), kernel)


def _shortened(name: str) -> str:
    """The end of a name for which a caption has no room."""
    return name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}"


def _captioned(picture: Image.Image, caption: str) -> Image.Image:
    square = ImageOps.pad(picture, (CELL, CELL), color=(236, 236, 236))
    cell = ImageOps.expand(square, (0, 0, 0, CAPTION), (255, 255, 255))
    ImageDraw.Draw(cell).text((2, CELL + 4), caption, fill=(0, 0, 0), font=ImageFont.load_default(FONT_SIZE))
    return cell


def run(options: ShowOptions) -> int:
    """``msdeform data show``: writes the pictures and the numbers to the folder, and prints the table."""
    data = (
        training_data(options.source, options.input, Loading(), options.seed, progress=options.progress)
        if options.split == "train"
        else validation_data(options.source, options.input, None, progress=options.progress)
    )
    print(data_line(options.source.data, *((data, None) if options.split == "train" else (None, data))))
    found = statistics(data)
    names = [category.name for category in data.annotations.categories]
    samples = draw_samples(data, options.count, options.repeat, options.seed)
    named = options.source.data or data.annotations.path
    out = options.out or Path("runs", "data", named.resolve().stem)
    images, charts, numbers, maps = (
        out / name for name in ("images.png", "statistics.png", "statistics.json", "gaussians.npz")
    )
    files = {image.id: image.name for image in data.annotations.images}
    sigma = options.sigma if options.gaussian else None
    save_picture(draw_sheet(names, samples, options.repeat, sigma, files), images)
    if options.gaussian:
        save_maps(samples, options.sigma, maps)
    draw_charts(found, data, charts)
    write_json(numbers, found)
    print_table(found)
    for line in data.annotations.dropped.sentences():
        print(line)
    print(f"images with their boxes: {images}")
    if options.gaussian:
        print(f"the Gaussian maps:       {maps}")
    print(f"classes and sizes:       {charts}, {numbers}")
    return 0
