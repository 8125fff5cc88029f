"""One set of images divided into training and validation images, the same whenever it is asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..layouts import HeldOut, SplitName


def keep_part(content: dict[str, Any], split: SplitName, held_out: HeldOut) -> dict[str, Any]:
    """A COCO file's content with the images of one split, and their annotations; all categories.

    Which images those are depends on the names and classes of all, the share and the seed, and not on their order.
    Annotations of images that the content does not list stay, to be found wrong.
    """
    images = sorted(content["images"], key=lambda image: str(image.get("file_name")))
    row_of = {image.get("id"): row for row, image in enumerate(images)}
    rows: list[int] = []
    classes: list[Any] = []
    for annotation in content["annotations"]:
        image_id = _image_of(annotation)
        if image_id in row_of and not isinstance(annotation.get("category_id"), list | dict):
            rows.append(row_of[image_id])
            classes.append(annotation.get("category_id"))
    of_val = validation_rows(len(images), rows, classes, held_out)
    kept = {image.get("id") for image, of in zip(images, of_val, strict=True) if of == (split == "val")}
    others = row_of.keys() - kept
    return {
        **content,
        "images": [image for image in content["images"] if image.get("id") in kept],
        "annotations": [one for one in content["annotations"] if _image_of(one) not in others],
    }


def _image_of(annotation: Any) -> Any:
    """The id of its image; None where it has none, which is told where annotations are checked."""
    image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
    return image_id if isinstance(image_id, int | float | str) else None


def validation_rows(count: int, rows: Sequence[int], classes: Sequence[Any], held_out: HeldOut) -> np.ndarray:
    """(count,) bool: which images are for validation.

    Iterative stratification (Sechidis et al. 2011, On the stratification of multi-label data): the images of the class
    that is in the fewest images left go, one after the other, to the split that still wants most images of that class.
    A class that is in one image or two is in training alone.

    Args:
        count: of images.
        rows: the image of each box.
        classes: the class of each box.
        held_out: share and seed.
    """
    names, labels = np.unique(np.asarray(classes, dtype=object).astype(str), return_inverse=True)
    has = np.zeros((count, len(names)), dtype=bool)
    if len(names):
        has[np.asarray(rows, dtype=np.int64), labels] = True
    # once at random: where nothing else decides, the order does
    order = np.random.default_rng(held_out.seed).permutation(count)
    has, shares = has[order], np.array([1 - held_out.share, held_out.share])
    wanted = shares * count
    wanted_of = shares[:, None] * has.sum(0)
    part = np.full(count, -1)
    remaining = has.sum(0)

    def put(row: int, by: np.ndarray) -> None:
        best = np.flatnonzero(by == by.max())
        to = int(best[np.argmax(wanted[best])])
        part[row] = to
        wanted[to] -= 1
        wanted_of[to] -= has[row]

    while (remaining > 0).any():
        label = int(np.argmin(np.where(remaining > 0, remaining, count + 1)))
        for row in np.flatnonzero(has[:, label] & (part < 0)).tolist():
            put(row, wanted_of[:, label])
            remaining -= has[row]
    for row in np.flatnonzero(part < 0).tolist():
        put(row, wanted)
    found = np.empty(count, dtype=bool)
    found[order] = part == 1
    return found
