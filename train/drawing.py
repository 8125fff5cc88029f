"""Pictures of boxes: detections on an image, and predictions beside ground truth."""

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .files import atomic_file

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A box to draw: xyxy in pixels, its class as an index, and what to write on it."""

    xyxy: tuple[float, float, float, float]
    label: int
    text: str


def class_colour(label: int) -> Colour:
    """A bright colour for each class; neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.61803) % 1.0, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_boxes(image: Image.Image, boxes: Sequence[Box], magnify: float = 1.0) -> Image.Image:
    """A copy of the image, magnified, with boxes and their texts; later boxes lie on top."""
    size = (round(image.width * magnify), round(image.height * magnify))
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC) if magnify != 1.0 else image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(size) / 250))
    font = ImageFont.load_default(max(10, round(min(size) / 36)))
    for box in boxes:
        x0, y0, x1, y1 = (value * magnify for value in box.xyxy)
        colour = class_colour(box.label)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=line)
        left, top, right, bottom = draw.textbbox((0, 0), box.text, font=font)
        width, height = right - left + 4, bottom - top + 4
        # above the box, or inside where there is no room above; never off the right edge
        x, y = min(max(x0, 0), size[0] - width), y0 - height if y0 >= height else y0
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x + 2 - left, y + 2 - top), box.text, fill=(0, 0, 0), font=font)
    return picture


def side_by_side(rows: Sequence[tuple[Image.Image, Image.Image]], titles: tuple[str, str], columns: int) -> Image.Image:
    """Pairs of pictures of one size in a grid, ``columns`` pairs to a row, under their titles."""
    width, height = rows[0][0].size
    gap, head = 6, 26
    pair = 2 * width + 3 * gap
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (pair * columns, head + lines * (height + gap)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for column in range(columns):
        for side, title in enumerate(titles):
            draw.text((column * pair + gap + side * (width + gap), 4), title, fill=(0, 0, 0), font=font)
    for number, pictures in enumerate(rows):
        y, x = divmod(number, columns)
        for side, picture in enumerate(pictures):
            sheet.paste(picture, (x * pair + gap + side * (width + gap), head + y * (height + gap)))
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG or a JPEG, by the path's suffix, whole or not at all."""
    encoded = io.BytesIO()
    picture.save(encoded, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=92)
    with atomic_file(path) as file:
        file.write(encoded.getvalue())
