"""COCO's box metrics of detections: the twelve numbers, and those of every class.

Two libraries compute them: faster-coco-eval, and pycocotools, the reference, which takes some ten times as long. Tests
hold them against each other; both get the same truth and the same detections from here.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...common.text import counted
from .results import COLUMNS, DetectionResults, pack_results

Engine = Literal["faster", "pycocotools"]

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
    truth: Path | dict[str, Any],
    results: DetectionResults | np.ndarray | Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    engine: Engine = "faster",
) -> dict[str, float]:
    """COCO's twelve numbers for boxes, AP, AP50, ... in [0, 1]; -1 where nothing of that size is annotated.

    Arguments and errors are those of evaluate_boxes.
    """
    return evaluate_boxes(truth, results, image_ids, engine).metrics


def evaluate_boxes(
    truth: Path | dict[str, Any],
    results: DetectionResults | np.ndarray | Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    engine: Engine = "faster",
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
    found = {**dataset, "annotations": _as_annotations(rows[np.isin(rows[:, 0], ids)])}
    with _quiet():
        evaluator = _evaluator(engine, dataset, found)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    stats = zip(METRICS, evaluator.stats[: len(METRICS)], strict=True)
    precision, recall = np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])
    return Evaluation(
        {name: float(value) for name, value in stats}, _classes(dataset, precision, recall), precision, recall
    )


def _checked(
    results: DetectionResults | np.ndarray | Sequence[dict[str, Any]], image_ids: np.ndarray, known: set[int]
) -> np.ndarray:
    """The rows (N, 7) of results, which fit the images."""
    if not len(image_ids):
        raise ValueError("image_ids: expected at least one image to evaluate on, got none")
    if isinstance(results, DetectionResults):
        missed = np.setdiff1d(image_ids, results.image_ids)
        if len(missed):
            raise ValueError(
                f"detections: {len(missed)} of {counted(len(image_ids), 'image')} not looked at, the first is "
                f"{missed[0]}"
            )
        rows = results.results
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
    annotations: list[dict[str, Any]] = []
    for annotation in content["annotations"]:
        if annotation["image_id"] in image_ids:
            box = annotation["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "bbox": box,
                    "area": annotation.get("area", box[2] * box[3]),
                    "iscrowd": annotation.get("iscrowd", 0),
                }
            )
    return {
        "images": [dict(image) for image in content["images"] if image["id"] in image_ids],
        "categories": [dict(category) for category in content["categories"]],
        "annotations": annotations,
    }


def _as_annotations(rows: np.ndarray) -> list[dict[str, Any]]:
    """Detections in the form that the libraries' own loadRes gives them, without the outlines that it adds."""
    columns = zip(
        rows[:, 0].astype(np.int64).tolist(),
        rows[:, 6].astype(np.int64).tolist(),
        rows[:, 1:5].tolist(),
        rows[:, 5].tolist(),
        (rows[:, 3] * rows[:, 4]).tolist(),
        strict=True,
    )
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "score": score,
            "area": area,
            "iscrowd": 0,
        }
        for number, (image, category, box, score, area) in enumerate(columns, start=1)
    ]


def _evaluator(engine: Engine, truth: dict[str, Any], found: dict[str, Any]) -> Any:
    if engine == "faster":
        from faster_coco_eval import COCO, COCOeval_faster

        return COCOeval_faster(
            _indexed(COCO, truth), _indexed(COCO, found), iouType="bbox", print_function=lambda *_: None
        )
    from pycocotools.coco import COCO as ReferenceCOCO
    from pycocotools.cocoeval import COCOeval

    return COCOeval(_indexed(ReferenceCOCO, truth), _indexed(ReferenceCOCO, found), iouType="bbox")


def _indexed(kind: Any, dataset: dict[str, Any]) -> Any:
    coco = kind()
    coco.dataset = dataset
    coco.createIndex()
    return coco


@contextmanager
def _quiet() -> Iterator[None]:
    # both libraries print their progress and their tables
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _classes(dataset: dict[str, Any], precision: np.ndarray, recall: np.ndarray) -> list[ClassMetrics]:
    counts: dict[int, int] = {}
    for annotation in dataset["annotations"]:
        if not annotation["iscrowd"]:
            counts[annotation["category_id"]] = counts.get(annotation["category_id"], 0) + 1
    precision, recall = (array[..., _ALL_AREAS, _MOST_DETECTIONS] for array in (precision, recall))
    return [
        ClassMetrics(
            id=category["id"],
            name=str(category["name"]),
            boxes=counts.get(category["id"], 0),
            AP=_mean(precision[..., place]),
            AP50=_mean(precision[_IOU_50, :, place]),
            AR100=_mean(recall[:, place]),
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
