"""Detections of a data set matched with its objects at one IoU: who is right at any confidence, and what others did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ...models.layers.boxes import match_boxes
from ..data.annotations import Annotations

MATCHING_IOU = 0.5
LEAST_IOU = 0.1
"""Of a box that is badly placed: below it has nothing to do with the object."""
MOST_DETECTIONS = 100
"""Of a class in an image; the best count, as in COCO's metrics."""

# what may become of an object, and of a detection that is kept; one each
OBJECTS = ("found", "confused", "badly placed", "missed")
DETECTIONS = ("right", "confused", "badly placed", "duplicate", "false")
ERRORS = ("missed", "false", "confused", "badly placed", "duplicate")


@dataclass(frozen=True)
class Matches:
    """N detections of I images, the best of an image first, and the G objects there.

    Crowd regions are no objects, and a detection that is on one of its class, and on no object, is left out.
    """

    annotations: Annotations
    image_ids: np.ndarray
    """(I,) int64, ascending."""
    images: np.ndarray
    """(N,) int64, places among ``image_ids``, ascending."""
    labels: np.ndarray
    """(N,) int64, indices of the categories."""
    scores: np.ndarray
    """(N,) float64."""
    boxes: np.ndarray
    """(N, 4) float64, xyxy in pixels."""
    objects: np.ndarray
    """(N,) int64, the object that a detection is matched with, -1 for none."""
    object_images: np.ndarray
    """(G,) int64, ascending."""
    object_labels: np.ndarray
    """(G,) int64."""
    object_boxes: np.ndarray
    """(G, 4) float64, xyxy in pixels, as the file has them."""

    @property
    def classes(self) -> int:
        return len(self.annotations.categories)

    @property
    def right(self) -> np.ndarray:
        """(N,) bool: is a detection matched with an object of its class?"""
        return self.objects >= 0

    @property
    def object_counts(self) -> np.ndarray:
        """(classes,) int64."""
        return np.bincount(self.object_labels, minlength=self.classes)


class Outcomes(NamedTuple):
    """What became of every object and every kept detection, at one choice of least scores."""

    kept: np.ndarray
    """(K,) int64, places of the kept among the N detections."""
    detections: np.ndarray
    """(K,) int64, indices of DETECTIONS."""
    partners: np.ndarray
    """(K,) int64, the object that is found, confused, badly placed, or found by a better duplicate; -1 for none."""
    objects: np.ndarray
    """(G,) int64, indices of OBJECTS."""


def match_detections(rows: np.ndarray, annotations: Annotations, image_ids: Sequence[int]) -> Matches:
    """Matches detections with objects of their class as COCO's metrics do at an IoU of 0.5, at all confidences at once.

    The best detection of an image chooses first, of the objects left the one that it overlaps most. So whether a
    detection is right depends on no less certain one, and those of at least any score are matched as if alone.

    Args:
        rows: (N, 7), as `results.DetectionResults` has them; of images and categories that are not among these, none
            counts.
        annotations: of the data set.
        image_ids: the images that count.
    """
    ids = np.unique(np.asarray(image_ids, dtype=np.int64))
    label_of = {category.id: label for label, category in enumerate(annotations.categories)}
    labels = np.array([label_of.get(int(category), -1) for category in rows[:, 6]], dtype=np.int64)
    rows, labels = rows[counts := np.isin(rows[:, 0], ids) & (labels >= 0)], labels[counts]
    images = np.searchsorted(ids, rows[:, 0])
    order = np.lexsort((-rows[:, 5], labels, images))
    rank = np.arange(len(order)) - _starts(images[order] * len(label_of) + labels[order])
    order = order[rank < MOST_DETECTIONS]
    order = order[np.lexsort((-rows[order, 5], images[order]))]
    rows, labels, images = rows[order], labels[order], images[order]
    boxes = _corners(rows[:, 1:5])

    truth = annotations.truth
    truth_ids = annotations.images.ids[truth[:, 0].astype(np.int64)]
    truth, truth_ids = truth[mine := np.isin(truth_ids, ids)], truth_ids[mine]
    order = np.argsort(truth_ids, kind="stable")
    truth, places = truth[order], np.searchsorted(ids, truth_ids[order])
    whole = truth[:, 7] == 0
    crowds, crowd_images, objects, object_images = truth[~whole], places[~whole], truth[whole], places[whole]
    object_labels, object_boxes = objects[:, 1].astype(np.int64), _corners(objects[:, 2:6])

    matched = np.full(len(rows), -1)
    for found, there in _by_image(len(ids), images, object_images):
        pairs = _matched(boxes[found], labels[found], object_boxes[there], object_labels[there], MATCHING_IOU)
        matched[found] = np.where(pairs >= 0, pairs + there.start, -1)
    left_out = np.zeros(len(rows), dtype=bool)
    for found, there in _by_image(len(ids), images, crowd_images):
        on = _overlaps(boxes[found], _corners(crowds[there, 2:6]), of_first=True) >= MATCHING_IOU
        left_out[found] = (on & (labels[found, None] == crowds[None, there, 1])).any(1) & (matched[found] < 0)
    kept = ~left_out
    found_columns = (images[kept], labels[kept], rows[kept, 5], boxes[kept], matched[kept])
    return Matches(annotations, ids, *found_columns, object_images, object_labels, object_boxes)


