"""COCO's AP of detections whose images count as often as one likes, and intervals of its changes by resampling images.

pycocotools matches boxes once. An AP under weights of images is then a few sums, for all resamples at once, and equals
what pycocotools gives for a data set that lists each image as many times as its weight says (scores that are equal
within an image, which such a data set would rank otherwise, apart).
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.sparse import csr_matrix

METRICS = ("AP", "AP50", "AP_S", "AP_M", "AP_L")
Change = dict[str, float | None]
"""A metric ``before`` and ``after``, the ``change``, and the ``low`` and ``high`` end of its 95% interval; None where
nothing of that size is annotated."""
Interval = dict[str, float | None]
"""A metric's ``value``, and the ``low`` and ``high`` end of its 95% interval; None where nothing is annotated."""
SAMPLES = 1000


def weighted_metrics(
    truth: dict[str, Any], rows: np.ndarray, image_ids: Sequence[int], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """AP, AP50, AP_S, AP_M and AP_L (B,), for B weightings of the images; NaN where nothing is annotated.

    Arguments are those of `weighted_precisions`.
    """
    return mean_metrics(weighted_precisions(truth, rows, image_ids, weights))


def mean_metrics(precisions: np.ndarray) -> dict[str, np.ndarray]:
    """AP, AP50, AP_S, AP_M and AP_L (B,) of what `weighted_precisions` returned."""
    means = np.ma.masked_invalid(precisions).mean((0, 2)).filled(np.nan)
    at_half = np.ma.masked_invalid(precisions[:, 0, 0]).mean(0).filled(np.nan)
    return {"AP": means[0], "AP50": at_half, "AP_S": means[1], "AP_M": means[2], "AP_L": means[3]}


def weighted_precisions(
    truth: dict[str, Any], rows: np.ndarray, image_ids: Sequence[int], weights: np.ndarray
) -> np.ndarray:
    """Precision averaged over 101 recalls, (K classes, 4 areas, T thresholds, B), for B weightings of the images.

    Classes are in the order of their ids, areas all, small, medium and large. NaN where nothing is annotated; a class
    without boxes in a resample has no AP there.

    Args:
        truth: COCO's content, with ids and areas, as `Annotations.ground_truth` makes it.
        rows: (N, 7), as `results.DetectionResults` has them.
        image_ids: (I,), the images that count.
        weights: (B, I), images in the order of their ids.
    """
    known = COCO()
    known.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress
        known.createIndex()
        evaluator = COCOeval(known, known.loadRes(rows) if len(rows) else COCO(), "bbox")
        evaluator.params.imgIds, evaluator.params.maxDets = image_ids, [100]
        evaluator.evaluate()
    sizes = len(evaluator.params.areaRng)
    matches = np.array(evaluator.evalImgs, dtype=object).reshape(-1, sizes, weights.shape[1])
    return np.array([[_precisions(one, evaluator.params, weights) for one in of_class] for of_class in matches])


def _precisions(matches: np.ndarray, params: Any, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over 101 recalls, (T thresholds, B), of one class and size; NaN where no box counts.

    matches (I,) are what pycocotools' ``evaluateImg`` gives for each image, None where nothing is there.
    """
    images = [number for number, match in enumerate(matches) if match is not None]
    counts = [np.count_nonzero(~np.asarray(matches[number]["gtIgnore"], dtype=bool)) for number in images]
    positives = weights[:, images] @ np.array(counts, dtype=float)
    some = positives > 0
    result = np.repeat(np.where(some, 0.0, np.nan)[None], len(params.iouThrs), 0)
    if not some.any():
        return result
    scores, matched, ignored = (
        np.concatenate([np.asarray(matches[number][name]) for number in images], -1)
        for name in ("dtScores", "dtMatches", "dtIgnore")
    )
    order = np.argsort(-scores, kind="stable")
    image = np.repeat(images, [len(matches[number]["dtScores"]) for number in images])[order]
    ignored = ignored[:, order].astype(bool)  # on what does not count, or of another size
    hit = (matched[:, order] > 0) & ~ignored
    for threshold in np.flatnonzero(hit.any(1)):
        hits = np.flatnonzero(hit[threshold])
        # recall rises at hits alone: what lies between two of them is one sum over images
        counted = np.flatnonzero(~ignored[threshold, : hits[-1] + 1])
        step = np.searchsorted(hits, counted)
        between = csr_matrix((np.ones(len(counted)), (step, image[counted])), shape=(len(hits), weights.shape[1]))
        total = (between @ weights.T).cumsum(0)  # (hits, B)
        right = weights.T[image[hits]].cumsum(0)
        precision = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        recall = np.divide(right, positives, out=np.zeros_like(right), where=some)
        reached = np.searchsorted(params.recThrs, recall, side="right")
        new = np.diff(reached, axis=0, prepend=0)  # how many of the 101 recalls this hit is the first to reach
        result[threshold, some] = ((precision * new).sum(0) / len(params.recThrs))[some]
    return result


def resample(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """How often each image counts, (1 + samples, images): once, then as often as it is drawn, with replacement."""
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    return np.concatenate([np.ones((1, images)), drawn])


def interval(values: np.ndarray) -> Interval:
    """Of a metric (B,) of the data set as it is, then of its resamples: percentiles 2.5 and 97.5 of those."""
    if np.isnan(values[0]):
        return {"value": None, "low": None, "high": None}
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist() if len(drawn) else (None, None)
    return {"value": float(values[0]), "low": low, "high": high}


def changes(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, Change]:
    """The change of every metric with its paired bootstrap interval: both are measured on the same resamples.

    Arguments are of `weighted_metrics` for the data set as it is, then the resamples; the interval lies between the
    2.5th and the 97.5th percentile of theirs.
    """
    return {metric: change(before[metric], after[metric]) for metric in METRICS}


def change(before: np.ndarray, after: np.ndarray) -> Change:
    """The change of one metric (B,), as `changes` has it."""
    found = interval(after - before)
    known = found["value"] is not None
    parts = {"before": float(before[0]) if known else None, "after": float(after[0]) if known else None}
    return {**parts, "change": found["value"], "low": found["low"], "high": found["high"]}
