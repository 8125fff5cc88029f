"""Precision and recall over confidence, the best thresholds and calibration: by hand, and against plain counting."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from msdeform.train.evaluation.matching import Matches, match_detections, outcomes
from msdeform.train.evaluation.thresholds import (
    BINS,
    ENOUGH,
    LEAST_SCORE,
    best_threshold,
    best_thresholds,
    calibration,
    curve,
    curves,
)
from tests.train.evaluation.made import annotations_of, noisy_data


@pytest.fixture
def matches(tmp_path: Any) -> Matches:
    content, rows = noisy_data(seed=5)
    return match_detections(rows, annotations_of(content, tmp_path), [image["id"] for image in content["images"]])


def test_a_curve_by_hand() -> None:
    scores, right = np.array([0.5, 0.9, 0.7, 0.5, 0.1]), np.array([True, True, False, True, False])
    found = curve(scores, right, objects=4)
    assert found.scores.tolist() == [0.9, 0.7, 0.5, 0.1]  # equal scores are kept or left together
    assert found.precision.tolist() == pytest.approx([1, 1 / 2, 3 / 4, 3 / 5])
    assert found.recall.tolist() == pytest.approx([1 / 4, 1 / 4, 3 / 4, 3 / 4])
    assert found.f1.tolist() == pytest.approx([2 / 5, 2 / 6, 6 / 8, 6 / 9])
    assert found.at(0.95) == (1.0, 0.0, 0.0)
    assert found.at(0.9) == pytest.approx((1, 1 / 4, 2 / 5))
    assert found.at(0.6) == pytest.approx((1 / 2, 1 / 4, 2 / 6))
    assert found.at(0.0) == pytest.approx((3 / 5, 3 / 4, 6 / 9))
    # halfway between 0.5, the lowest that is kept, and 0.1
    assert best_threshold(found) == pytest.approx((0.3, 3 / 4, 3 / 4, 6 / 8))
    assert best_threshold(curve(scores, np.zeros(5, dtype=bool), objects=4)) is None
    assert best_threshold(curve(np.empty(0), np.empty(0, dtype=bool), objects=4)) is None
    # nothing is below the last: halfway to zero; and of equal F1 the highest
    assert best_threshold(curve(np.array([0.8]), np.array([True]), 1)) == pytest.approx((0.4, 1, 1, 1))
    even = curve(np.array([0.9, 0.6, 0.5]), np.array([True, False, True]), objects=3)
    assert even.f1.tolist() == pytest.approx([2 / 4, 2 / 5, 4 / 6])
    none = curve(np.array([0.9]), np.array([True]), objects=0)
    assert none.recall.tolist() == [0]


def test_no_threshold_is_better_than_the_best(matches: Matches) -> None:
    best = best_thresholds(matches)
    assert best.overall is not None
    everything, of_classes = curves(matches)
    for label, (one, of) in enumerate([(best.overall, everything), *zip(best.classes, of_classes, strict=True)], -1):
        mine = np.ones(len(matches.labels), dtype=bool) if label < 0 else matches.labels == label
        objects = len(matches.object_labels) if label < 0 else matches.object_counts[label]

        def counted(confidence: float, mine: np.ndarray = mine, objects: int = objects) -> tuple[float, ...]:
            kept = mine & (matches.scores >= confidence)
            hits = int((kept & matches.right).sum())
            precision, recall = hits / max(kept.sum(), 1), hits / objects
            return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)

        assert one is not None
        assert (one.precision, one.recall, one.f1) == pytest.approx(counted(one.confidence))
        assert of.at(one.confidence) == pytest.approx(counted(one.confidence))
        assert one.f1 == pytest.approx(max(counted(confidence)[2] for confidence in matches.scores))
        assert 0.1 < one.confidence < 0.9


def test_the_matrix_at_the_thresholds_has_their_precision_and_recall(matches: Matches) -> None:
    best = best_thresholds(matches)
    found = outcomes(matches, best.by_label or [])
    for label, one in enumerate(best.classes):
        kept = matches.labels[found.kept] == label
        assert one is not None
        assert (found.detections[kept] == 0).mean() == pytest.approx(one.precision)
        assert (found.objects[matches.object_labels == label] == 0).mean() == pytest.approx(one.recall)


def test_a_class_with_few_objects_has_the_overall_threshold(matches: Matches) -> None:
    rare = np.flatnonzero(matches.object_labels == 1)[ENOUGH - 1 :]
    kept = np.setdiff1d(np.arange(len(matches.object_labels)), rare)
    fewer = dataclasses.replace(matches, object_labels=matches.object_labels[kept])
    best = best_thresholds(fewer)
    assert best.overall is not None
    assert [one is None for one in best.classes] == [False, True, False]
    assert best.by_label is not None
    assert best.by_label[1] == best.overall.confidence
    assert best.by_label[0] != best.overall.confidence
    nothing = best_thresholds(dataclasses.replace(matches, objects=np.full(len(matches.objects), -1)))
    assert nothing == (None, [None, None, None])
    assert nothing.by_label is None


def test_calibration_by_hand(matches: Matches) -> None:
    scores = np.array([0.04, 0.12, 0.18, 0.95, 1.0, 0.9])
    right = np.array([0, 0, 1, 1, 1, 0]) - 1  # an object, or -1
    found = calibration(dataclasses.replace(matches, scores=scores, objects=right))
    assert found.counts.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 3]
    assert found.score[1] == pytest.approx(0.15)
    assert found.precision[[1, 9]].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert np.isnan(found.precision[0])
    assert found.error == pytest.approx((2 * abs(0.15 - 1 / 2) + 3 * abs(0.95 - 2 / 3)) / 5)
    assert calibration(dataclasses.replace(matches, scores=scores[:1], objects=right[:1])).error is None
    assert LEAST_SCORE < 1 / BINS


def test_scores_that_are_probabilities_are_calibrated(matches: Matches) -> None:
    draw = np.random.default_rng(0)
    scores = draw.uniform(size=20_000)
    objects = np.where(draw.uniform(size=20_000) < scores, 0, -1)
    assert calibration(dataclasses.replace(matches, scores=scores, objects=objects)).error < 0.02
    overconfident = dataclasses.replace(matches, scores=np.sqrt(scores), objects=objects)
    assert calibration(overconfident).error == pytest.approx(1 / 6, abs=0.02)  # mean of sqrt(s) - s