def outcomes(matches: Matches, thresholds: Sequence[float]) -> Outcomes:
    """What became of every object and detection, each one thing, when a class's detections are kept from a score on.

    In this order, the best detection of an image first, each object taken once:

    - right and found: a detection and the object of its class that it overlaps by an IoU of 0.5 or more;
    - confused: of another class than the object left that it overlaps by 0.5 or more;
    - badly placed: overlaps an object of its class that is left by 0.1 or more;
    - duplicate: overlaps an object of its class, which a better one has taken, by 0.5 or more;
    - false: what detections are left; missed: what objects are left.

    Args:
        matches: of match_detections.
        thresholds: the least score of each class, by label.
    """
    kept = np.flatnonzero(matches.scores >= np.asarray(thresholds, dtype=float)[matches.labels])
    images, labels, boxes = matches.images[kept], matches.labels[kept], matches.boxes[kept]
    partners = matches.objects[kept].copy()
    fates = np.where(partners >= 0, DETECTIONS.index("right"), DETECTIONS.index("false"))
    objects = np.full(len(matches.object_labels), OBJECTS.index("missed"))
    objects[partners[partners >= 0]] = OBJECTS.index("found")
    for found, there in _by_image(len(matches.image_ids), images, matches.object_images):
        for fate, by_class, least in (("confused", False, MATCHING_IOU), ("badly placed", True, LEAST_IOU)):
            rest = np.flatnonzero(partners[found] < 0) + found.start
            free = np.flatnonzero(objects[there] == OBJECTS.index("missed")) + there.start
            found_labels, free_labels = labels[rest] * by_class, matches.object_labels[free] * by_class
            pairs = _matched(boxes[rest], found_labels, matches.object_boxes[free], free_labels, least)
            rest, taken = rest[pairs >= 0], free[pairs[pairs >= 0]]
            partners[rest], fates[rest], objects[taken] = taken, DETECTIONS.index(fate), OBJECTS.index(fate)
        rest = np.flatnonzero(partners[found] < 0) + found.start
        overlap = _overlaps(boxes[rest], matches.object_boxes[there])
        overlap[labels[rest, None] != matches.object_labels[None, there]] = 0
        twice = overlap.max(1, initial=0) >= MATCHING_IOU
        fates[rest[twice]] = DETECTIONS.index("duplicate")
        partners[rest[twice]] = overlap[twice].argmax(1) + there.start
    return Outcomes(kept, fates, partners, objects)


def confusion_matrix(matches: Matches, found: Outcomes) -> np.ndarray:
    """(classes + 1, classes + 1) int64: objects by their class, in rows, and as what they were detected, in columns.

    The last row is background: detections that are right on no object and confused with none, which are the false,
    the badly placed and the duplicates. The last column are the objects that no detection of any class is on, missed
    and badly placed. So rows add up to the objects of a class, and columns to its detections.
    """
    background = matches.classes
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    on = np.isin(found.detections, [DETECTIONS.index("right"), DETECTIONS.index("confused")])
    truth = np.append(matches.object_labels, background)[np.where(on, found.partners, -1)]
    np.add.at(matrix, (truth, matches.labels[found.kept]), 1)
    alone = np.isin(found.objects, [OBJECTS.index("missed"), OBJECTS.index("badly placed")])
    matrix[:-1, background] = np.bincount(matches.object_labels[alone], minlength=background)
    return matrix


def error_table(matches: Matches, found: Outcomes) -> dict[str, np.ndarray]:
    """Counts (classes,) of objects found and of every kind of ERRORS, confused and badly placed by the object."""
    labels = matches.labels[found.kept]

    def objects(fate: str) -> np.ndarray:
        return np.bincount(matches.object_labels[found.objects == OBJECTS.index(fate)], minlength=matches.classes)

    def detections(fate: str) -> np.ndarray:
        return np.bincount(labels[found.detections == DETECTIONS.index(fate)], minlength=matches.classes)

    return {fate: objects(fate) if fate in OBJECTS else detections(fate) for fate in ("found", *ERRORS)}


