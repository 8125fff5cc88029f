"""A sheet of pictures of what is suspicious in a data set."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms.v2 import functional as F

from ...common.text import printable
from ...models.inference.images import BadImageError
from ..data.dataset import CocoDetection
from ..data.preparation.check import KINDS, Finding
from ..data.preparation.read import PartName
from .boxes import Box, draw_on

# pixels: a picture, the lines below it, and how much of the surroundings of a box is shown at least
CELL, CAPTION, GAP, LEAST = 280, 56, 10, 64
FONT = 12
MOST = 24


def draw_findings(
    parts: Mapping[PartName, CocoDetection], findings: Sequence[Finding], columns: int = 4
) -> Image.Image | None:
    """The first few of every kind that has an image, MOST in all, each with its box; None where there is none."""
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.row is not None:
            by_kind[finding.kind].append(finding)
    # one of each kind, then the second of each
    in_turn = [one for one in chain.from_iterable(zip_longest(*by_kind.values())) if one is not None]
    order = list(KINDS)
    cells: list[tuple[int, Image.Image]] = []
    for finding in in_turn:
        if len(cells) == MOST:
            break
        picture = _picture(parts, finding)
        if picture is not None:
            cells.append((order.index(finding.kind), _captioned(picture, finding)))
    if not cells:
        return None
    cells.sort(key=lambda cell: cell[0])
    across = min(columns, len(cells))
    wide, high = CELL + GAP, CELL + CAPTION + GAP
    sheet = Image.new("RGB", (across * wide + GAP, -(-len(cells) // across) * high + GAP), (255, 255, 255))
    for number, (_, cell) in enumerate(cells):
        sheet.paste(cell, (GAP + number % across * wide, GAP + number // across * high))
    return sheet


def _picture(parts: Mapping[PartName, CocoDetection], finding: Finding) -> Image.Image | None:
    """The box and what is around it, or the whole image; None where it cannot be read."""
    assert finding.split is not None
    assert finding.row is not None
    data = parts[finding.split]
    try:
        image = F.to_pil_image(data.pixels(finding.row))
    except (BadImageError, FileNotFoundError):
        return None
    corners = [box for box in (finding.other, finding.box) if box is not None]
    if not corners:
        return ImageOps.contain(image, (CELL, CELL))
    low, high = np.min(corners, 0)[:2], np.max(corners, 0)[2:]
    side = max(LEAST, 2 * float((high - low).max()))
    centre = ((low + high) / 2).clip(0, image.size)
    left, top = (centre - side / 2).round().astype(int).tolist()
    area = (max(left, 0), max(top, 0), min(left + round(side), image.width), min(top + round(side), image.height))
    part = image.crop(area)
    scale = CELL / max(part.size)
    resample = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS
    part = part.resize((max(1, round(part.width * scale)), max(1, round(part.height * scale))), resample)
    labels = {name: label for label, name in enumerate(category.name for category in data.annotations.categories)}
    label = labels.get(finding.label or "", 0)
    boxes = [
        Box(_placed(box, area, scale), label, "", dashed=number < len(corners) - 1)
        for number, box in enumerate(corners)
    ]
    draw_on(part, boxes, font_size=FONT, line=2)
    return part


def _placed(box: Sequence[float], area: Sequence[int], scale: float) -> tuple[float, ...]:
    x0, y0, x1, y1 = (scale * (value - area[index % 2]) for index, value in enumerate(box))
    least = 3.0  # of a box without area
    return (x0 - least, y0 - least, x1 + least, y1 + least) if min(x1 - x0, y1 - y0) < least else (x0, y0, x1, y1)


def _captioned(picture: Image.Image, finding: Finding) -> Image.Image:
    cell = Image.new("RGB", (CELL, CELL + CAPTION), (255, 255, 255))
    cell.paste((236, 236, 236), (0, 0, CELL, CELL))
    cell.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(FONT)
    title = KINDS[finding.kind].split(",")[0]
    where = " ".join(filter(None, (finding.split, finding.image)))
    what = ": ".join(filter(None, (finding.label, finding.sentence)))
    for number, line in enumerate((title, where, what)):
        text = printable(line)
        while draw.textlength(text, font=font) > CELL:
            text = f"{text[:-2]}…"
        draw.text((0, CELL + 2 + 17 * number), text, fill=(0, 0, 0), font=font)
    return cell
