"""The least score from which a class's detections are kept: precision and recall at each, the best, and calibration."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .matching import Matches

ENOUGH = 10
"""Objects of a class for a threshold of its own; with fewer, chance decides, and it gets the overall one."""
BINS = 10
LEAST_SCORE = 0.05
"""Of calibration: nearly all of an image's hundred detections are below, and would be most of its error otherwise."""


@dataclass(frozen=True)
class Curve:
    """Precision, recall and F1 of detections of at least each of S scores, falling, with no two equal.

    Precision is the share of those detections that are right, recall the share of the objects that they find, and F1
    their harmonic mean, 2 * right / (detections + objects).
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def at(self, confidence: float) -> tuple[float, float, float]:
        """Precision, recall and F1 of detections of at least a score; without any, 1, 0 and 0."""
        place = int(np.searchsorted(-self.scores, -confidence, side="right")) - 1
        if place < 0:
            return 1.0, 0.0, 0.0
        return float(self.precision[place]), float(self.recall[place]), float(self.f1[place])


class Threshold(NamedTuple):
    """A least score, and what comes of it."""

    confidence: float
    precision: float
    recall: float
    f1: float


class Thresholds(NamedTuple):
    """The best least scores of a data set."""

    overall: Threshold | None
    """For all detections together; None where none is right."""
    classes: list[Threshold | None]
    """By label; None for a class without enough objects, or of which no detection is right."""

    @property
    def by_label(self) -> list[float] | None:
        """What `Predictor.thresholds` takes: the overall where a class has none; None where no detection is right."""
        overall = self.overall
        return None if overall is None else [(overall if one is None else one).confidence for one in self.classes]


def curve(scores: np.ndarray, right: np.ndarray, objects: int) -> Curve:
    """The curve of N detections, with their scores and whether they are right, beside so many objects."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else np.empty(0, dtype=int)
    hits, count = right[order].cumsum()[last].astype(float), last + 1.0
    recall = hits / objects if objects else np.zeros(len(last))
    return Curve(falling[last], hits / count, recall, 2 * hits / (count + objects))


def curves(matches: Matches) -> tuple[Curve, list[Curve]]:
    """The curve of all detections together, and that of every class, by label."""
    of_classes = [
        curve(matches.scores[mine], matches.right[mine], int(objects))
        for mine, objects in zip(
            (matches.labels == label for label in range(matches.classes)), matches.object_counts, strict=True
        )
    ]
    return curve(matches.scores, matches.right, len(matches.object_labels)), of_classes


def best_threshold(of: Curve) -> Threshold | None:
    """That of the highest F1, the highest of equals; None where nothing is right.

    It lies halfway between the lowest score that is kept and the next below, or zero.
    """
    if not of.f1.any():
        return None
    place = int(of.f1.argmax())
    below = of.scores[place + 1] if place + 1 < len(of.scores) else 0.0
    confidence = float((of.scores[place] + below) / 2)
    return Threshold(confidence, float(of.precision[place]), float(of.recall[place]), float(of.f1[place]))


def best_thresholds(matches: Matches) -> Thresholds:
    """The best of every class with ENOUGH objects, and of all detections together."""
    everything, of_classes = curves(matches)
    enough = matches.object_counts >= ENOUGH
    best = [best_threshold(of) if many else None for of, many in zip(of_classes, enough, strict=True)]
    return Thresholds(best_threshold(everything), best)


class Calibration(NamedTuple):
    """Detections by their score, in bins of equal width from 0 to 1: is a share of 0.7 right where scores are 0.7?"""

    counts: np.ndarray
    """(BINS,) int64, detections of at least LEAST_SCORE."""
    score: np.ndarray
    """(BINS,) mean; NaN in an empty bin."""
    precision: np.ndarray
    """(BINS,) share that is right; NaN in an empty bin."""
    error: float | None
    """Expected calibration error: the mean distance of both, over detections; None without any."""


def calibration(matches: Matches) -> Calibration:
    """How far scores can be read as the probability that a detection is right at an IoU of 0.5."""
    sure = matches.scores >= LEAST_SCORE
    scores, right = matches.scores[sure], matches.right[sure].astype(float)
    place = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        score, precision = (np.bincount(place, values, minlength=BINS) / count for values in (scores, right))
    error = float(np.nansum(np.abs(score - precision) * count) / count.sum()) if count.any() else None
    return Calibration(count, score, precision, error)
