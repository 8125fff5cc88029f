"""An image twice, with what became of its objects and of its detections: for an evaluation and its report."""

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ..data.dataset import CocoDetection
from ..evaluation.analysis import Analysis
from ..evaluation.matching import DETECTIONS, OBJECTS
from .boxes import Box, Colour, draw_boxes, side_by_side

COLOURS: dict[str, Colour] = {
    "found": (60, 230, 90),
    "right": (60, 230, 90),
    "missed": (255, 150, 30),
    "false": (255, 70, 200),
    "confused": (255, 235, 60),
    "badly placed": (70, 215, 255),
    "duplicate": (190, 150, 255),
}
# pixels: of a picture's longer side, its texts and its lines
SIDE, FONT, LINE = 560, 13, 2
ON_SHEET = 4
"""Images of `error_sheet`."""
_SHEET_SIDE = 360


def error_sheet(analysis: Analysis, data: CocoDetection) -> Image.Image:
    """`error_pictures` of some images that nobody chose: `ON_SHEET`, from the first on, as far apart as can be.

    Raises FileNotFoundError or BadImageError for an image that cannot be read.
    """
    ids = data.image_ids[:: -(-len(data) // ON_SHEET)]
    pairs = [error_pictures(analysis, data, image_id, side=_SHEET_SIDE) for image_id in ids]
    key = [(Box((), 0, "", colour, name != "found"), name) for name, colour in COLOURS.items() if name != "right"]
    return side_by_side(pairs, ("ground truth", "detections"), 2, key)


def error_pictures(
    analysis: Analysis, data: CocoDetection, image_id: int, *, side: int = SIDE
) -> tuple[Image.Image, Image.Image]:
    """The image with its objects, and with the detections that are kept; what is wrong is dashed and named.

    ``side``: pixels of a picture's longer side.

    Raises FileNotFoundError or BadImageError for an image that cannot be read.
    """
    matches, found, names = analysis.matches, analysis.outcomes, analysis.names
    place = int(np.searchsorted(matches.image_ids, image_id))
    row = int(np.flatnonzero(data.annotations.images.ids == image_id)[0])
    picture = F.to_pil_image(data.pixels(row))
    objects = [
        _box(matches.object_boxes[one], int(matches.object_labels[one]), OBJECTS[found.objects[one]], "found", names)
        for one in np.flatnonzero(matches.object_images == place)
    ]
    detections = [
        _box(
            matches.boxes[one],
            int(matches.labels[one]),
            DETECTIONS[found.detections[number]],
            "right",
            names,
            float(matches.scores[one]),
        )
        for number, one in enumerate(found.kept)
        if matches.images[one] == place
    ]
    style = (side / max(picture.size), FONT, LINE)
    # what is wrong on top
    first, second = (
        draw_boxes(picture, sorted(boxes, key=lambda box: box.dashed), *style) for boxes in (objects, detections)
    )
    return first, second


def _box(xyxy: np.ndarray, label: int, outcome: str, good: str, names: list[str], score: float | None = None) -> Box:
    text = "" if outcome == good else names[label] if score is None else f"{names[label]} {score:.2f}"
    return Box(tuple(xyxy.tolist()), label, text, COLOURS[outcome], outcome != good)
