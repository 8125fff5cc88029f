"""Pictures of boxes: detections on an image, and predictions beside ground truth."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...common.files import atomic_file
from .label_placement import Rectangle, lead, place_labels

Colour = tuple[int, int, int]

_DARK: Colour = (40, 40, 40)
_WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Box:
    """A box to draw: xyxy in pixels (none in a key), its class as an index, and what to write on it."""

    xyxy: tuple[float, ...]
    label: int
    text: str
    colour: Colour | None = None
    """Its class's when None."""
    dashed: bool = False

    @property
    def ink(self) -> Colour:
        return self.colour or class_colour(self.label)


def class_colour(label: int) -> Colour:
    """A bright colour for each class; neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.61803) % 1.0, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Box],
    magnify: float = 1.0,
    font_size: int | None = None,
    line: int | None = None,
) -> Image.Image:
    """A copy of the image, magnified, with boxes as `draw_on` draws them."""
    size = (max(1, round(image.width * magnify)), max(1, round(image.height * magnify)))
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    draw_on(picture, boxes, magnify, font_size, line)
    return picture


def draw_on(
    picture: Image.Image,
    boxes: Sequence[Box],
    magnify: float = 1.0,
    font_size: int | None = None,
    line: int | None = None,
) -> int:
    """The number of texts that had no room, after drawing boxes, later ones on top, and over them their texts.

    Texts never cover each other and never leave the picture (`labels.place_labels`): the last box's is placed first,
    and a text that has no room left is left out. One that stands apart from its box is joined to it by a line. Texts
    and lines are as large as suits the picture, unless ``font_size`` and ``line`` say how many pixels.
    """
    draw = ImageDraw.Draw(picture)
    line = line or max(1, round(min(picture.size) / 250))
    font = ImageFont.load_default(font_size or max(10, round(min(picture.size) / 36)))
    for box in boxes:
        _draw_box(draw, [value * magnify for value in box.xyxy], box, line)
    named = [box for box in reversed(boxes) if box.text]
    areas = [draw.textbbox((0, 0), box.text, font=font) for box in named]
    # whole pixels, so that rounding moves no label onto another; a rectangle covers its last pixel, too
    sizes = [(math.ceil(right - left) + 5, math.ceil(bottom - top) + 5) for left, top, right, bottom in areas]
    corners: list[Rectangle] = []
    for box in named:
        x0, y0, x1, y1 = (value * magnify for value in box.xyxy)
        corners.append((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
    labels = place_labels(corners, sizes, (0, 0, *picture.size))
    placed = [
        (label, box, corner, area)
        for label, box, corner, area in zip(labels, named, corners, areas, strict=True)
        if label is not None
    ]
    for label, box, corner, _ in placed:
        if (joined := lead(label, corner)) is not None:
            draw.line(joined, fill=box.ink)
    for (x0, y0, x1, y1), box, _, (left, top, *_) in placed:
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=box.ink)
        draw.text((x0 + 2 - left, y0 + 2 - top), box.text, fill=(0, 0, 0), font=font)
    return labels.count(None)


def _draw_box(draw: ImageDraw.ImageDraw, xyxy: Sequence[float], box: Box, line: int) -> None:
    """Its lines; dashes lie on a dark line, which shows on any background that hides one of the two."""
    (x0, x1), (y0, y1) = sorted(xyxy[::2]), sorted(xyxy[1::2])
    if not box.dashed:
        draw.rectangle((x0, y0, x1, y1), outline=box.ink, width=line)
        return
    x0, y0, x1, y1 = (round(value) for value in (x0, y0, x1, y1))
    draw.rectangle((x0, y0, x1, y1), outline=_DARK, width=line)
    dash = 3 * line + 1
    for x in range(x0, x1 + 1, 2 * dash):
        end = min(x + dash - 1, x1)
        draw.rectangle((x, y0, end, y0 + line - 1), fill=box.ink)
        draw.rectangle((x, y1 - line + 1, end, y1), fill=box.ink)
    for y in range(y0, y1 + 1, 2 * dash):
        end = min(y + dash - 1, y1)
        draw.rectangle((x0, y, x0 + line - 1, end), fill=box.ink)
        draw.rectangle((x1 - line + 1, y, x1, end), fill=box.ink)


def side_by_side(
    rows: Sequence[tuple[Image.Image, Image.Image]],
    titles: tuple[str, str],
    columns: int,
    key: Sequence[tuple[Box, str]] = (),
) -> Image.Image:
    """Pairs of pictures in a grid, ``columns`` pairs to a row, under their titles, each in the middle of its place.

    ``key``: how boxes are drawn, and what that means; at the bottom.
    """
    across, gap, head = 2 * min(columns, len(rows)), 6, 26
    pictures = [picture for pair in rows for picture in pair]
    lines = [pictures[start : start + across] for start in range(0, len(pictures), across)]
    wide = max(picture.width for picture in pictures)
    samples = [(Image.new("RGB", (37, 15), _WHITE), meaning) for _, meaning in key]
    for (sample, _), (box, _) in zip(samples, key, strict=True):
        _draw_box(ImageDraw.Draw(sample), (0, 0, 36, 14), box, 2)
    width = across * (wide + gap) + gap
    foot = legend(samples, width, 15) if key else Image.new("RGB", (width, 0))
    height = head + sum(max(picture.height for picture in line) + gap for line in lines) + foot.height
    sheet = Image.new("RGB", (width, height), _WHITE)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column in range(across):
        draw.text((gap + column * (wide + gap), 4), titles[column % 2], fill=(0, 0, 0), font=font)
    top = head
    for line in lines:
        high = max(picture.height for picture in line)
        for column, picture in enumerate(line):
            left = gap + column * (wide + gap) + (wide - picture.width) // 2
            sheet.paste(picture, (left, top + (high - picture.height) // 2))
        top += high + gap
    sheet.paste(foot, (0, top))
    return sheet


def legend(samples: Sequence[tuple[Image.Image, str]], width: int, font_size: int, heading: str = "") -> Image.Image:
    """Small pictures, each with its meaning to the right, below a heading, in as many lines as it takes."""
    font, step = ImageFont.load_default(font_size), 24
    places, x, y = [], 6, 2 + step * bool(heading)
    for sample, meaning in samples:
        needed = sample.width + 8 + round(font.getlength(meaning))
        if x > 6 and x + needed > width:
            x, y = 6, y + step
        places.append((x, y))
        x += needed + 20
    picture = Image.new("RGB", (width, y + step), _WHITE)
    draw = ImageDraw.Draw(picture)
    draw.text((6, 2), heading, fill=(0, 0, 0), font=font)
    for (sample, meaning), (left, top) in zip(samples, places, strict=True):
        picture.paste(sample, (left, top + 3))
        draw.text((left + sample.width + 8, top), meaning, fill=(0, 0, 0), font=font)
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG or a JPEG, by the path's suffix, whole or not at all."""
    with atomic_file(path) as file:
        picture.save(file, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=92)
