"""COCO's AP of detections whose images count as often as one likes, and intervals of its changes by resampling images.

A library of metrics would have to match boxes anew for every resample. Here boxes are matched once, by COCO's rule;
an AP under weights of images is then a few sums, for all resamples at once, and equals what the library gives for a
data set that lists each image as many times as its weight says (scores that are equal within an image, which such a
data set would rank otherwise, apart).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

# pycocotools' own: IoU thresholds, recalls, areas in square pixels, and detections an image and class
_IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_AREAS = {"AP": (0.0, 1e10), "AP_S": (0.0, 32.0**2), "AP_M": (32.0**2, 96.0**2), "AP_L": (96.0**2, 1e10)}
_MOST = 100

METRICS = ("AP", "AP50", "AP_S", "AP_M", "AP_L")


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """One class's detections, N in all, best first, and the boxes that they may hit; T IoU thresholds, A areas."""

    image: np.ndarray  # (N,) int64, which of the images
    hit: np.ndarray  # (A, T, N) bool: matched to a box that counts
    counted: np.ndarray  # (A, T, N) bool: a hit or a miss; others lie on what does not count, or are of another size
    positives: np.ndarray  # (A, I): boxes that count, in each image


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detections hit, in every class of the data set."""

    images: int
    classes: tuple[ClassMatches, ...]


def match(truth: dict[str, Any], rows: np.ndarray, image_ids: Sequence[int]) -> Matches:
    """Matches detections to annotated boxes, greedily from the surest on, as pycocotools' ``evaluateImg`` does.

    truth is COCO's content, with areas; rows (N, 7) are those of `results.DetectionResults`; image_ids are the
    images that count.
    """
    ids = np.unique(np.asarray(image_ids, dtype=np.int64))
    rows = rows[np.isin(rows[:, 0], ids)]
    places = {image: place for place, image in enumerate(ids.tolist())}
    boxes: dict[int, dict[int, list[dict[str, Any]]]] = {category["id"]: {} for category in truth["categories"]}
    for annotation in truth["annotations"]:
        if annotation["image_id"] in places:
            of_image = boxes[annotation["category_id"]].setdefault(places[annotation["image_id"]], [])
            of_image.append(annotation)
    classes = [_match_class(rows[rows[:, 6] == category], ids, boxes[category]) for category in sorted(boxes)]
    return Matches(len(ids), tuple(classes))


def _match_class(found: np.ndarray, ids: np.ndarray, boxes: dict[int, list[dict[str, Any]]]) -> ClassMatches:
    """Of one class's detections, and its boxes by image."""
    image = np.searchsorted(ids, found[:, 0])
    order = np.lexsort((-found[:, 5], image))
    found, image = found[order], image[order]
    first = np.searchsorted(image, np.arange(len(ids) + 1))
    kept = np.arange(len(image)) - first[image] < _MOST
    found, image = found[kept], image[kept]
    first = np.searchsorted(image, np.arange(len(ids) + 1))

    low, high = np.array(list(_AREAS.values())).T
    size = found[:, 3] * found[:, 4]
    of_size = (size >= low[:, None]) & (size <= high[:, None])
    counted = np.repeat(of_size[:, None], len(_IOUS), 1)
    hit, positives = np.zeros(counted.shape, dtype=bool), np.zeros((len(low), len(ids)))
    for place, here in boxes.items():
        part = slice(first[place], first[place + 1])
        area = np.array([box["area"] for box in here], dtype=float)
        crowd = np.array([box.get("iscrowd", 0) for box in here], dtype=bool)
        ignored = crowd | (area < low[:, None]) | (area > high[:, None])
        positives[:, place] = (~ignored).sum(1)
        overlap = _overlap(found[part, 1:5], np.array([box["bbox"] for box in here], dtype=float), crowd)
        _match_image(overlap, crowd, ignored, hit[..., part], counted[..., part])
    order = np.argsort(-found[:, 5], kind="stable")
    return ClassMatches(image[order], hit[..., order], counted[..., order], positives)


