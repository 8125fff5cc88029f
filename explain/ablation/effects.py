"""What a change of the model did to its detections: which were lost, gained, of another class, moved, less sure."""

from dataclasses import dataclass

import numpy as np

from ..options import Pairing

SAME_OBJECT = 0.5
"""Least IoU of two boxes that stand for one object."""


@dataclass(frozen=True, eq=False)
class QueryPredictions:
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
        return QueryPredictions(self.image[rows], self.query[rows], self.scores[rows], self.boxes[rows])


@dataclass(frozen=True)
class Effects:
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
        pairing: which detection after is which before. ``iou``: pairs of one image whose boxes overlap by
            SAME_OBJECT or more, each once, those of one class first and then by IoU; so an object that another query
            takes over is not lost. ``query``: the same query, whatever its box; not for queries that are chosen anew.
    """
    then, now = before.confident(confidence), after.confident(confidence)
    pairs = _pair(then, now) if pairing == "iou" else _same_query(then, now)
    one, two = then.choose(pairs[:, 0]), now.choose(pairs[:, 1])
    overlap = iou(one.boxes, two.boxes)
    place = np.arange(len(one.labels))
    score, later = one.scores[place, one.labels], two.scores[place, one.labels]
    return Effects(
        before=len(then.image),
        after=len(now.image),
        lost=len(then.image) - len(pairs),
        gained=len(now.image) - len(pairs),
        changed=int((one.labels != two.labels).sum()),
        overlap=_mean(overlap),
        iou_change=None if truth is None else _iou_change(one, two, truth),
        score_change=_mean(later - score),
        logit_change=_mean(logit(later) - logit(score)),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def logit(probability: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), finite for what float32 rounds to 0 or 1."""
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def iou(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Of boxes (..., 4) xyxy, pair by pair, broadcast."""
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    shared = np.clip(sides, 0, None).prod(-1)
    areas = (one[..., 2:] - one[..., :2]).prod(-1) + (two[..., 2:] - two[..., :2]).prod(-1)
    whole = areas - shared
    return np.divide(shared, whole, out=np.zeros_like(shared, dtype=np.float64), where=whole > 0)


def _pair(then: QueryPredictions, now: QueryPredictions) -> np.ndarray:
    """Rows (n, 2) of detections of one object."""
    pairs = []
    for image in np.intersect1d(then.image, now.image):
        rows, columns = np.flatnonzero(then.image == image), np.flatnonzero(now.image == image)
        overlap = iou(then.boxes[rows, None], now.boxes[None, columns])
        # an IoU is at most 1: those of one class come before all others
        rank = overlap + 2 * (then.labels[rows, None] == now.labels[None, columns])
        for flat in np.argsort(-rank, axis=None, kind="stable"):
            row, column = divmod(int(flat), len(columns))
            if overlap[row, column] >= SAME_OBJECT:
                pairs.append((rows[row], columns[column]))
                overlap[row], overlap[:, column] = 0, 0
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _same_query(then: QueryPredictions, now: QueryPredictions) -> np.ndarray:
    """Rows (n, 2) of one query of one image."""
    places = {key: place for place, key in enumerate(zip(now.image.tolist(), now.query.tolist(), strict=True))}
    keys = zip(then.image.tolist(), then.query.tolist(), strict=True)
    pairs = [(row, places[key]) for row, key in enumerate(keys) if key in places]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _iou_change(one: QueryPredictions, two: QueryPredictions, truth: QueryPredictions) -> float | None:
    found = []
    for place, (image, label) in enumerate(zip(one.image, one.labels, strict=True)):
        boxes = truth.boxes[(truth.image == image) & (truth.labels == label)]
        overlap = iou(one.boxes[place], boxes)
        if len(boxes) and overlap.max() >= SAME_OBJECT:
            found.append(iou(two.boxes[place], boxes[overlap.argmax()]) - overlap.max())
    return _mean(np.array(found))
