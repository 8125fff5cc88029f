"""AP under weights of images is what COCO's own tools give for a data set that lists images that often."""

from typing import Any

import numpy as np
import pytest

from msdeform.train.evaluation.coco_metrics import Engine, coco_metrics, evaluate_boxes
from msdeform.train.evaluation.resampling import (
    METRICS,
    changes,
    interval,
    mean_metrics,
    resample,
    weighted_metrics,
    weighted_precisions,
)
from tests.train.evaluation.made import noisy_data

IMAGES = 30
IDS = [7 * number + 3 for number in range(IMAGES)]


def repeated(truth: dict[str, Any], rows: np.ndarray, times: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """The data set with each image as many times as said, each time under an id of its own."""
    annotations: list[dict[str, Any]] = []
    images, parts = [], []
    for image, count in zip(IDS, times.astype(int), strict=True):
        for turn in range(count):
            new = 100 * image + turn
            images.append({"id": new, "width": 400, "height": 400})
            mine = [one for one in truth["annotations"] if one["image_id"] == image]
            annotations += [{**one, "id": len(annotations) + n, "image_id": new} for n, one in enumerate(mine, 1)]
            part = rows[rows[:, 0] == image].copy()
            part[:, 0] = new
            parts.append(part)
    return {**truth, "images": images, "annotations": annotations}, np.concatenate(parts)


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_weights_are_repetitions(engine: Engine) -> None:
    truth, rows = noisy_data(0)
    weights = resample(IMAGES, 3)
    got = weighted_metrics(truth, rows, IDS, weights)
    assert (weights[0] == 1).all()
    assert (weights[1:] != 1).any()
    assert (weights.sum(1) == IMAGES).all()
    for place, times in enumerate(weights):
        content, found = repeated(truth, rows, times)
        expected = coco_metrics(content, found, [image["id"] for image in content["images"]], engine)
        assert 0.05 < expected["AP"] < 0.9
        for metric in METRICS:
            assert got[metric][place] == pytest.approx(expected[metric], abs=1e-12)


def test_images_that_do_not_count_are_left_out() -> None:
    truth, rows = noisy_data(0)
    some = IDS[::2]
    got = weighted_metrics(truth, rows, some, np.ones((1, len(some))))
    expected = coco_metrics(truth, rows[np.isin(rows[:, 0], some)], some)
    assert got["AP"][0] == pytest.approx(expected["AP"], abs=1e-12)


def test_more_than_a_hundred_detections_of_a_class_are_cut_as_coco_cuts_them() -> None:
    truth, rows = noisy_data(0)
    draw = np.random.default_rng(1)
    many = np.concatenate([rows, rows[draw.integers(0, len(rows), 200)]])
    many[:, 5] = draw.random(len(many))
    many[:, 0] = IDS[0]
    one = {**truth, "annotations": [{**note, "image_id": IDS[0]} for note in truth["annotations"]]}
    got = weighted_metrics(one, many, IDS[:1], np.ones((1, 1)))
    expected = coco_metrics(one, many, IDS[:1])
    assert max((many[:, 6] == category).sum() for category in (1, 2, 3)) > 100
    assert got["AP"][0] == pytest.approx(expected["AP"], abs=1e-12)


def test_the_interval_is_of_the_difference() -> None:
    """Two models of which each AP varies more over images than their difference; and no change at all."""
    truth, rows = noisy_data(0)
    weights = resample(IMAGES, 200, seed=1)
    before = weighted_metrics(truth, rows, IDS, weights)
    same = changes(before, before)["AP"]
    assert (same["change"], same["low"], same["high"]) == (0, 0, 0)
    worse = rows.copy()
    worse[::2, 1] += 12
    after = weighted_metrics(truth, worse, IDS, weights)
    change = changes(before, after)["AP"]
    drawn = np.sort((after["AP"] - before["AP"])[1:])
    low, high = change["low"], change["high"]
    assert change["before"] == pytest.approx(before["AP"][0])
    assert change["change"] == pytest.approx(after["AP"][0] - before["AP"][0])
    assert low is not None
    assert high is not None
    assert (drawn < low).mean() == pytest.approx(0.025, abs=0.006)
    assert (drawn > high).mean() == pytest.approx(0.025, abs=0.006)
    assert high - low < np.subtract(*np.percentile(before["AP"][1:], [97.5, 2.5]))
    assert high < 0


def test_what_is_not_annotated_has_no_number() -> None:
    truth, rows = noisy_data(0)
    small = {**truth, "annotations": [one for one in truth["annotations"] if one["area"] < 32**2]}
    found = weighted_metrics(small, rows, IDS, resample(IMAGES, 5))
    assert np.isnan(found["AP_L"]).all()
    assert np.isfinite(found["AP_S"][0])
    assert set(changes(found, found)["AP_L"].values()) == {None}


def test_a_model_that_finds_nothing_has_an_ap_of_zero() -> None:
    truth, rows = noisy_data(0)
    found = weighted_metrics(truth, rows[:0], IDS, resample(IMAGES, 5))
    assert found["AP"][0] == found["AP_S"][0] == 0


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_every_class_has_the_ap_that_coco_gives_it(engine: Engine) -> None:
    truth, rows = noisy_data(2)
    precisions = weighted_precisions(truth, rows, IDS, np.ones((1, IMAGES)))
    evaluation = evaluate_boxes(truth, rows, IDS, engine)
    for kind, of_class in zip(evaluation.classes, precisions, strict=True):
        found = mean_metrics(of_class[None])
        for name in METRICS:
            expected = getattr(kind, name)
            assert found[name][0] == pytest.approx(np.nan if expected is None else expected, abs=1e-12, nan_ok=True)


def test_an_interval_is_of_the_resamples_alone() -> None:
    values = np.array([0.9, *np.linspace(0, 1, 201), np.nan])
    assert interval(values) == pytest.approx({"value": 0.9, "low": 0.025, "high": 0.975})
    assert interval(np.array([np.nan, 0.5])) == {"value": None, "low": None, "high": None}
    assert interval(np.array([0.5, np.nan])) == {"value": 0.5, "low": None, "high": None}
