"""COCO's metrics: both libraries agree, and detections carry the data set's own ids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msdeform.models.detector import Detector
from msdeform.models.images import Size
from msdeform.train.coco import Annotations, CocoDetection
from msdeform.train.evaluate import METRICS, coco_metrics, coco_results, detect
from msdeform.train.transforms import evaluation_transform


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


def test_the_annotations_themselves_score_one_and_nothing_scores_zero(shapes: Path) -> None:
    path = shapes / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    ids = [image["id"] for image in content["images"]]
    perfect = [{**annotation, "score": 1.0} for annotation in content["annotations"]]
    assert coco_metrics(path, perfect, ids)["AP"] == pytest.approx(1.0)
    for engine in ("faster", "pycocotools"):
        metrics = coco_metrics(path, [], ids, engine)
        assert metrics.keys() == set(METRICS)
        assert metrics["AP"] == metrics["AP50"] == 0


def test_images_that_were_not_asked_for_do_not_count(shapes: Path) -> None:
    path = shapes / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    ids = [image["id"] for image in content["images"]][:3]
    perfect = [{**annotation, "score": 1.0} for annotation in content["annotations"] if annotation["image_id"] in ids]
    for engine in ("faster", "pycocotools"):
        assert coco_metrics(path, perfect, ids, engine)["AP"] == pytest.approx(1.0)


def test_files_that_lack_area_and_crowd_are_measured(annotation_file: Any) -> None:
    path = annotation_file({})
    content = json.loads(path.read_text())
    del content["annotations"][0]["iscrowd"]
    path.write_text(json.dumps(content))
    result = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 10], "score": 0.5}
    assert coco_metrics(path, [result], [7])["AP"] == pytest.approx(1.0)


def test_detections_carry_the_data_sets_category_ids() -> None:
    found = {
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.75, 0.5]),
        "boxes": torch.tensor([[1.0, 2.0, 11.0, 22.0], [0.0, 0.0, 4.0, 4.0]]),
    }
    assert coco_results(9, found, [3, 5]) == [
        {"image_id": 9, "category_id": 5, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75},
        {"image_id": 9, "category_id": 3, "bbox": [0.0, 0.0, 4.0, 4.0], "score": 0.5},
    ]


class Oracle(Detector):
    """A detector that knows the annotations: one query for each box, in the order of the images."""

    def __init__(self, data: CocoDetection) -> None:
        super().__init__()
        self.left = [data[index][1] for index in range(len(data))]
        self.n_classes = len(data.annotations.categories)

    def forward(self, images: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        targets, self.left = self.left[: len(images)], self.left[len(images) :]
        most = max(len(target["labels"]) for target in targets)
        logits = torch.full((len(images), most, self.n_classes), -20.0)
        boxes = torch.full((len(images), most, 4), 0.1)
        for row, target in enumerate(targets):
            queries = torch.arange(len(target["labels"]))
            logits[row, queries, target["labels"]] = 20.0
            boxes[row, queries] = target["boxes"]
        return {"pred_logits": logits, "pred_boxes": boxes}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_perfect_detector_scores_one_through_resizing_and_batching(coco_mini: Path, batch_size: int) -> None:
    path = coco_mini / "annotations" / "instances_val2017.json"
    data = CocoDetection(
        coco_mini / "val2017", Annotations.load(path), evaluation_transform(Size(96, 128)), subset=list(range(9))
    )
    oracle = Oracle(data)
    oracle.train()
    results = detect(oracle, data, torch.device("cpu"), batch_size=batch_size)
    assert oracle.training  # left as it was found
    # boxes reach out of some images by a fraction of a pixel, and are clipped when read
    assert coco_metrics(path, results, data.image_ids)["AP"] > 0.99