def errors_of_images(matches: Matches, found: Outcomes) -> dict[str, np.ndarray]:
    """Counts (I,) of objects ``found`` in each image and of every kind of ERRORS there."""
    count, images = len(matches.image_ids), matches.images[found.kept]
    per_image: dict[str, np.ndarray] = {}
    for fate in ("found", *ERRORS):
        here = (
            matches.object_images[found.objects == OBJECTS.index(fate)]
            if fate in OBJECTS
            else images[found.detections == DETECTIONS.index(fate)]
        )
        per_image[fate] = np.bincount(here, minlength=count)
    return per_image


def worst_images(matches: Matches, found: Outcomes, count: int) -> list[dict[str, Any]]:
    """The images with most errors, at most ``count``: ``errors``, ``found`` and each of ERRORS, numbers; and ``why``.

    An error is an object missed, or a detection false or duplicate, or a pair of both that is confused or badly
    placed, which counts once. Of as many, the image with fewer objects found comes first, and then the lower id.
    Images without an error are left out.
    """
    per_image = errors_of_images(matches, found)
    total = sum((per_image[kind] for kind in ERRORS), np.zeros(len(matches.image_ids), dtype=np.int64))
    order = np.lexsort((matches.image_ids, per_image["found"], -total))
    names = {image.id: image.name for image in matches.annotations.images}
    return [
        {
            "image_id": int(matches.image_ids[place]),
            "file_name": names[int(matches.image_ids[place])],
            "errors": int(total[place]),
            **{kind: int(values[place]) for kind, values in per_image.items()},
            "why": _why(matches, found, place),
        }
        for place in order[:count].tolist()
        if total[place]
    ]


def _why(matches: Matches, found: Outcomes, place: int) -> list[str]:
    """The errors in an image, a phrase for those of one kind and class."""
    names = [category.name for category in matches.annotations.categories]
    missed = (matches.object_images == place) & (found.objects == OBJECTS.index("missed"))
    phrases = [
        f"{count} {names[label]} missed"
        for label, count in enumerate(np.bincount(matches.object_labels[missed], minlength=len(names)).tolist())
        if count
    ]
    groups: dict[tuple[str, str], list[float]] = {}
    for row in np.flatnonzero(matches.images[found.kept] == place).tolist():
        kind, partner, one = DETECTIONS[found.detections[row]], int(found.partners[row]), int(found.kept[row])
        name, measure = names[matches.labels[one]], float(matches.scores[one])
        if kind == "confused":
            name = f"{names[matches.object_labels[partner]]} detected as {name}"
        if kind == "badly placed":
            measure = float(_overlaps(matches.boxes[[one]], matches.object_boxes[[partner]])[0, 0])
        groups.setdefault((kind, name), []).append(measure)
    told = {
        "false": "{count} false {name} (score {range})",
        "confused": "{count} {name} (score {range})",
        "badly placed": "{count} {name} badly placed (IoU {range})",
        "duplicate": "{count} {name} detected again (score {range})",
    }
    for kind, words in told.items():
        for (of, name), values in sorted(groups.items()):
            if of == kind:
                low, high = f"{min(values):.2f}", f"{max(values):.2f}"
                between = low if low == high else f"{low} to {high}"
                phrases.append(words.format(count=len(values), name=name, range=between))
    return phrases


def _matched(
    found_boxes: np.ndarray, found_labels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, least: float
) -> np.ndarray:
    """The index of each detection's object, -1 for none."""
    found, there = (
        (torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((found_boxes, found_labels), (boxes, labels))
    )
    pairs = match_boxes(*found, *there, least)
    return np.array([-1 if pair is None else pair for pair in pairs], dtype=np.int64)


def _by_image(count: int, *images: np.ndarray) -> list[tuple[slice, ...]]:
    """Of ascending places of images, the slices of each image that is in all of them."""
    ends = [np.searchsorted(each, np.arange(count + 1)).tolist() for each in images]
    every = (tuple(slice(end[place], end[place + 1]) for end in ends) for place in range(count))
    return [slices for slices in every if all(one.stop > one.start for one in slices)]


def _starts(groups: np.ndarray) -> np.ndarray:
    """Of sorted values, for each the place of the first that is equal."""
    return np.searchsorted(groups, groups)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _overlaps(first: np.ndarray, second: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """IoU (A, B) of xyxy boxes; or how much of each of the first lies in each of the second."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = (high - low).clip(min=0).prod(2)
    areas, others = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second))
    whole = np.broadcast_to(areas[:, None], both.shape) if of_first else areas[:, None] + others[None] - both
    return np.divide(both, whole, out=np.zeros_like(both), where=whole > 0)
