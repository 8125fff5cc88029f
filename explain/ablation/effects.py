"""What a change of the model did to its detections: which were lost, gained, of another class, moved, less sure."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor

from ...models.layers.boxes import match_boxes
from ..options import Pairing

SAME_OBJECT = 0.5
"""Least IoU of two boxes that stand for one object."""


class QueryPredictions(NamedTuple):
    """What some queries see, N in all; a query whose best class is probable enough is a detection."""

    image: np.ndarray
    """(N,) int64, which image of the data."""
    query: np.ndarray
    """(N,) int64."""
    scores: np.ndarray
    """(N, classes), probabilities."""
    boxes: np.ndarray
    """(N, 4), xyxy in pixels of the file."""

    @property
    def labels(self) -> np.ndarray:
        return self.scores.argmax(1)

    def confident(self, confidence: float) -> "QueryPredictions":
        """The detections."""
        return self.choose(self.scores.max(1, initial=0.0) >= confidence)

    def choose(self, rows: np.ndarray) -> "QueryPredictions":
        return QueryPredictions(*(column[rows] for column in self))


class Effects(NamedTuple):
    """Counts of detections, and means over those that are there before and after; None where there are none."""

    before: int
    after: int
    lost: int
    gained: int
    changed: int
    """There before and after, of another class."""
    overlap: float | None
    """Mean IoU of a box after with itself before."""
    iou_change: float | None
    """Mean change of the IoU with the annotated box, of detections that lay on one of their class before."""
    score_change: float | None
    """Mean change of the probability of the class that it had before."""
    logit_change: float | None
    """The same of its logit, log(p / (1 - p))."""


def effects(
    before: QueryPredictions,
    after: QueryPredictions,
    truth: QueryPredictions | None = None,
    *,
    confidence: float = 0.5,
    pairing: Pairing = "iou",
) -> Effects:
    """Compares a model's detections before and after.

    Args:
        before, after: with ``query`` pairing, `after` has the queries of the detections before, sure or not.
        truth: the annotated boxes; scores are 1 for their class.
        confidence: least probability of a detection.
        pairing: which detection after is which before. ``iou``: as `pair_detections` has them, image by image; so an
            object that another query takes over is not lost. ``query``: the same query, whatever its box; not for
            queries that are chosen anew.
    """
    then, now = before.confident(confidence), after.confident(confidence)
    pairs = np.array([*(_same_object if pairing == "iou" else _same_query)(then, now)], dtype=np.int64).reshape(-1, 2)
    one, two = then.choose(pairs[:, 0]), now.choose(pairs[:, 1])
    score, later = (np.take_along_axis(found.scores, one.labels[:, None], 1).astype(float) for found in (one, two))
    # float32 rounds what is nearly sure to 0 or 1
    logits = [logit(np.clip(each, 1e-7, 1 - 1e-7)) for each in (score, later)]
    return Effects(
        before=len(then.image),
        after=len(now.image),
        lost=len(then.image) - len(pairs),
        gained=len(now.image) - len(pairs),
        changed=int((one.labels != two.labels).sum()),
        overlap=_mean(iou(one.boxes, two.boxes)),
        iou_change=None if truth is None else _iou_change(one, two, truth),
        score_change=_mean(later - score),
        logit_change=_mean(logits[1] - logits[0]),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def iou(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Of boxes (..., 4) xyxy, pair by pair, broadcast; 0 for two without area."""
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    shared = np.clip(sides, 0, None).prod(-1)
    whole = (one[..., 2:] - one[..., :2]).prod(-1) + (two[..., 2:] - two[..., :2]).prod(-1) - shared
    return np.divide(shared, whole, out=np.zeros_like(shared, dtype=np.float64), where=whole > 0)


def pair_detections(boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor) -> list[int | None]:
    """For each detection of an image, the one of the others that is of the same object; None where there is none.

    Boxes overlap by an IoU of SAME_OBJECT or more. Detections choose the best first, all among those of their class
    before any among the rest, and none is taken twice.

    Args:
        boxes, labels: (M, 4) xyxy and (M,), the best detection first.
        others, other_labels: (N, 4) xyxy and (N,).
    """
    found = match_boxes(boxes, labels, others, other_labels, SAME_OBJECT)
    rows = [row for row, match in enumerate(found) if match is None]
    free = [place for place in range(len(others)) if place not in found]
    any_class = torch.zeros(len(boxes) + len(others))
    rest = match_boxes(boxes[rows], any_class[: len(rows)], others[free], any_class[: len(free)], SAME_OBJECT)
    for row, match in zip(rows, rest, strict=True):
        found[row] = None if match is None else free[match]
    return found


def _same_object(then: QueryPredictions, now: QueryPredictions) -> Iterator[tuple[int, int]]:
    """Rows of detections of one object, paired."""
    for image in np.intersect1d(then.image, now.image):
        rows, columns = np.flatnonzero(then.image == image), np.flatnonzero(now.image == image)
        rows = rows[np.argsort(-then.scores[rows].max(1), kind="stable")]
        of_image = (then.boxes[rows], then.labels[rows], now.boxes[columns], now.labels[columns])
        for row, match in zip(rows, pair_detections(*map(torch.from_numpy, of_image)), strict=True):
            if match is not None:
                yield int(row), int(columns[match])


def _same_query(then: QueryPredictions, now: QueryPredictions) -> Iterator[tuple[int, int]]:
    """Rows of one query of one image, paired."""
    places = {key: place for place, key in enumerate(zip(now.image, now.query, strict=True))}
    keys = zip(then.image, then.query, strict=True)
    return ((row, places[key]) for row, key in enumerate(keys) if key in places)


def _iou_change(one: QueryPredictions, two: QueryPredictions, truth: QueryPredictions) -> float | None:
    found = []
    for place, (image, label) in enumerate(zip(one.image, one.labels, strict=True)):
        boxes = truth.boxes[(truth.image == image) & (truth.labels == label)]
        overlap = iou(one.boxes[place], boxes)
        if len(boxes) and overlap.max() >= SAME_OBJECT:
            found.append(iou(two.boxes[place], boxes[overlap.argmax()]) - overlap.max())
    return _mean(np.array(found))
