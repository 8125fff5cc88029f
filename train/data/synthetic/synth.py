"""A seeded data set of shapes, in COCO's format, to train on where there is no data.

One image: a textured background, unlabelled clutter, then 1 to 10 shapes drawn one over the other. A shape hides at
most half of any shape below it. As in COCO an annotation describes what is visible: ``segmentation``, ``area`` and
``bbox`` are those of the visible pixels (the first in run lengths), and ``visible_fraction`` (our own field) says what
part of the shape that is.
Size, turn and texture are drawn independently of the class; its colour tends to a hue of its own, with a spread in
which neighbouring classes overlap, while clutter and backgrounds take any colour: outline and colour together tell it.

Image i of a split depends on (seed, split, i) alone, so a larger set starts with the smaller one.
"""

import colorsys
import io
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ....common.files import atomic_folder, write_json
from ....common.progress import progress_bar
from .options import SynthOptions
from .shapes import CLASSES, DISTRACTORS, coverage, place

Array = np.ndarray

MAX_OBJECTS = 10
MIN_VISIBLE = 0.5
# pixels: below this a shape is a smudge, and its class a guess
MIN_EXTENT = 9


@dataclass(frozen=True)
class Scene:
    """One image and what is in it."""

    pixels: Array
    """(H, W, 3) uint8."""
    labels: list[int]
    """Class of each shape, lowest first: an index into shapes.CLASSES."""
    masks: list[Array]
    """(H, W) bool, the visible pixels of each shape."""
    visible: list[float]
    """Visible part of each shape, MIN_VISIBLE to 1."""


def make_scene(rng: np.random.Generator, size: int, n_classes: int) -> Scene:
    """Draws one image.

    Args:
        rng: all randomness comes from here.
        size: width and height in pixels.
        n_classes: shapes are drawn from the first so many of shapes.CLASSES.
    """
    canvas = _background(rng, size)
    for _ in range(rng.integers(2, 7)):
        _draw_clutter(rng, canvas)

    owner = np.full((size, size), -1)  # which shape is on top
    areas: list[int] = []
    labels: list[int] = []
    # few and many are equally likely, sizes shrink as numbers grow, as they do in photographs
    wanted = int(rng.integers(1, MAX_OBJECTS + 1))
    outlines = list(CLASSES.values())
    for _ in range(30 * wanted):
        if len(labels) == wanted:
            break
        label = int(rng.integers(n_classes))
        alpha, window = _drop(rng, outlines[label], size, wanted)
        inside = alpha >= 0.5
        if not _may_cover(owner[window], inside, owner, areas):
            continue
        _paint(rng, canvas[window], alpha, partial(_class_colour, rng, label / n_classes))
        owner[window][inside] = len(labels)
        areas.append(int(inside.sum()))
        labels.append(label)

    pixels = np.clip(canvas + rng.normal(0, 4, canvas.shape), 0, 255).astype(np.uint8)
    masks = [owner == index for index in range(len(labels))]
    return Scene(pixels, labels, masks, [float(mask.sum() / area) for mask, area in zip(masks, areas, strict=True)])


def _drop(rng: np.random.Generator, outline: Array, size: int, crowd: int) -> tuple[Array, tuple[slice, slice]]:
    """A shape of random size, turn and place, wholly inside the image: its coverage, and the window of it."""
    largest = size * (0.36 if crowd <= 3 else 0.27)
    radius = float(np.exp(rng.uniform(np.log(max(MIN_EXTENT * 0.75, 0.085 * size)), np.log(largest))))
    polygon = place(outline, np.zeros(2), radius, float(np.exp(rng.uniform(-0.2, 0.2))), float(rng.uniform(-15, 15)))
    low, high = polygon.min(0), polygon.max(0)
    room = size - (high - low)
    if (room <= 0).any():
        polygon *= 0.9 * size / (high - low).max()
        low, high = polygon.min(0), polygon.max(0)
        room = size - (high - low)
    return coverage(polygon - low + rng.uniform(0, 1, 2) * room, size, size)


