"""Detections as one array, which is small, quick to gather from several processes, and what COCO's own tools read."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from ...common.text import counted
from ...models.inference.detections import Detections
from ..data.annotations import Annotations

# a detection's row, in the order of the COCO API's own arrays: image id, box as x, y, width, height in pixels, score,
# category id; float64, which holds every integer below 2**53
COLUMNS = 7
_MOST_ID = 2**53
_KEYS = ("boxes", "scores", "labels")


@dataclass(frozen=True)
class DetectionResults:
    """What a model found in a data set, or one process of several in its share of it."""

    image_ids: np.ndarray
    """(I,) int64: every image that was looked at, those with nothing in them too."""
    results: np.ndarray
    """(N, 7) float64: image id, x, y, width, height, score, category id."""
    losses: dict[str, float] = field(default_factory=dict)
    """This share's part of the losses of the whole data set; empty where none were asked for, or there are none."""


def merge(parts: Sequence[DetectionResults]) -> DetectionResults:
    """What all processes found together, whose shares must not overlap; their losses add up.

    Raises:
        ValueError: two processes looked at the same image.
    """
    image_ids = np.concatenate([part.image_ids for part in parts])
    ids, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        twice = ids[counts > 1][0]
        who = [str(rank) for rank, part in enumerate(parts) for _ in range(np.count_nonzero(part.image_ids == twice))]
        raise ValueError(
            f"detections: {counted(int((counts > 1).sum()), 'image')} looked at more than once, the first is "
            f"{twice} (by processes {', '.join(who)}); every image counts once"
        )
    losses: Counter[str] = Counter()
    for part in parts:
        losses.update(part.losses)
    return DetectionResults(image_ids, np.concatenate([part.results for part in parts]), dict(losses))


def result_rows(
    image_ids: Sequence[int], found: Sequence[Detections], category_ids: Sequence[int | None]
) -> np.ndarray:
    """Detections of some images, as post_process gives them, as rows (N, 7); none of a label without an id.

    ``category_ids`` are those of the labels.
    """
    if not found:
        return np.empty((0, COLUMNS))
    # one copy from the device for all images
    boxes, scores, labels = (torch.cat([one[key] for one in found]).double().cpu().numpy() for key in _KEYS)
    ids = np.repeat(_exact(np.asarray(image_ids)), [len(image["labels"]) for image in found])
    categories = np.array([np.nan if known is None else known for known in category_ids])[labels.astype(int)]
    rows = np.column_stack([ids, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, categories])
    return rows[~np.isnan(categories)]


def without_duplicates(rows: np.ndarray, overlap: float) -> np.ndarray:
    """The rows (N, 7) that no surer one of their image and category overlaps by an IoU above ``overlap``."""
    values = torch.from_numpy(rows)
    boxes = torch.cat([values[:, 1:3], values[:, 1:3] + values[:, 3:5]], 1)
    kept = [np.empty(0, dtype=np.int64)]
    for image_id in np.unique(rows[:, 0]):
        (mine,) = np.nonzero(rows[:, 0] == image_id)
        kept.append(mine[batched_nms(boxes[mine], values[mine, 5], values[mine, 6], overlap).numpy()])
    return rows[np.sort(np.concatenate(kept))]


def coco_results(image_id: int, found: Detections, category_ids: Sequence[int | None]) -> list[dict[str, Any]]:
    """One image's detections, as post_process gives them, in COCO's results format; none of a label without an id."""
    return unpack_results(result_rows([image_id], [found], category_ids))


def pack_results(results: Sequence[dict[str, Any]]) -> np.ndarray:
    """Results in COCO's format, ``{"image_id", "category_id", "bbox", "score"}``, as rows (N, 7).

    Raises:
        ValueError: a result lacks one of these, or its box is not four numbers.
    """
    rows = np.empty((len(results), COLUMNS))
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        try:
            x, y, width, height = result["bbox"]
            row[:] = (result["image_id"], x, y, width, height, result["score"], result["category_id"])
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f"results: expected image_id, category_id, bbox [x, y, width, height] and score, "
                f"got {result} in place {number}"
            ) from error
    _exact(rows[:, 0])
    return rows


