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
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_DARK: Colour = (40, 40, 40)


@dataclass(frozen=True)
class Box:
    """A box to draw: xyxy in pixels, its class as an index, and what to write on it."""

    xyxy: tuple[float, float, float, float]
    label: int
    text: str
    colour: Colour | None = None
    """Its class's when None."""
    dashed: bool = False


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
    """A copy of the image, magnified, with boxes, later ones on top, and over them their texts.

    Texts never cover each other and never leave the picture (`labels.place_labels`): the last box's is placed first,
    and a text that has no room left is left out. One that stands apart from its box is joined to it by a line. Texts
    and lines are as large as suits the picture, unless ``font_size`` and ``line`` say how many pixels.
    """
    size = (max(1, round(image.width * magnify)), max(1, round(image.height * magnify)))
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC) if magnify != 1.0 else image.convert("RGB")
    draw_on(picture, boxes, magnify, font_size, line)
    return picture


def draw_on(
    picture: Image.Image,
    boxes: Sequence[Box],
    magnify: float = 1.0,
    font_size: int | None = None,
    line: int | None = None,
) -> int:
    """The number of texts that had no room, after drawing boxes on the picture itself, as `draw_boxes` does."""
    draw = ImageDraw.Draw(picture)
    line = line or max(1, round(min(picture.size) / 250))
    font = ImageFont.load_default(font_size or max(10, round(min(picture.size) / 36)))
    for box in boxes:
        x0, y0, x1, y1 = (value * magnify for value in box.xyxy)
        colour = box.colour or class_colour(box.label)
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if box.dashed:
            _dashed_rectangle(draw, corners, colour, line)
        else:
            draw.rectangle(corners, outline=colour, width=line)
    return _draw_labels(draw, boxes, magnify, font)


def _draw_labels(draw: ImageDraw.ImageDraw, boxes: Sequence[Box], magnify: float, font: Font) -> int:
    """Draws the texts of boxes over all lines, the last box's first; returns how many had no room."""
    named = [box for box in reversed(boxes) if box.text]
    areas = [draw.textbbox((0, 0), box.text, font=font) for box in named]
    # whole pixels, so that rounding moves no label onto another; a rectangle covers its last pixel, too
    sizes = [(math.ceil(right - left) + 5, math.ceil(bottom - top) + 5) for left, top, right, bottom in areas]
    corners: list[Rectangle] = []
    for box in named:
        x0, y0, x1, y1 = (value * magnify for value in box.xyxy)
        corners.append((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
    labels = place_labels(corners, sizes, (0, 0, *draw.im.size))
    for box, corner, label in zip(named, corners, labels, strict=True):
        if label is not None and (line := lead(label, corner)) is not None:
            draw.line(line, fill=box.colour or class_colour(box.label))
    for box, (left, top, *_), label in zip(named, areas, labels, strict=True):
        if label is not None:
            x0, y0, x1, y1 = label
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=box.colour or class_colour(box.label))
            draw.text((x0 + 2 - left, y0 + 2 - top), box.text, fill=(0, 0, 0), font=font)
    return labels.count(None)


def _dashed_rectangle(
    draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], colour: Colour, line: int
) -> None:
    """Dashes on a dark line, which shows on any background that hides one of the two."""
    x0, y0, x1, y1 = (round(value) for value in corners)
    draw.rectangle((x0, y0, x1, y1), outline=_DARK, width=line)
    dash = 3 * line + 1
    for x in range(x0, x1 + 1, 2 * dash):
        end = min(x + dash - 1, x1)
        draw.rectangle((x, y0, end, y0 + line - 1), fill=colour)
        draw.rectangle((x, y1 - line + 1, end, y1), fill=colour)
    for y in range(y0, y1 + 1, 2 * dash):
        end = min(y + dash - 1, y1)
        draw.rectangle((x0, y, x0 + line - 1, end), fill=colour)
        draw.rectangle((x1 - line + 1, y, x1, end), fill=colour)


def side_by_side(
    rows: Sequence[tuple[Image.Image, Image.Image]],
    titles: tuple[str, str],
    columns: int,
    key: Sequence[tuple[Box, str]] = (),
) -> Image.Image:
    """Pairs of pictures in a grid, ``columns`` pairs to a row, under their titles, each in the middle of its place.

    ``key``: how boxes are drawn, and what that means; a line at the bottom.
    """
    columns = min(columns, len(rows))
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    width = max(picture.width for pair in rows for picture in pair)
    heights = [max(picture.height for pair in line for picture in pair) for line in lines]
    gap, head = 6, 26
    pair_width = 2 * width + 3 * gap
    font = ImageFont.load_default(15)
    foot = _key(key, font, pair_width * columns) if key else Image.new("RGB", (1, 0))
    bottom = head + sum(heights) + gap * len(lines)
    sheet = Image.new("RGB", (pair_width * columns, bottom + foot.height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        for side, title in enumerate(titles):
            draw.text((column * pair_width + gap + side * (width + gap), 4), title, fill=(0, 0, 0), font=font)
    top = head
    for line, height in zip(lines, heights, strict=True):
        for column, pictures in enumerate(line):
            for side, picture in enumerate(pictures):
                left = column * pair_width + gap + side * (width + gap) + (width - picture.width) // 2
                sheet.paste(picture, (left, top + (height - picture.height) // 2))
        top += height + gap
    sheet.paste(foot, (0, bottom))
    return sheet


def _key(key: Sequence[tuple[Box, str]], font: Font, width: int) -> Image.Image:
    """Samples of boxes with their meaning, in as many lines as it takes."""
    places: list[tuple[int, int]] = []
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    x, y = 6, 2
    for _, meaning in key:
        needed = 46 + round(measure.textlength(meaning, font=font))
        if x > 6 and x + needed > width:
            x, y = 6, y + 24
        places.append((x, y))
        x += needed + 20
    picture = Image.new("RGB", (width, y + 24), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for (box, meaning), (left, top) in zip(key, places, strict=True):
        corners = (left, top + 3, left + 36, top + 17)
        if box.dashed:
            _dashed_rectangle(draw, corners, box.colour or class_colour(box.label), 2)
        else:
            draw.rectangle(corners, outline=box.colour or class_colour(box.label), width=2)
        draw.text((left + 44, top), meaning, fill=(0, 0, 0), font=font)
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG or a JPEG, by the path's suffix, whole or not at all."""
    with atomic_file(path) as file:
        picture.save(file, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=92)
