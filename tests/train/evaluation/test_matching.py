"""What each detection and each object came to: by hand, against COCO's own tools, and what must add up."""

from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msdeform.train.data.annotations import Annotations
from msdeform.train.evaluation.matching import (
    DETECTIONS,
    ERRORS,
    OBJECTS,
    Matches,
    Outcomes,
    confusion_matrix,
    error_table,
    match_detections,
    outcomes,
    worst_images,
)
from tests.train.evaluation.made import annotations_of, noisy_data

CAT, DOG = 3, 5


@pytest.fixture
def by_hand(annotation_file: Any) -> tuple[Annotations, np.ndarray]:
    """One image of everything that can happen, and a second in which there is nothing but a false detection."""
    boxes = [
        (CAT, [0, 0, 10, 10], 0),  # found, and found again
        (DOG, [20, 0, 10, 10], 0),  # detected as a cat
        (CAT, [0, 15, 10, 10], 0),  # half its width aside: an IoU of a third
        (CAT, [30, 20, 4, 4], 0),  # missed
        (DOG, [12, 0, 6, 30], 1),  # a crowd
    ]
    path = annotation_file(
        *({"category_id": category, "bbox": box, "iscrowd": crowd} for category, box, crowd in boxes),
        images=[{"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} for number in (7, 8)],
        categories=[{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
    )
    rows = [
        [7, 0, 0, 10, 10, 0.9, CAT],
        [7, 0, 0, 10, 9, 0.8, CAT],
        [7, 20, 0, 10, 10, 0.7, CAT],
        [7, 5, 15, 10, 10, 0.6, CAT],
        [7, 13, 3, 3, 3, 0.5, DOG],  # on the crowd: counts for nothing
        [8, 1, 1, 5, 5, 0.4, DOG],
        [7, 30, 20, 4, 4, 0.1, CAT],  # below the threshold
        [9, 1, 1, 5, 5, 0.9, DOG],  # of an image that does not count
        [7, 1, 1, 5, 5, 0.9, 99],  # of a category that is not annotated
    ]
    return Annotations.load(path), np.array(rows, dtype=float)


def test_every_outcome_by_hand(by_hand: tuple[Annotations, np.ndarray]) -> None:
    annotations, rows = by_hand
    matches = match_detections(rows, annotations, [7, 8])
    assert matches.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.1, 0.4]
    assert matches.objects.tolist() == [0, -1, -1, -1, 3, -1]
    assert matches.object_counts.tolist() == [3, 1]
    found = outcomes(matches, [0.3, 0.3])
    assert [DETECTIONS[fate] for fate in found.detections] == [
        "right",
        "duplicate",
        "confused",
        "badly placed",
        "false",
    ]
    assert [OBJECTS[fate] for fate in found.objects] == ["found", "confused", "badly placed", "missed"]
    assert found.partners.tolist() == [0, 0, 1, 2, -1]
    #                                             cat  dog  background
    assert confusion_matrix(matches, found).tolist() == [[1, 0, 2], [1, 0, 0], [2, 1, 0]]
    assert {kind: counts.tolist() for kind, counts in error_table(matches, found).items()} == {
        "found": [1, 0],
        "missed": [1, 0],
        "false": [0, 1],
        "confused": [0, 1],
        "badly placed": [1, 0],
        "duplicate": [1, 0],
    }
    ones = dict.fromkeys(("found", "missed", "confused", "badly placed", "duplicate"), 1)
    none = dict.fromkeys(("found", *ERRORS), 0)
    why = [
        "1 cat missed",
        "1 dog detected as cat (score 0.70)",
        "1 cat badly placed (IoU 0.33)",
        "1 cat detected again (score 0.80)",
    ]
    assert worst_images(matches, found, 20) == [
        {"image_id": 7, "file_name": "7.png", "errors": 4, **none, **ones, "why": why},
        {"image_id": 8, "file_name": "8.png", "errors": 1, **none, "false": 1, "why": ["1 false dog (score 0.40)"]},
    ]
    assert len(worst_images(matches, found, 1)) == 1
    # the missed one is found at a lower score of its class alone
    assert [OBJECTS[fate] for fate in outcomes(matches, [0.05, 1.0]).objects][-1] == "found"


def test_an_image_without_an_error_is_none_of_the_worst(by_hand: tuple[Annotations, np.ndarray]) -> None:
    annotations, rows = by_hand
    matches = match_detections(rows, annotations, [8])
    assert len(matches.object_labels) == 0
    nothing = outcomes(matches, [0.5, 0.5])
    assert worst_images(matches, nothing, 20) == []
    assert not confusion_matrix(matches, nothing).any()
    assert confusion_matrix(matches, outcomes(matches, [0.5, 0.3])).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert len(match_detections(np.empty((0, 7)), annotations, [7]).scores) == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_same_detections_are_right_as_to_cocos_own_tools(seed: int, tmp_path: Any) -> None:
    content, rows = noisy_data(seed)
    matches = match_detections(rows, annotations_of(content, tmp_path), [image["id"] for image in content["images"]])
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluator.params.areaRng, evaluator.params.maxDets = evaluator.params.areaRng[:1], [100]
    evaluator.evaluate()
    theirs, mine = [], []
    for one in filter(None, evaluator.evalImgs):
        for score, match, ignored in zip(one["dtScores"], one["dtMatches"][0], one["dtIgnore"][0], strict=True):
            if not ignored:
                theirs.append((one["image_id"], one["category_id"], score, match > 0))
    categories = matches.annotations.categories
    for image, label, score, right in zip(matches.images, matches.labels, matches.scores, matches.right, strict=True):
        mine.append((matches.image_ids[image], categories[label].id, score, right))
    assert len(rows) > len(theirs) > 300  # some are on crowds
    assert sorted(mine) == sorted(theirs)
    assert 0.1 < matches.right.mean() < 0.8


@pytest.mark.parametrize("seed", range(3))
def test_objects_and_detections_all_add_up(seed: int, tmp_path: Any) -> None:
    content, rows = noisy_data(seed)
    matches = match_detections(rows, annotations_of(content, tmp_path), [image["id"] for image in content["images"]])
    thresholds = [0.2, 0.4, 0.6]
    found = outcomes(matches, thresholds)
    kept = np.bincount(matches.labels[found.kept], minlength=3)
    assert kept.tolist() == [
        int((matches.scores[matches.labels == label] >= threshold).sum()) for label, threshold in enumerate(thresholds)
    ]
    matrix, table = confusion_matrix(matches, found), error_table(matches, found)
    assert matrix[:3].sum(1).tolist() == matches.object_counts.tolist()
    assert matrix[:, :3].sum(0).tolist() == kept.tolist()
    assert np.diag(matrix)[:3].tolist() == table["found"].tolist()
    parts = sum(table[fate] for fate in OBJECTS)
    assert parts.tolist() == matches.object_counts.tolist()
    assert sum(values.sum() for values in table.values()) == len(found.kept) + table["missed"].sum()
    worst = worst_images(matches, found, 1000)
    assert sum(one["errors"] for one in worst) == sum(int(table[kind].sum()) for kind in ERRORS)
    assert [one["errors"] for one in worst] == sorted((one["errors"] for one in worst), reverse=True)
    check_geometry(matches, found)


def check_geometry(matches: Matches, found: Outcomes) -> None:
    """Every pair overlaps as its outcome says, and all outcomes occur."""
    assert set(found.detections) == set(range(len(DETECTIONS)))
    assert set(found.objects) == set(range(len(OBJECTS)))
    for place, fate, partner in zip(found.kept, found.detections, found.partners, strict=True):
        name = DETECTIONS[fate]
        if name == "false":
            assert partner == -1
            continue
        low = np.maximum(matches.boxes[place, :2], matches.object_boxes[partner, :2])
        high = np.minimum(matches.boxes[place, 2:], matches.object_boxes[partner, 2:])
        both = np.prod(np.maximum(high - low, 0))
        areas = [np.prod(box[2:] - box[:2]) for box in (matches.boxes[place], matches.object_boxes[partner])]
        overlap = both / (sum(areas) - both)
        same = matches.labels[place] == matches.object_labels[partner]
        assert matches.images[place] == matches.object_images[partner]
        assert same == (name != "confused")
        assert 0.1 <= overlap < 0.5 if name == "badly placed" else overlap >= 0.5
