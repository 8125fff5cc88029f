import itertools
import math

import pytest
import torch

from msdeform.models.boxes import cxcywh_to_xyxy, generalized_iou
from msdeform.models.matcher import HungarianMatcher, NonFiniteCostError


def example(counts, queries=5, layers=2, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape):
        return torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.1

    logits = torch.randn(layers, len(counts), queries, classes, generator=generator, dtype=torch.float64)
    targets = [{"labels": torch.randint(0, classes, (n,), generator=generator), "boxes": boxes(n)} for n in counts]
    return logits, boxes(layers, len(counts), queries), targets


def literal_cost(logits, box, label, wanted):
    """Cost of one query for one box: 2 focal + 5 L1 - 2 GIoU."""
    p = 1 / (1 + math.exp(-logits[label]))
    taken = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
    left = 0.75 * p**2 * -math.log(1 - p + 1e-8)
    distance = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
    overlap = generalized_iou(*(cxcywh_to_xyxy(torch.tensor(x, dtype=torch.float64)) for x in (box, wanted)))
    return 2 * (taken - left) + 5 * distance - 2 * float(overlap)


def cost_matrix(logits, boxes, target):
    return [
        [
            literal_cost(c, b, label, w)
            for label, w in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
        ]
        for c, b in zip(logits.tolist(), boxes.tolist(), strict=True)
    ]


@pytest.mark.parametrize("counts", [(3, 1, 0, 5), (0, 0), (7,)], ids=["mixed", "none", "more boxes than queries"])
def test_the_matching_is_the_cheapest_of_all(counts):
    logits, boxes, targets = example(counts)
    matches = HungarianMatcher()(logits, boxes, targets)
    found = {}
    for layer, image, query, box in zip(*(t.tolist() for t in vars(matches).values()), strict=True):
        found.setdefault((layer, image), []).append((query, box))
    for layer in range(2):
        for image, count in enumerate(counts):
            cost = cost_matrix(logits[layer, image], boxes[layer, image], targets[image])
            pairs = found.get((layer, image), [])
            assert len(pairs) == min(5, count)
            assert len({q for q, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
            every = (
                [list(zip(queries, range(count), strict=False)) for queries in itertools.permutations(range(5), count)]
                if count <= 5
                else [list(zip(range(5), chosen, strict=False)) for chosen in itertools.permutations(range(count), 5)]
            )
            least = min(sum(cost[q][b] for q, b in one) for one in every)
            assert sum(cost[q][b] for q, b in pairs) == pytest.approx(least, abs=1e-9)


def test_every_cost_matches_its_definition():
    logits, boxes, targets = example((4,))
    costs = HungarianMatcher().costs(logits, boxes, targets[0]["labels"][None], targets[0]["boxes"][None])
    for layer in range(2):
        expected = torch.tensor(cost_matrix(logits[layer, 0], boxes[layer, 0], targets[0]), dtype=torch.float64)
        torch.testing.assert_close(costs[layer, 0], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("label", [3, -1, 10**9])
def test_a_label_out_of_range_is_named(label):
    logits, boxes, targets = example((2, 3))
    targets[1]["labels"][2] = label
    # float32 carries the labels to the host
    logits, boxes = logits.float(), boxes.float()
    with pytest.raises(ValueError, match=rf"expected classes 0 to 2, got {label} in image 1 of the batch, .* index 2"):
        HungarianMatcher()(logits, boxes, targets)
    targets[1] |= {"image_id": torch.tensor(139), "annotation_ids": torch.tensor([11, 12, 13])}
    with pytest.raises(ValueError, match=r"image 1 of the batch \(image_id 139\), annotation id 13"):
        HungarianMatcher()(logits, boxes, targets)


def test_numbers_that_are_not_finite_are_named_never_masked():
    logits, boxes, targets = example((2, 3))
    broken = logits.clone()
    broken[1, 1, 0, :] = float("nan")
    targets[1]["image_id"] = torch.tensor(139)
    with pytest.raises(NonFiniteCostError, match=r"\(image_id 139\), layer 1: pred_logits has 3 of 15 values"):
        HungarianMatcher()(broken, boxes, targets)
    targets[0]["boxes"][1, 2] = float("inf")
    with pytest.raises(NonFiniteCostError, match=r"image 0 of the batch, layer 0: boxes has 1 of 8 values"):
        HungarianMatcher()(logits, boxes, targets)


def test_an_image_without_boxes_has_no_cost_to_be_wrong():
    logits, boxes, targets = example((0, 2))
    logits[0, 0] = float("nan")
    assert (HungarianMatcher()(logits, boxes, targets).image == 1).all()
