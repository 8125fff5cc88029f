"""COCO's box metrics of detections: the twelve numbers, and those of every class.

Two libraries compute them: faster-coco-eval, and pycocotools, the reference, which takes some ten times as long. Tests
hold them against each other; both get the same truth and the same detections from here.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...common.text import counted
from .results import COLUMNS, DetectionResults, pack_results, unpack_results

Engine = Literal["faster", "pycocotools"]
Results = DetectionResults | np.ndarray | Sequence[dict[str, Any]]

# the order of both libraries' ``stats``, and COCO's own words for each
_LINES = {
    "AP": "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]",
    "AP50": "Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ]",
    "AP75": "Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ]",
    "AP_S": "Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ]",
    "AP_M": "Average Precision  (AP) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ]",
    "AP_L": "Average Precision  (AP) @[ IoU=0.50:0.95 | area= large | maxDets=100 ]",
    "AR1": "Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ]",
    "AR10": "Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 10 ]",
    "AR100": "Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]",
    "AR_S": "Average Recall     (AR) @[ IoU=0.50:0.95 | area= small | maxDets=100 ]",
    "AR_M": "Average Recall     (AR) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ]",
    "AR_L": "Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ]",
}
METRICS = tuple(_LINES)

# places in the evaluator's arrays
_IOU_50, _ALL_AREAS, _MOST_DETECTIONS = 0, 0, -1


@dataclass(frozen=True)
class ClassMetrics:
    """One class's numbers in [0, 1]; None where it has no annotated box."""

    id: int
    name: str
    boxes: int
    """Annotated in the images that count, crowd regions apart."""
    AP: float | None
    AP50: float | None
    AR100: float | None
    AP_S: float | None = None
    AP_M: float | None = None
    AP_L: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluator knows about detections."""

    metrics: dict[str, float]
    """The twelve numbers by METRICS' names, in [0, 1]; -1 where nothing of that size is annotated."""
    classes: list[ClassMetrics]
    """In the order of the category ids."""
    precision: np.ndarray
    """(T, R, K, A, M): IoU thresholds .50 to .95, recalls 0 to 1 by .01, classes, areas all, small, medium and large,
    1, 10 and 100 detections; -1 where nothing is annotated."""
    recall: np.ndarray
    """(T, K, A, M)."""


def coco_metrics(
    truth: Path | dict[str, Any], results: Results, image_ids: Sequence[int], engine: Engine = "faster"
) -> dict[str, float]:
    """COCO's twelve numbers for boxes, AP, AP50, ... in [0, 1]; -1 where nothing of that size is annotated.

    Arguments and errors are those of evaluate_boxes.
    """
    return evaluate_boxes(truth, results, image_ids, engine).metrics


def evaluate_boxes(
    truth: Path | dict[str, Any], results: Results, image_ids: Sequence[int], engine: Engine = "faster"
) -> Evaluation:
    """Detections measured against annotations.

    Args:
        truth: an ``instances_*.json``, or its content; not changed.
        results: what detect returned; or rows (N, 7) as results.DetectionResults has; or COCO's results format. A
            category that the truth lacks counts for nothing.
        image_ids: the images to count.
        engine: faster-coco-eval, or pycocotools, the reference it agrees with.

    Raises:
        ValueError: no image to count, an image or a detection twice over the processes, a detection that is not finite
            or of an image that the truth lacks, an image that was not looked at.
    """
    content = json.loads(truth.read_bytes()) if isinstance(truth, Path) else truth
    ids = np.unique(np.asarray(image_ids, dtype=np.int64))
    rows = _checked(results, ids, {int(image["id"]) for image in content["images"]})
    dataset = _complete(content, set(ids.tolist()))
    rows = rows[np.isin(rows[:, 0], ids)]
    evaluate: Any
    if engine == "faster":
        from faster_coco_eval import COCO, COCOeval_faster

        evaluate = partial(COCOeval_faster, print_function=lambda *_: None)
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        evaluate = COCOeval
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries print their progress and their tables
        annotated = _indexed(COCO(), dataset)
        # loadRes of pycocotools takes no empty list, and both make an outline of every box that has none
        found = [{**one, "segmentation": []} for one in unpack_results(rows)]
        detected = annotated.loadRes(found) if found else _indexed(COCO(), {**dataset, "annotations": []})
        evaluator = evaluate(annotated, detected, iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    metrics = dict(zip(METRICS, map(float, evaluator.stats[: len(METRICS)]), strict=True))
    precision, recall = np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])
    return Evaluation(metrics, _classes(dataset, precision, recall), precision, recall)