def _match_image(
    overlap: np.ndarray, crowd: np.ndarray, ignored: np.ndarray, hit: np.ndarray, counted: np.ndarray
) -> None:
    """Fills hit and counted (A, T, N) of one image's detections, best first, from their IoU (N, G) with its boxes."""
    boxes = np.arange(len(crowd))
    free = np.ones((*hit.shape[:2], len(boxes)), dtype=bool)
    for place in np.flatnonzero(overlap.max(1) >= _IOUS[0]):
        reached = free & (overlap[place] >= np.minimum(_IOUS, 1 - 1e-10)[:, None])
        wanted = reached & ~ignored[:, None]
        # one that counts before one that does not
        wanted = np.where(wanted.any(-1, keepdims=True), wanted, reached)
        # of equals the last
        best = boxes[-1] - np.where(wanted, overlap[place], -1.0)[..., ::-1].argmax(-1)  # (A, T)
        matched = wanted.any(-1)
        counts = ~np.take_along_axis(np.broadcast_to(ignored[:, None], free.shape), best[..., None], -1)[..., 0]
        hit[..., place] = matched & counts
        counted[..., place] = np.where(matched, counts, counted[..., place])
        # a crowd region takes any number
        free &= ~((matched & ~crowd[best])[..., None] & (boxes == best[..., None]))


def _overlap(found: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (N, G) of boxes (x, y, width, height); with a crowd region, the share of the found box that lies in it."""
    start = np.maximum(found[:, None, :2], boxes[None, :, :2])
    end = np.minimum(found[:, None, :2] + found[:, None, 2:], boxes[None, :, :2] + boxes[None, :, 2:])
    shared = np.clip(end - start, 0, None).prod(-1)
    area, other = found[:, 2:].prod(-1)[:, None], boxes[:, 2:].prod(-1)[None]
    whole = np.where(crowd, area, area + other - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def weighted_metrics(matches: Matches, weights: np.ndarray) -> dict[str, np.ndarray]:
    """AP, AP50, AP_S, AP_M and AP_L (B,), for B weightings (B, I) of the images; NaN where nothing is annotated."""
    by_class = [_precisions(one, weights) for one in matches.classes]  # each (A, T, B)
    # classes, areas, thresholds, weightings; a class without boxes in a resample has no AP there
    found = np.ma.masked_invalid(np.stack(by_class))
    means = found.mean((0, 2)).filled(np.nan)
    at_half = found[:, 0, 0].mean(0).filled(np.nan)
    return {"AP": means[0], "AP50": at_half, "AP_S": means[1], "AP_M": means[2], "AP_L": means[3]}


def _precisions(one: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over 101 recalls, (A, T, B); NaN where no box counts."""
    areas, thresholds, _ = one.hit.shape
    result = np.full((areas, thresholds, len(weights)), np.nan)
    for area in range(areas):
        positives = one.positives[area] @ weights.T
        some = positives > 0
        for threshold in range(thresholds) if some.any() else ():
            hits = np.flatnonzero(one.hit[area, threshold])
            if not len(hits):
                result[area, threshold, some] = 0.0
                continue
            # recall rises at hits alone: what lies between two of them is one sum over images
            counted = np.flatnonzero(one.counted[area, threshold][: hits[-1] + 1])
            step = np.searchsorted(hits, counted)
            between = csr_matrix(
                (np.ones(len(counted)), (step, one.image[counted])), shape=(len(hits), weights.shape[1])
            )
            total = (between @ weights.T).cumsum(0)  # (hits, B)
            right = weights.T[one.image[hits]].cumsum(0)
            precision = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            recall = np.divide(right, positives, out=np.zeros_like(right), where=some)
            reached = np.searchsorted(_RECALLS, recall, side="right")
            new = np.diff(reached, axis=0, prepend=0)  # how many of the 101 recalls this hit is the first to reach
            average = (precision * new).sum(0) / len(_RECALLS)
            result[area, threshold, some] = average[some]
    return result


@dataclass(frozen=True)
class Change:
    """A metric before and after, and the 95% interval of the difference; None where nothing of that size is there."""

    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None

    @property
    def sure(self) -> bool:
        """Does the interval leave out 0?"""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def resample(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """How often each image counts, (1 + samples, images): once, then as often as it is drawn, with replacement."""
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    return np.concatenate([np.ones((1, images)), drawn])


def changes(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, Change]:
    """The change of every metric with its paired bootstrap interval: both are measured on the same resamples.

    Arguments are of `weighted_metrics` for the data set as it is, then the resamples; the interval lies between the
    2.5th and the 97.5th percentile of theirs.
    """
    return {metric: _change(before[metric], after[metric]) for metric in METRICS}


def _change(then: np.ndarray, now: np.ndarray) -> Change:
    if np.isnan(then[0]):
        return Change(None, None, None, None, None)
    drawn = (now - then)[1:]
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist() if len(drawn) else (None, None)
    return Change(float(then[0]), float(now[0]), float(now[0] - then[0]), low, high)