def _may_cover(under: Array, inside: Array, owner: Array, areas: list[int]) -> bool:
    """Whether every shape below keeps at least MIN_VISIBLE of itself, and enough of it to be told."""
    for index in np.unique(under[inside]):
        if index < 0:
            continue
        shape = owner == index
        left = int(shape.sum()) - int((under[inside] == index).sum())
        if left < MIN_VISIBLE * areas[index] or left < MIN_EXTENT**2 / 2:
            return False
    return True


def _colour(rng: np.random.Generator) -> Array:
    return rng.uniform(0, 255, 3)


def _class_colour(rng: np.random.Generator, hue: float) -> Array:
    """A colour of about a hue in [0, 1), with a spread of 25 degrees of the colour circle."""
    colour = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.07)) % 1, rng.uniform(0.5, 1), rng.uniform(0.45, 1))
    return 255 * np.asarray(colour)


def _background(rng: np.random.Generator, size: int) -> Array:
    """(size, size, 3) float32: two colours mixed by smooth noise, with stripes, checks or grain."""
    first, second = _colour(rng), _colour(rng)
    second = first + (second - first) * 0.6  # keep the background calmer than the shapes
    mix = _smooth_noise(rng, size, int(rng.integers(2, 9)))
    kind = rng.integers(4)
    y, x = np.mgrid[0:size, 0:size]
    if kind == 1:  # stripes
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 24)
        mix = 0.6 * mix + 0.4 * (0.5 + 0.5 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period))
    elif kind == 2:  # checks
        cell = int(rng.integers(6, 20))
        mix = 0.7 * mix + 0.3 * ((x // cell + y // cell) % 2)
    elif kind == 3:  # grain
        mix = 0.7 * mix + 0.3 * _smooth_noise(rng, size, size // 3)
    return (first + (second - first) * mix[..., None]).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """(size, size) in [0, 1]: random values on a coarse grid, interpolated."""
    grid = Image.fromarray(rng.uniform(0, 1, (cells, cells)).astype(np.float32))
    return np.clip(np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)), 0, 1)


def _draw_clutter(rng: np.random.Generator, canvas: Array) -> None:
    """One unlabelled thing: a stroke, or a shape that is no class."""
    size = canvas.shape[0]
    centre = rng.uniform(0, size, 2)
    if rng.random() < 0.5:  # an open curve of some thickness
        t = np.linspace(0, 1, 12)[:, None]
        ends, bend = rng.uniform(-0.4, 0.4, (2, 2)) * size, rng.uniform(-0.3, 0.3, 2) * size
        line = centre + ends[0] * (1 - t) + ends[1] * t + bend * 4 * t * (1 - t)
        along = np.gradient(line, axis=0)
        across = np.stack([-along[:, 1], along[:, 0]], 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-6)
        thickness = rng.uniform(0.6, 0.018 * size + 0.6)
        polygon = np.concatenate([line + across * thickness, (line - across * thickness)[::-1]])
    else:
        outline = DISTRACTORS[rng.integers(len(DISTRACTORS))]
        polygon = place(outline, centre, rng.uniform(0.05, 0.16) * size, 1.0, rng.uniform(0, 360))
    if (polygon.max(0) <= 0).any() or (polygon.min(0) >= size).any():
        return
    alpha, window = coverage(polygon, size, size)
    _paint(rng, canvas[window], alpha, partial(_colour, rng))


def _paint(rng: np.random.Generator, patch: Array, alpha: Array, draw_colour: Callable[[], Array]) -> None:
    """Mixes a fill of one drawn colour, shaded or striped, into ``patch``; it stands out from what is there."""
    around = patch.reshape(-1, 3).mean(0)
    colour = max((draw_colour() for _ in range(3)), key=lambda c: float(np.abs(c - around).sum()))
    height, width = alpha.shape
    y, x = np.mgrid[0:height, 0:width]
    angle = rng.uniform(0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / max(height, width)
    if rng.random() < 0.2:
        shade = 0.85 + 0.15 * np.sign(np.sin(along * 2 * np.pi * rng.uniform(2, 5)))
    else:
        shade = 1.0 + rng.uniform(0, 0.35) * (along - along.mean())
    fill = np.clip(colour * shade[..., None], 0, 255)
    patch += alpha[..., None] * (fill - patch)


def annotate(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """The scene's shapes as COCO annotations of what is visible; category id = class + 1."""
    annotations = []
    for offset, (label, mask, visible) in enumerate(zip(scene.labels, scene.masks, scene.visible, strict=True)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        annotations.append(
            {
                "id": first_id + offset,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [float(side) for side in (columns[0], rows[0], width, height)],
                "area": float(mask.sum()),
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                "iscrowd": 0,
                "visible_fraction": round(visible, 4),
            }
        )
    return annotations


def run_lengths(mask: Array) -> list[int]:
    """COCO's run lengths of a mask (H, W), uncompressed: column by column, the first run of zeros, maybe empty.

    Not by pycocotools, which the machines lack that time the loading of such images.
    """
    pixels = mask.ravel(order="F")
    counts = np.diff([0, *(np.flatnonzero(np.diff(pixels)) + 1), pixels.size]).tolist()
    return [0, *counts] if pixels[0] else counts


def _draw(options: SynthOptions, offset: int, index: int) -> tuple[bytes, list[dict[str, Any]]]:
    """One image as a JPEG, and its annotations, whose ids count from 1."""
    scene = make_scene(np.random.default_rng([options.seed, offset, index]), options.size, options.classes)
    encoded = io.BytesIO()
    Image.fromarray(scene.pixels).save(encoded, "JPEG", quality=92)
    return encoded.getvalue(), annotate(scene, offset + index + 1, first_id=1)


def _drawn(options: SynthOptions, offset: int, count: int) -> Iterator[tuple[bytes, list[dict[str, Any]]]]:
    """What `_draw` gives of each image, in order."""
    draw = partial(_draw, options, offset)
    # a process more must have something to do in the second it takes to start
    if options.workers == 1 or count < 100:
        yield from map(draw, range(count))
        return
    # Ctrl-C is for the parent to handle
    ignore = (signal.SIGINT, signal.SIG_IGN)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, initializer=signal.signal, initargs=ignore) as pool:
        try:
            yield from pool.map(draw, range(count), chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)


def _write_split(options: SynthOptions, folder: Path, split: str, count: int, offset: int) -> None:
    """One folder of images and its annotation file; image ids start after ``offset``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / split).mkdir()
    with progress_bar(f"drawing {split}", count, shown=options.progress) as advance:
        for image_id, (jpeg, found) in enumerate(_drawn(options, offset, count), start=offset + 1):
            name = f"{image_id:012d}.jpg"
            (folder / split / name).write_bytes(jpeg)
            images.append(
                {"id": image_id, "file_name": name, "width": options.size, "height": options.size, "license": 1}
            )
            annotations += [{**annotation, "id": len(annotations) + annotation["id"]} for annotation in found]
            advance()
    names = list(CLASSES)[: options.classes]
    content = {
        "info": {
            "description": "synthetic shapes made by `msdeform data synth`; annotations describe visible pixels",
            "version": "1",
            "seed": options.seed,
        },
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index + 1, "name": name, "supercategory": "shape"} for index, name in enumerate(names)],
    }
    write_json(folder / "annotations" / f"instances_{split}.json", content)


# image ids of val2017 start here, so that no id names two images
VAL_OFFSET = 900_000


def make_dataset(options: SynthOptions) -> None:
    """Writes the data set under ``options.out``: all of it, or, when stopped or failed, nothing."""
    with atomic_folder(options.out) as folder:
        _write_split(options, folder, "train2017", options.train, 0)
        _write_split(options, folder, "val2017", options.val, VAL_OFFSET)
