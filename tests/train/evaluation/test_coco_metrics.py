"""COCO's metrics: both libraries agree, on what is random, on what is published, and on odd files."""

import contextlib
import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.train.evaluation.coco_metrics import (
    METRICS,
    ClassMetrics,
    class_table,
    coco_metrics,
    evaluate_boxes,
    summary,
)
from msdeform.train.evaluation.results import DetectionResults, pack_results

ENGINES = ("faster", "pycocotools")


def noisy(path: Path, seed: int) -> tuple[list[dict[str, Any]], list[int]]:
    """Detections around the annotated boxes, some off, some of another class, some of nothing."""
    rng = np.random.default_rng(seed)
    content = json.loads(path.read_text())
    categories = [category["id"] for category in content["categories"]]
    results = []
    for annotation in content["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.array(annotation["bbox"])
            box = box + rng.normal(0, 0.08, 4) * box[[2, 3, 2, 3]]
            right = rng.random() < 0.8
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if right else int(rng.choice(categories)),
                    "bbox": [*box[:2].tolist(), *np.maximum(box[2:], 1).tolist()],
                    "score": float(rng.random()),
                }
            )
    return results, [image["id"] for image in content["images"]]


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_both_libraries_give_the_same_numbers(shapes: Path, part: float) -> None:
    path = shapes / "annotations" / "instances_train2017.json"
    results, ids = noisy(path, seed=0)
    ids = ids[: int(len(ids) * part)]
    results = [result for result in results if result["image_id"] in ids]
    faster = coco_metrics(path, results, ids)
    assert faster == pytest.approx(coco_metrics(path, results, ids, "pycocotools"), abs=1e-12)
    assert 0.05 < faster["AP"] < faster["AP50"] < 1


def test_both_libraries_agree_on_real_annotations_with_crowds(coco_mini: Path) -> None:
    path = coco_mini / "annotations" / "instances_val2017.json"
    results, ids = noisy(path, seed=1)
    faster = coco_metrics(path, results, ids)
    assert faster == pytest.approx(coco_metrics(path, results, ids, "pycocotools"), abs=1e-12)
    assert faster["AP"] > 0.1


Case = tuple[dict[str, Any], np.ndarray, list[int]]


def odd_case(seed: int) -> Case:
    """Annotations and detections with all that an evaluator may stumble over.

    Crowd regions, boxes of no area, two boxes in one place, areas on the border between two ranges and areas that are
    not the box's; images without annotations, without detections and with more than 100; a class without annotations;
    scores that are equal within an image and between images; overlaps that are exactly a threshold.
    """
    rng = np.random.default_rng(seed)
    images = [{"id": int(i), "width": 400, "height": 400} for i in rng.choice(1000, 10, replace=False)]
    categories = [{"id": int(c), "name": f"c{c}"} for c in rng.choice(90, 5, replace=False)]
    ids = [category["id"] for category in categories]
    annotations: list[dict[str, Any]] = []
    rows: list[list[float]] = []
    for number, image in enumerate(images):
        for _ in range(0 if number % 4 == 0 else rng.integers(1, 20)):
            box = [*rng.uniform(0, 300, 2), *(rng.uniform(0.3, 1, 2) * rng.choice([8, 20, 60, 150, 300]))]
            kind = rng.random()
            if kind < 0.05:
                box[2] = 0.0
            elif kind < 0.15:
                box[2:] = [32.0, 32.0]
            elif kind < 0.25 and annotations and annotations[-1]["image_id"] == image["id"]:
                box = annotations[-1]["bbox"]
            category = int(rng.choice(ids[:-1]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": list(map(float, box)),
                    "area": float(box[2] * box[3] * rng.choice([1.0, 0.6])),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            if number % 5 == 1:
                continue
            for _ in range(rng.integers(0, 4)):
                near = np.array(box)
                how = rng.integers(3)
                if how == 0:
                    near += rng.normal(0, 0.08, 4) * max(box[2:])
                elif how == 1:
                    near[3] *= rng.choice([0.5, 0.6, 0.75, 0.95])
                right = category if rng.random() < 0.8 else int(rng.choice(ids))
                score = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9]) if rng.random() < 0.7 else rng.random()
                rows.append([image["id"], *near[:2], *np.maximum(near[2:], 0), score, right])
        for _ in range(0 if number % 5 == 1 else 130 if number % 3 == 0 else 5):
            box = [*rng.uniform(0, 300, 2), *rng.uniform(0, 200, 2)]
            rows.append(
                [image["id"], *box, rng.choice([0.05, 0.1, 0.3]), ids[0] if number % 3 == 0 else rng.choice(ids)]
            )
    truth = {"images": images, "categories": categories, "annotations": annotations}
    return truth, np.array(rows), [image["id"] for image in images]


