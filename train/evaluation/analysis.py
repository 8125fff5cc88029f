"""All that can be said of detections on a data set, beside COCO's metrics: where thresholds lie, what errors there are.

Everything but the APs is of an IoU of 0.5; `matching`, `thresholds` and `resampling` define the rest.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.annotations import Annotations
from .coco_metrics import Evaluation
from .matching import (
    DETECTIONS,
    ERRORS,
    MATCHING_IOU,
    Matches,
    Outcomes,
    confusion_matrix,
    error_table,
    match_detections,
    outcomes,
    worst_images,
)
from .resampling import SAMPLES, Interval, interval, mean_metrics, resample, weighted_precisions
from .thresholds import Calibration, Curve, Thresholds, best_thresholds, calibration, curves

WITHOUT_THRESHOLD = 0.5
"""The least score that errors are counted at where no detection is right, so that none is best."""

# where curves are told in JSON
_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Intervals:
    """95% bootstrap intervals, over images drawn with replacement."""

    samples: int
    metrics: dict[str, Interval]
    """AP, AP50, AP_S, AP_M, AP_L."""
    classes: list[dict[str, Interval]]
    """AP and AP50, by label."""


@dataclass(frozen=True)
class Analysis:
    """Of a model's detections in some images."""

    evaluation: Evaluation
    matches: Matches
    overall: Curve
    curves: list[Curve]
    """By label."""
    thresholds: Thresholds
    outcomes: Outcomes
    """At the thresholds."""
    calibration: Calibration
    worst: list[dict[str, Any]]
    """Of `matching.worst_images`."""
    intervals: Intervals | None = None

    @property
    def names(self) -> list[str]:
        """Of the classes, by label."""
        return [category.name for category in self.matches.annotations.categories]

    @property
    def confusion(self) -> np.ndarray:
        """Of `matching.confusion_matrix`, at the thresholds."""
        return confusion_matrix(self.matches, self.outcomes)

    @property
    def errors(self) -> dict[str, np.ndarray]:
        """Of `matching.error_table`, at the thresholds."""
        return error_table(self.matches, self.outcomes)


def analyse(
    evaluation: Evaluation,
    rows: np.ndarray,
    annotations: Annotations,
    image_ids: Sequence[int],
    *,
    intervals: bool = False,
    worst: int = 20,
) -> Analysis:
    """Analyses detections that were evaluated.

    Args:
        evaluation: of evaluate_boxes, of the same detections and images.
        rows: (N, 7), as `results.DetectionResults` has them.
        annotations: of the data set.
        image_ids: the images that count.
        intervals: also resample the images, which takes some seconds.
        worst: how many images of most errors to name, at most.
    """
    matches = match_detections(rows, annotations, image_ids)
    overall, of_classes = curves(matches)
    best = best_thresholds(matches)
    found = outcomes(matches, best.by_label or [WITHOUT_THRESHOLD] * matches.classes)
    return Analysis(
        evaluation,
        matches,
        overall,
        of_classes,
        best,
        found,
        calibration(matches),
        worst_images(matches, found, worst),
        bootstrap(rows, annotations, image_ids) if intervals else None,
    )


def bootstrap(
    rows: np.ndarray, annotations: Annotations, image_ids: Sequence[int], samples: int = SAMPLES, seed: int = 0
) -> Intervals:
    """Intervals of AP, and of every class's: percentiles 2.5 and 97.5 over so many data sets of as many images."""
    precisions = resampled_precisions(rows, annotations, image_ids, samples, seed)
    classes = [
        {name: interval(values) for name, values in mean_metrics(one[None]).items() if name in ("AP", "AP50")}
        for one in precisions
    ]
    return Intervals(samples, {name: interval(values) for name, values in mean_metrics(precisions).items()}, classes)


def resampled_precisions(
    rows: np.ndarray, annotations: Annotations, image_ids: Sequence[int], samples: int = SAMPLES, seed: int = 0
) -> np.ndarray:
    """Of `resampling.weighted_precisions`: the images as they are, then drawn, the same for any detections."""
    ids = np.unique(np.asarray(image_ids, dtype=np.int64))
    rows = rows[np.isin(rows[:, 0], ids)]
    return weighted_precisions(annotations.ground_truth(), rows, ids.tolist(), resample(len(ids), samples, seed))