def read_results(path: Path, annotations: Annotations | None = None) -> np.ndarray:
    """A file in COCO's results format as rows (N, 7).

    Args:
        path: the file.
        annotations: what the results are to be compared with. Results that carry a ``file_name`` are then matched by
            it, whatever their ids; others by ``image_id``. Categories, and names of them, must be the annotations'.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or its images or categories are not those of the annotations.
    """
    if not path.is_file():
        raise FileNotFoundError(f"results file {path} does not exist")
    try:
        results = json.loads(path.read_bytes())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"results file {path} is not JSON: {error}") from error
    if not isinstance(results, list):
        raise ValueError(f"results file {path}: expected a list of detections, got a {type(results).__name__}")
    rows = pack_results(results)
    if annotations is not None and results:
        _match_images(path, results, rows, annotations)
        _match_categories(path, results, rows, annotations)
    return rows


def _match_images(path: Path, results: Sequence[dict[str, Any]], rows: np.ndarray, annotations: Annotations) -> None:
    """Gives rows whose results name their files the annotations' image ids. Raises ValueError."""
    named = sum("file_name" in result for result in results)
    if not named:
        return
    if named < len(results):
        raise ValueError(f"results file {path}: expected a file_name in every detection or in none, got {named}")
    pairs = {(result["image_id"], str(result["file_name"])) for result in results}
    for what, values in zip(("image_id", "file_name"), zip(*pairs, strict=True), strict=True):
        [(value, count)] = Counter(values).most_common(1)
        if count > 1:
            raise ValueError(
                f"results file {path}: expected one file_name for each image_id, got {count} pairs with {what} {value}"
            )
    # the results may name files from the folder of images, the annotations from a folder above it
    known: defaultdict[str, set[int]] = defaultdict(set)
    for image in annotations.images:
        parts = image.name.split("/")
        for start in range(len(parts)):
            known["/".join(parts[start:])].add(image.id)
    known.update({image.name: {image.id} for image in annotations.images})
    for row, result in zip(rows, results, strict=True):
        found = known[str(result["file_name"])]
        if len(found) != 1:
            what = f"lists {len(found)} times" if found else "does not list; predict the images of that split only"
            raise ValueError(f"results file {path}: image {result['file_name']}, which {annotations.path} {what}")
        [row[0]] = found


def _match_categories(
    path: Path, results: Sequence[dict[str, Any]], rows: np.ndarray, annotations: Annotations
) -> None:
    """Gives rows whose results name their classes the annotations' category ids. Raises ValueError for unknown ones.

    Weights that were converted know the names of classes, but not the ids that a data set gives them.
    """
    names = {category.id: category.name for category in annotations.categories}
    ids = {name: category_id for category_id, name in names.items()}
    before = rows[:, 6].copy()
    for row, result in zip(rows, results, strict=True):
        name = result.get("category_name")
        if name is None and row[6] not in names:
            raise ValueError(f"results file {path}: category {row[6]:g} is not one of {annotations.path}")
        if name is not None and str(name) not in ids:
            raise ValueError(f"results file {path}: class '{name}' is not one of {annotations.path}")
        if name is not None and names.get(row[6]) != str(name):
            row[6] = ids[str(name)]
    if (rows[:, 6] != before).any():
        print(f"{path}: category ids differ from those of {annotations.path}; matched by name", file=sys.stderr)


def unpack_results(rows: np.ndarray) -> list[dict[str, Any]]:
    """Rows (N, 7) in COCO's results format."""
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(
            rows[:, 0].astype(np.int64).tolist(),
            rows[:, 6].astype(np.int64).tolist(),
            rows[:, 1:5].tolist(),
            rows[:, 5].tolist(),
            strict=True,
        )
    ]


def _exact(image_ids: np.ndarray) -> np.ndarray:
    if image_ids.size and np.abs(image_ids).max() >= _MOST_ID:
        raise ValueError(f"results: expected image ids below 2**53, got {int(image_ids[np.abs(image_ids).argmax()])}")
    return image_ids