def by_hand(truth: dict[str, Any], rows: np.ndarray, image_ids: list[int]) -> Any:
    """pycocotools as its own demo uses it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO()
        annotated.dataset = copy.deepcopy(truth)
        annotated.createIndex()
        evaluator = COCOeval(annotated, annotated.loadRes(rows.copy()), "bbox")
        evaluator.params.imgIds = image_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("seed", range(4))
def test_both_engines_are_pycocotools_to_nine_digits(seed: int) -> None:
    truth, rows, ids = odd_case(seed)
    reference = by_hand(truth, rows, ids)
    before = copy.deepcopy(truth)
    for engine in ENGINES:
        found = evaluate_boxes(truth, rows, ids, engine)
        assert list(found.metrics.values()) == pytest.approx(reference.stats.tolist(), abs=1e-9)
        np.testing.assert_allclose(found.precision, reference.eval["precision"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.recall, reference.eval["recall"], rtol=0, atol=1e-9)
    assert truth == before
    assert 0.02 < reference.stats[0] < 0.9
    assert (reference.eval["precision"] == -1).any()  # of the class that nobody annotated


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_both_engines_agree_on_many_more(seed: int) -> None:
    truth, rows, ids = odd_case(seed)
    faster, reference = (evaluate_boxes(truth, rows, ids, engine) for engine in ENGINES)
    assert faster.metrics == pytest.approx(reference.metrics, abs=1e-9)
    np.testing.assert_allclose(faster.precision, reference.precision, rtol=0, atol=1e-9)
    np.testing.assert_allclose(faster.recall, reference.recall, rtol=0, atol=1e-9)


# the COCO API's results/val2014_fake_eval_res.txt, of type bbox
PUBLISHED = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_published_answer_for_the_published_detections(engine: Any) -> None:
    folder = os.environ.get("MSDEFORM_COCO_API")
    if folder is None:
        pytest.skip(
            "MSDEFORM_COCO_API names no folder with the COCO API's results/instances_val2014_fakebbox100_results.json "
            "and annotations/instances_val2014*.json"
        )
    results = json.loads((Path(folder) / "results" / "instances_val2014_fakebbox100_results.json").read_text())
    [annotations] = (Path(folder) / "annotations").glob("instances_val2014*.json")
    truth = json.loads(annotations.read_text())
    first = sorted(image["id"] for image in truth["images"])[:100]  # the demo's
    metrics = coco_metrics(truth, results, first, engine)
    assert tuple(round(metrics[name], 3) for name in METRICS) == PUBLISHED


def test_the_annotations_themselves_score_one_and_nothing_scores_zero(shapes: Path) -> None:
    path = shapes / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    ids = [image["id"] for image in content["images"]]
    perfect = [{**annotation, "score": 1.0} for annotation in content["annotations"]]
    assert coco_metrics(path, perfect, ids)["AP"] == pytest.approx(1.0)
    assert coco_metrics(content, pack_results(perfect), ids)["AP"] == pytest.approx(1.0)
    for engine in ENGINES:
        metrics = coco_metrics(path, [], ids, engine)
        assert metrics.keys() == set(METRICS)
        assert metrics["AP"] == metrics["AP50"] == 0


def test_images_that_were_not_asked_for_do_not_count(shapes: Path) -> None:
    path = shapes / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    ids = [image["id"] for image in content["images"]][:3]
    others = [{**annotation, "score": 1.0} for annotation in content["annotations"]]
    for result in others:  # right in the three, wrong elsewhere
        if result["image_id"] not in ids:
            result["bbox"] = [0, 0, 1, 1]
    for engine in ENGINES:
        assert coco_metrics(path, others, ids, engine)["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_files_that_lack_area_and_crowd_or_number_from_zero_are_measured(annotation_file: Any, engine: Any) -> None:
    path = annotation_file({}, {"bbox": [20, 10, 10, 10]})
    content = json.loads(path.read_text())
    for number, annotation in enumerate(content["annotations"]):
        del annotation["iscrowd"]
        annotation["id"] = number  # 0 is what both libraries call unmatched
    boxes = ([1, 2, 10, 10], [20, 10, 10, 10])
    results = [{"image_id": 7, "category_id": 3, "bbox": box, "score": 0.5} for box in boxes]
    assert coco_metrics(content, results, [7], engine)["AP"] == pytest.approx(1.0)
    for annotation in content["annotations"]:
        annotation["id"] = 5  # all alike
    metrics = coco_metrics(content, results[:1], [7], engine)
    assert metrics["AR100"] == pytest.approx(0.5)


def test_every_class_has_its_numbers(annotation_file: Any) -> None:
    path = annotation_file({}, {"bbox": [20, 10, 10, 10]}, {"bbox": [0, 0, 40, 30], "iscrowd": 1})
    results = [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 6], "score": 0.5}]  # overlaps by 0.6
    found = evaluate_boxes(path, results, [7])
    dog, cat = found.classes
    assert (dog.id, dog.name, dog.boxes) == (3, "dog", 2)
    # half of the boxes, at 3 of 10 thresholds: of 101 recalls, 51 are up to a half
    numbers = [dog.AP50, dog.AP, dog.AR100]
    assert numbers == pytest.approx([51 / 101, 0.3 * 51 / 101, 0.3 * 0.5])
    assert cat == ClassMetrics(5, "cat", 0, None, None, None)
    assert found.metrics["AP"] == dog.AP


def test_the_mean_over_annotated_classes_is_the_metric() -> None:
    truth, rows, ids = odd_case(3)
    found = evaluate_boxes(truth, rows, ids)
    for name in ("AP", "AP50", "AR100"):
        values = [value for one in found.classes if (value := getattr(one, name)) is not None]
        assert len(values) == 4
        assert np.mean(values) == pytest.approx(found.metrics[name], abs=1e-12)


def test_the_tables_are_as_people_know_them() -> None:
    printed = summary(dict.fromkeys(METRICS, 0.25))
    assert printed.splitlines()[4] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.250"
    truth, rows, ids = odd_case(0)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        reference = by_hand(truth, rows, ids)
        reference.summarize()
    assert summary(evaluate_boxes(truth, rows, ids).metrics) == out.getvalue().rstrip("\n")
    classes = [
        ClassMetrics(1, "a", 0, None, None, None),
        ClassMetrics(2, "second", 3, 0.1, 0.2, 0.3),
        ClassMetrics(3, "first", 12, 0.5, 1.0, 0.75),
    ]
    assert class_table(classes).splitlines() == [
        "class     boxes     AP   AP50  AR100",
        "first        12  0.500  1.000  0.750",
        "second        3  0.100  0.200  0.300",
        "a             0      -      -      -",
    ]


def test_what_cannot_be_counted_is_told_in_a_sentence(shapes: Path) -> None:
    path = shapes / "annotations" / "instances_val2017.json"
    ids = [image["id"] for image in json.loads(path.read_text())["images"]]
    row = np.array([[ids[0], 0, 0, 5, 5, 0.5, 1]])
    stranger, infinite = row.copy(), row.copy()
    stranger[0, 0], infinite[0, 5] = 999, np.nan
    seen = DetectionResults(np.array(ids[1:]), row[:0])
    for results, images, sentence in (
        (row, [], "image_ids: expected at least one image to evaluate on, got none"),
        (stranger, ids, "detections: 1 image not among the 4 annotated ones, the first is 999; are these"),
        (row, [*ids, 998], "the images to evaluate on: 1 image not among the 4 annotated ones, the first is 998"),
        (infinite, ids, "results: 1 of 1 detections are not finite, the first one's score is nan and its box"),
        (row[:, :6], ids, r"results: expected rows of 7 numbers, \(N, 7\), got \(1, 6\)"),
        (seen, ids, f"detections: 1 of 4 images not looked at, the first is {ids[0]}"),
        ([{"image_id": 1, "bbox": [1, 2, 3]}], ids, "results: expected image_id, category_id, bbox"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            coco_metrics(path, results, images)