def plain(analysis: Analysis) -> dict[str, Any]:
    """All of it but single detections, for JSON; None for what does not apply."""
    best, matches, names = analysis.thresholds, analysis.matches, analysis.names
    errors, intervals = analysis.errors, analysis.intervals
    classes = [
        {
            **dataclasses.asdict(kind),
            "threshold": None if own is None else own._asdict(),
            "errors": {fate: int(counts[label]) for fate, counts in errors.items()},
            **({} if intervals is None else {"intervals": intervals.classes[label]}),
        }
        for label, (kind, own) in enumerate(zip(analysis.evaluation.classes, best.classes, strict=True))
    ]
    reliability = analysis.calibration
    whole: dict[str, Any] = {
        "metrics": analysis.evaluation.metrics,
        "classes": classes,
        "matching_iou": MATCHING_IOU,
        "thresholds": {
            "overall": None if best.overall is None else best.overall._asdict(),
            "by_class": None if best.by_label is None else dict(zip(names, best.by_label, strict=True)),
        },
        "errors": {fate: int(counts.sum()) for fate, counts in errors.items()},
        "confusion_matrix": {"classes": [*names, "background"], "counts": analysis.confusion.tolist()},
        "curves": {
            "confidence": _GRID.round(2).tolist(),
            "overall": _sampled(analysis.overall),
            "classes": {name: _sampled(of) for name, of in zip(names, analysis.curves, strict=True)},
        },
        "calibration": {
            "error": reliability.error,
            "bins": [
                {"count": int(count), "score": _known(score), "precision": _known(precision)}
                for count, score, precision in zip(*reliability[:3], strict=True)
            ],
        },
        "worst_images": analysis.worst,
        "detections": {name: int((analysis.outcomes.detections == n).sum()) for n, name in enumerate(DETECTIONS)},
        "objects": len(matches.object_labels),
    }
    if intervals is not None:
        whole["intervals"] = {"samples": intervals.samples, **intervals.metrics}
    return whole


def _sampled(of: Curve) -> dict[str, list[float]]:
    values = np.array([of.at(confidence) for confidence in _GRID]).round(4)
    return dict(zip(("precision", "recall", "f1"), values.T.tolist(), strict=True))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def sentences(analysis: Analysis) -> list[str]:
    """The best thresholds, what errors there are at them, and intervals where they were made."""
    best, lines = analysis.thresholds, []
    if analysis.intervals is not None:
        shown = {name: one for name, one in analysis.intervals.metrics.items() if one["value"] is not None}
        lines += [f"95% intervals over images: {', '.join(f'{name} {ranged(one)}' for name, one in shown.items())}"]
    if best.overall is None:
        return [*lines, f"no detection is right at an IoU of {MATCHING_IOU}, so no threshold is best"]
    one, errors = best.overall, analysis.errors
    lines.append(
        f"best threshold for all classes: {one.confidence:.2f}, with precision {one.precision:.3f}, recall "
        f"{one.recall:.3f} and F1 {one.f1:.3f} at an IoU of {MATCHING_IOU}"
    )
    told = ", ".join(f"{int(errors[kind].sum())} {kind}" for kind in ERRORS)
    found, objects = int(errors["found"].sum()), len(analysis.matches.object_labels)
    lines.append(f"at every class's own: {found} of {objects} objects found; {told}")
    return lines


def ranged(one: Interval, digits: int = 3) -> str:
    """A value with its interval, such as ``0.512 (0.470 to 0.551)``; a dash where there is none."""
    value, low, high = one["value"], one["low"], one["high"]
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def threshold_table(analysis: Analysis) -> str:
    """A line for each class: its threshold, marked where it is that of all classes, and what comes of it."""
    best, errors, names = analysis.thresholds, analysis.errors, analysis.names
    width = max(len("class"), *map(len, names))
    columns = ["threshold", "precision", "recall", "   F1", "found", *ERRORS]
    lines = ["  ".join([f"{'class':<{width}}", *columns])]
    kept = best.by_label or [WITHOUT_THRESHOLD] * len(names)
    for label, (name, of, confidence) in enumerate(zip(names, analysis.curves, kept, strict=True)):
        shared = "*" if best.classes[label] is None else " "
        values = [f"{confidence:.2f}{shared}", *(f"{value:.3f}" for value in of.at(confidence))]
        values += [str(errors[fate][label]) for fate in ("found", *ERRORS)]
        cells = (f"{value:>{len(column)}}" for value, column in zip(values, columns, strict=True))
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    if None in best.classes:
        lines.append("* of all classes, as there are too few objects for one of its own")
    return "\n".join(lines)