def _checked(results: Results, image_ids: np.ndarray, known: set[int]) -> np.ndarray:
    """The rows (N, 7) of results, which fit the images."""
    if not len(image_ids):
        raise ValueError("image_ids: expected at least one image to evaluate on, got none")
    if isinstance(results, DetectionResults):
        missed, rows = np.setdiff1d(image_ids, results.image_ids), results.results
        if len(missed):
            whole = counted(len(image_ids), "image")
            raise ValueError(f"detections: {len(missed)} of {whole} not looked at, the first is {missed[0]}")
    else:
        rows = results if isinstance(results, np.ndarray) else pack_results(results)
    if rows.ndim != 2 or rows.shape[1] != COLUMNS:
        raise ValueError(f"results: expected rows of {COLUMNS} numbers, (N, {COLUMNS}), got {rows.shape}")
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():  # the libraries count a box that is not a number as a hit
        first = rows[broken][0]
        raise ValueError(
            f"results: {np.count_nonzero(broken)} of {len(rows)} detections are not finite, the first one's score is "
            f"{first[5]} and its box {first[1:5].tolist()}"
        )
    for name, wanted in (("the images to evaluate on", image_ids.tolist()), ("detections", rows[:, 0])):
        unknown = sorted({int(image) for image in np.unique(wanted)} - known)
        if unknown:
            raise ValueError(
                f"{name}: {counted(len(unknown), 'image')} not among the {len(known)} annotated ones, the first is "
                f"{unknown[0]}; are these the annotations of the images that were looked at?"
            )
    return rows


def _complete(content: dict[str, Any], image_ids: set[int]) -> dict[str, Any]:
    """What of the truth is needed for these images, with the fields that other tools' files often lack.

    Annotations are numbered anew: to both libraries one of id 0 is a box that nothing can match, and two of one id are
    one box counted twice.
    """
    wanted = (one for one in content["annotations"] if one["image_id"] in image_ids)
    annotations = [
        {
            "id": number,
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "bbox": one["bbox"],
            "area": one.get("area", one["bbox"][2] * one["bbox"][3]),
            "iscrowd": one.get("iscrowd", 0),
        }
        for number, one in enumerate(wanted, start=1)
    ]
    return {
        "images": [dict(image) for image in content["images"] if image["id"] in image_ids],
        "categories": [dict(category) for category in content["categories"]],
        "annotations": annotations,
    }


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    """A library's COCO, with a content that is no file."""
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _classes(dataset: dict[str, Any], precision: np.ndarray, recall: np.ndarray) -> list[ClassMetrics]:
    counts = Counter(one["category_id"] for one in dataset["annotations"] if not one["iscrowd"])
    by_size = [precision[..., area, _MOST_DETECTIONS] for area in range(1, 4)]
    precision, recall = (array[..., _ALL_AREAS, _MOST_DETECTIONS] for array in (precision, recall))
    return [
        ClassMetrics(
            id=category["id"],
            name=str(category["name"]),
            boxes=counts[category["id"]],
            AP=_mean(precision[..., place]),
            AP50=_mean(precision[_IOU_50, :, place]),
            AR100=_mean(recall[:, place]),
            **{f"AP_{size}": _mean(of_size[..., place]) for size, of_size in zip("SML", by_size, strict=True)},
        )
        for place, category in enumerate(sorted(dataset["categories"], key=lambda category: category["id"]))
    ]


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def summary(metrics: dict[str, float]) -> str:
    """The twelve numbers as COCO's own tools print them."""
    return "\n".join(f" {words} = {metrics[name]:0.3f}" for name, words in _LINES.items())


def class_table(classes: Sequence[ClassMetrics]) -> str:
    """A line for each class, the highest AP first; a class without annotations is last, with dashes."""
    width = max([len("class"), *(len(one.name) for one in classes)])
    lines = [f"{'class':<{width}}  {'boxes':>7}  {'AP':>5}  {'AP50':>5}  {'AR100':>5}"]
    for one in sorted(classes, key=lambda one: (one.AP is None, -(one.AP or 0.0), one.name)):
        numbers = "  ".join(f"{'-' if n is None else f'{n:.3f}':>5}" for n in (one.AP, one.AP50, one.AR100))
        lines.append(f"{one.name:<{width}}  {one.boxes:>7}  {numbers}")
    return "\n".join(lines)
