"""What became of detections, on boxes where the answer is plain."""

import numpy as np
import pytest

from msdeform.explain.ablation.effects import Effects, QueryPredictions, effects, iou

# of two classes; a row: image, query, probabilities, x0, y0, x1, y1
Row = tuple[int, int, tuple[float, float], tuple[float, float, float, float]]
LEFT, RIGHT, SHIFTED = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (2.0, 0.0, 12.0, 10.0)


def predictions(*rows: Row) -> QueryPredictions:
    image, query, scores, boxes = ([row[column] for row in rows] for column in range(4))
    return QueryPredictions(
        np.array(image, dtype=np.int64),
        np.array(query, dtype=np.int64),
        np.array(scores, dtype=float).reshape(-1, 2),
        np.array(boxes, dtype=float).reshape(-1, 4),
    )


def test_nothing_happened() -> None:
    one = predictions((0, 3, (0.9, 0.1), LEFT), (1, 3, (0.2, 0.7), RIGHT), (1, 4, (0.3, 0.1), LEFT))
    assert effects(one, one, one) == Effects(2, 2, 0, 0, 0, 1.0, 0.0, 0.0, 0.0)


def test_lost_gained_and_another_class() -> None:
    before = predictions((0, 0, (0.9, 0.0), LEFT), (0, 1, (0.8, 0.0), RIGHT), (1, 0, (0.6, 0.0), LEFT))
    after = predictions(
        (0, 0, (0.4, 0.0), LEFT),  # no detection any more
        (0, 1, (0.2, 0.7), RIGHT),  # of the other class
        (1, 0, (0.75, 0.0), SHIFTED),
        (2, 0, (0.9, 0.0), LEFT),
    )
    did = effects(before, after)
    assert (did.before, did.after, did.lost, did.gained, did.changed) == (3, 3, 1, 1, 1)
    assert did.overlap == pytest.approx((1 + 80 / 120) / 2)
    # of the class before, in both
    assert did.score_change == pytest.approx(((0.2 - 0.8) + (0.75 - 0.6)) / 2)
    expected = (np.log(0.2 / 0.8) - np.log(0.8 / 0.2) + np.log(0.75 / 0.25) - np.log(0.6 / 0.4)) / 2
    assert did.logit_change == pytest.approx(expected)
    assert did.iou_change is None


def test_an_object_that_another_query_takes_over() -> None:
    before, after = (
        predictions((0, 0, (0.9, 0.0), LEFT)),
        predictions((0, 0, (0.1, 0.0), LEFT), (0, 5, (0.8, 0.0), LEFT)),
    )
    assert effects(before, after).lost == 0
    by_query = effects(before, after, pairing="query")
    assert (by_query.lost, by_query.gained) == (1, 1)


def test_a_query_that_moves_away() -> None:
    before, after = predictions((0, 0, (0.9, 0.0), LEFT)), predictions((0, 0, (0.9, 0.0), RIGHT))
    assert (effects(before, after).lost, effects(before, after).gained) == (1, 1)
    by_query = effects(before, after, pairing="query")
    assert (by_query.lost, by_query.gained, by_query.overlap) == (0, 0, 0.0)


def test_each_is_paired_once_and_with_its_class_first() -> None:
    # the other class lies exactly there, its own a little aside
    before = predictions((0, 0, (0.9, 0.0), LEFT))
    after = predictions((0, 1, (0.0, 0.9), LEFT), (0, 2, (0.9, 0.0), SHIFTED))
    did = effects(before, after)
    assert (did.lost, did.gained, did.changed) == (0, 1, 0)
    assert did.overlap == pytest.approx(80 / 120)
    both = predictions((0, 0, (0.9, 0.0), LEFT), (0, 1, (0.8, 0.0), LEFT))
    assert effects(both, before).lost == 1


def test_images_are_apart() -> None:
    did = effects(predictions((0, 0, (0.9, 0.0), LEFT)), predictions((1, 0, (0.9, 0.0), LEFT)), pairing="iou")
    assert (did.lost, did.gained, did.overlap) == (1, 1, None)


def test_the_iou_with_what_is_annotated() -> None:
    before, after = predictions((0, 0, (0.9, 0.0), LEFT)), predictions((0, 0, (0.9, 0.0), SHIFTED))
    truth = predictions((0, -1, (1.0, 0.0), LEFT), (0, -1, (0.0, 1.0), SHIFTED), (1, -1, (1.0, 0.0), SHIFTED))
    assert effects(before, after, truth).iou_change == pytest.approx(80 / 120 - 1)
    assert effects(after, before, truth).iou_change == pytest.approx(1 - 80 / 120)
    # on nothing of its class before
    far = predictions((0, -1, (1.0, 0.0), RIGHT))
    assert effects(before, after, far).iou_change is None


def test_no_detection_at_all() -> None:
    nothing = predictions()
    assert effects(nothing, nothing, nothing) == Effects(0, 0, 0, 0, 0, None, None, None, None)
    assert effects(nothing, predictions((0, 0, (0.9, 0.0), LEFT))).gained == 1


def test_numbers_that_are_no_numbers_stay_away() -> None:
    before, after = (predictions((0, 0, scores, LEFT)) for scores in ((1.0, 0.0), (0.0, 1.0)))
    assert effects(before, after).logit_change == pytest.approx(2 * np.log(1e-7), rel=1e-6)
    assert iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0
