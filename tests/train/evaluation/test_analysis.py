"""All that is said of an evaluation: its numbers are those of their definitions, and add up in every form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.train.evaluation.analysis import (
    Analysis,
    analyse,
    bootstrap,
    plain,
    ranged,
    resampled_precisions,
    sentences,
    threshold_table,
)
from msdeform.train.evaluation.coco_metrics import evaluate_boxes
from msdeform.train.evaluation.comparison import better, compare, comparison_table, verdict
from msdeform.train.evaluation.matching import DETECTIONS, ERRORS
from tests.train.evaluation.made import annotations_of, noisy_data

Made = tuple[Any, np.ndarray, list[int]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    content, rows = noisy_data(seed=7)
    return annotations_of(content, tmp_path), rows, [image["id"] for image in content["images"]]


def analysed(made: Made, rows: np.ndarray | None = None, **settings: Any) -> Analysis:
    annotations, own, ids = made
    rows = own if rows is None else rows
    return analyse(evaluate_boxes(annotations.ground_truth(), rows, ids), rows, annotations, ids, **settings)


def test_the_json_holds_all_and_adds_up(made: Made) -> None:
    found = json.loads(json.dumps(plain(analysed(made, intervals=True, worst=5)), allow_nan=False))
    boxes = [kind["boxes"] for kind in found["classes"]]
    matrix = np.array(found["confusion_matrix"]["counts"])
    assert found["confusion_matrix"]["classes"] == ["kind 1", "kind 2", "kind 3", "background"]
    assert matrix[:3].sum(1).tolist() == boxes
    assert sum(boxes) == found["objects"]
    assert found["detections"].keys() == set(DETECTIONS)
    assert sum(found["detections"].values()) == matrix[:, :3].sum()
    for label, kind in enumerate(found["classes"]):
        own = kind["threshold"]
        assert own["confidence"] == found["thresholds"]["by_class"][kind["name"]]
        assert own["recall"] == pytest.approx(matrix[label, label] / kind["boxes"])
        assert own["precision"] == pytest.approx(matrix[label, label] / matrix[:, label].sum())
        assert kind["errors"]["found"] == matrix[label, label]
        # curves are sampled at every hundredth: as near as that
        curve = found["curves"]["classes"][kind["name"]]
        assert max(curve["f1"]) == pytest.approx(own["f1"], abs=0.03)
        assert curve["recall"] == sorted(curve["recall"], reverse=True)
        assert kind["intervals"]["AP"]["value"] == pytest.approx(kind["AP"], abs=1e-9)
        assert kind["intervals"]["AP"]["low"] < kind["AP"] < kind["intervals"]["AP"]["high"]
        assert {kind["AP_S"], kind["AP_M"], kind["AP_L"]} != {None}
    assert found["intervals"]["samples"] == 1000
    for name in ("AP", "AP50", "AP_S", "AP_M", "AP_L"):
        assert found["intervals"][name]["value"] == pytest.approx(found["metrics"][name], abs=1e-9)
    assert len(found["worst_images"]) == 5
    assert sum(one["count"] for one in found["calibration"]["bins"]) <= len(made[1])
    assert "intervals" not in plain(analysed(made))


def test_sizes_are_those_of_the_evaluator(made: Made) -> None:
    """Without the large boxes the AP of small ones is the AP of all."""
    annotations, rows, ids = made
    evaluation = evaluate_boxes(annotations.ground_truth(), rows, ids)
    for size in "SML":
        kinds = [getattr(kind, f"AP_{size}") for kind in evaluation.classes]
        assert np.mean([ap for ap in kinds if ap is not None]) == pytest.approx(evaluation.metrics[f"AP_{size}"])


def test_what_is_printed(made: Made) -> None:
    found = analysed(made, intervals=True)
    intervals, overall, errors = sentences(found)
    assert found.intervals is not None
    assert intervals.startswith(f"95% intervals over images: AP {ranged(found.intervals.metrics['AP'])}, AP50 ")
    best = found.thresholds.overall
    assert best is not None
    assert overall.startswith(f"best threshold for all classes: {best.confidence:.2f}, with precision ")
    table = found.errors
    assert errors.startswith(
        f"at every class's own: {table['found'].sum()} of {len(found.matches.object_labels)} objects"
    )
    assert all(f"{table[kind].sum()} {kind}" in errors for kind in ERRORS)
    lines = threshold_table(found).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["1", "2", "3"]
    assert {len(line) for line in lines} == {len(lines[0])}


def test_a_model_that_finds_nothing(made: Made) -> None:
    for rows in (made[1][:0], made[1] * [1, 1, 1, 0.01, 0.01, 1, 1]):
        found = analysed(made, rows, intervals=True)
        assert sentences(found)[-1] == "no detection is right at an IoU of 0.5, so no threshold is best"
        whole = json.loads(json.dumps(plain(found), allow_nan=False))
        assert whole["thresholds"] == {"overall": None, "by_class": None}
        assert whole["errors"]["found"] == 0
        assert "0.50*" in threshold_table(found)
    assert whole["intervals"]["AP"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_range_is_as_short_as_it_can_be() -> None:
    assert ranged({"value": 0.51234, "low": 0.4, "high": 0.6}) == "0.512 (0.400 to 0.600)"
    assert ranged({"value": 0.51234, "low": None, "high": None}) == "0.512"
    assert ranged({"value": None, "low": None, "high": None}) == "-"


def test_the_same_images_are_drawn_for_any_detections(made: Made) -> None:
    annotations, rows, ids = made
    first, again = (bootstrap(rows, annotations, ids, samples=20) for _ in range(2))
    assert first == again
    # detections in images that do not count change nothing
    some = ids[::2]
    kept = rows[np.isin(rows[:, 0], some)]
    assert bootstrap(rows, annotations, some, samples=20) == bootstrap(kept, annotations, some, samples=20)


def compared(made: Made, second: np.ndarray, first: np.ndarray | None = None) -> dict[str, Any]:
    annotations, rows, ids = made
    rows = rows if first is None else first
    first, other = (resampled_precisions(each, annotations, ids, samples=200) for each in (rows, second))
    return compare(first, other, evaluate_boxes(annotations.ground_truth(), rows, ids).classes)


def test_a_worse_detector_is_told_from_a_better_one(made: Made) -> None:
    annotations, rows, ids = made
    worse = rows.copy()
    worse[:, 1] += 0.15 * rows[:, 3]
    found = compared(made, worse)
    one = found["metrics"]["AP"]
    assert one["before"] == pytest.approx(evaluate_boxes(annotations.ground_truth(), rows, ids).metrics["AP"])
    assert one["after"] == pytest.approx(evaluate_boxes(annotations.ground_truth(), worse, ids).metrics["AP"])
    assert better(one) == "A"
    assert verdict(one) == f"A is better by {-one['change']:.3f} AP (95%: {-one['high']:.3f} to {-one['low']:.3f})"
    for label, kind in enumerate(found["classes"]):
        own = evaluate_boxes(annotations.ground_truth(), worse, ids).classes[label]
        assert (kind["name"], kind["boxes"]) == (own.name, own.boxes)
        assert (kind["AP"]["after"], kind["AP50"]["after"]) == pytest.approx((own.AP, own.AP50))
    lines = comparison_table(found).splitlines()
    assert lines[1].split() == [
        "AP",
        f"{one['before']:.3f}",
        f"{one['after']:.3f}",
        f"{one['change']:+.3f}",
        f"{one['low']:+.3f}",
        "to",
        f"{one['high']:+.3f}",
        "A",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["AP", "AP50", "AP_S", "AP_M", "AP_L", "AP", *["kind"] * 3]


def test_no_difference_is_told_between_equals(made: Made) -> None:
    rows = made[1]
    one = compared(made, rows)["metrics"]["AP"]
    assert verdict(one) == "no difference can be told: B - A is +0.000 AP (95%: +0.000 to +0.000)"
    # each is worse in every other image
    halves = [rows.copy(), rows.copy()]
    for number, half in enumerate(halves):
        worse = np.searchsorted(made[2], half[:, 0]) % 2 == number
        half[worse, 1] += 0.15 * half[worse, 3]
    one = compared(made, *halves)["metrics"]["AP"]
    assert one["low"] < 0 < one["high"]
    assert one["high"] - one["low"] > 0.02
    assert verdict(one).startswith("no difference can be told: B - A is ")


def test_verdicts() -> None:
    def change(low: float | None, high: float | None) -> dict[str, float | None]:
        return {"before": 0.5, "after": 0.521, "change": 0.021, "low": low, "high": high}

    assert verdict(change(0.004, 0.039)) == "B is better by 0.021 AP (95%: 0.004 to 0.039)"
    assert verdict(change(0.0, 0.039)).startswith("no difference can be told")
    assert verdict(change(None, None)) == "B - A is +0.021 AP, of too few images for an interval"
    assert verdict(dict.fromkeys(change(None, None)), "AP_L") == "nothing is annotated, so there is no AP_L"
    one = dict.fromkeys(change(None, None))
    table = comparison_table({"metrics": {"AP_L": one}, "classes": []})
    assert table.splitlines()[1].split() == ["AP_L", "-", "-", "-", "-"]
