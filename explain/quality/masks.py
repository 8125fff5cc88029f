"""Outlines of objects, where a data set has them: what of a box is the object, and what is beside it."""

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from ...train.data.annotations import Annotations
from .measures import Array

Masks = Callable[[int, Array], list[Array | None]]
"""Of an image's id and boxes (N, 4) xyxy of its objects, each object's pixels (H, W) bool; None where it has none."""


def masks_of(annotations: Annotations) -> Masks:
    """Reads the ``segmentation`` of a data set in COCO's format; of another it finds none.

    Polygons and run lengths, compressed or not, are read by pycocotools; what it cannot read, or reads as another size
    than the image's, is none. An object is known by its box, as `Annotations` may have left some out.
    """
    if annotations.format != "coco":
        return lambda image_id, boxes: [None] * len(boxes)
    content = json.loads(annotations.path.read_text(encoding="utf-8"))
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in content["images"]}
    outlines = defaultdict(list)
    for one in content["annotations"]:
        if one.get("segmentation"):
            x, y, width, height = one["bbox"]
            outlines[one["image_id"]].append(((x, y, x + width, y + height), one["segmentation"]))

    def masks(image_id: int, boxes: Array) -> list[Array | None]:
        there = outlines[image_id]
        found: list[Array | None] = []
        for box in boxes:
            apart = [float(np.abs(np.subtract(own, box)).max()) for own, _ in there]
            nearest = int(np.argmin(apart)) if apart else -1
            # a box may have been clipped to its image
            same = bool(apart) and apart[nearest] < 1
            mask = _decoded(there[nearest][1], sizes[image_id]) if same else None
            found.append(mask)
        return found

    return masks


def _decoded(outline: Any, size: tuple[int, int]) -> Array | None:
    compressed = isinstance(outline, dict) and isinstance(outline.get("counts"), str)
    try:
        lengths = outline if compressed else coco_masks.frPyObjects(outline, *size)
        whole = coco_masks.merge(lengths) if isinstance(lengths, list) else lengths
        mask: Array = coco_masks.decode(whole).astype(bool)
    except Exception:  # as it raises, of whatever it was not made for
        return None
    return mask if mask.shape == size and mask.any() else None
