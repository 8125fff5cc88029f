import itertools
import math

import pytest
import torch

from msdeform.models.losses.matcher import HungarianMatcher, NonFiniteCostError


def example(counts, queries=5, layers=2, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape):
        return torch.rand(*shape, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.1

    logits = torch.randn(layers, len(counts), queries, classes, generator=generator, dtype=torch.float64)
    targets = [{"labels": torch.randint(0, classes, (n,), generator=generator), "boxes": boxes(n)} for n in counts]
    return logits, boxes(layers, len(counts), queries), targets


def literal_giou(a, b):
    """Generalised IoU of two cxcywh boxes, from their corners."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    wide = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
    high = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
    overlap = max(wide, 0) * max(high, 0)
    union = aw * ah + bw * bh - overlap
    hull_wide = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    hull_high = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    hull = hull_wide * hull_high
    return overlap / union - (hull - union) / hull


def literal_cost(logits, box, label, wanted):
    """Cost of one query for one box: 2 focal + 5 L1 - 2 GIoU."""
    p = 1 / (1 + math.exp(-logits[label]))
    taken = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
    left = 0.75 * p**2 * -math.log(1 - p + 1e-8)
    distance = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
    return 2 * (taken - left) + 5 * distance - 2 * literal_giou(box, wanted)


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
        torch.testing.assert_close(costs[layer, 0], expected, atol=1e-10, rtol=1e-10)


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


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ([320.0, 240.0, 100.0, 80.0], r"\(320, 240, 100, 80\)"),  # in pixels
        ([0.1, 0.1, 0.5, 2.5], r"\(0.1, 0.1, 0.5, 2.5\)"),
        ([-1.5, 0.5, 0.1, 0.1], r"\(-1.5, 0.5, 0.1, 0.1\)"),
        ([0.5, 0.5, 0.1, -0.1], r"\(0.5, 0.5, 0.1, -0.1\)"),  # corners taken for sizes
    ],
)
def test_a_box_that_is_no_share_of_the_image_is_named(box, shown):
    logits, boxes, targets = example((2, 3))
    targets[1] |= {"image_id": torch.tensor(139), "annotation_ids": torch.tensor([11, 12, 13])}
    targets[1]["boxes"][2] = torch.tensor(box)
    sentence = rf"boxes: .* as shares of the image, from 0 to 1, got {shown} in image 1 .*139\), annotation id 13"
    with pytest.raises(ValueError, match=sentence):
        HungarianMatcher()(logits, boxes, targets)


def test_a_box_over_the_border_is_a_target_like_others():
    logits, boxes, targets = example((2,))
    targets[0]["boxes"][0] = torch.tensor([1.05, -0.02, 1.4, 0.0])
    assert len(HungarianMatcher()(logits, boxes, targets).box) == 4


def literal_softmax_cost(logits, box, label, wanted):
    """Cost of one query for one box: -p + 5 L1 - 2 GIoU, of a softmax whose last class is no object."""
    p = math.exp(logits[label]) / sum(map(math.exp, logits))
    distance = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
    return -p + 5 * distance - 2 * literal_giou(box, wanted)


def test_every_softmax_cost_matches_its_definition():
    logits, boxes, targets = example((4,), classes=4)
    targets[0]["labels"].clamp_(max=2)
    matcher = HungarianMatcher(1.0, 5.0, 2.0, focal=False)
    costs = matcher.costs(logits, boxes, targets[0]["labels"][None], targets[0]["boxes"][None])
    pairs = list(zip(targets[0]["labels"].tolist(), targets[0]["boxes"].tolist(), strict=True))
    for layer in range(2):
        for query in range(5):
            one, box = logits[layer, 0, query].tolist(), boxes[layer, 0, query].tolist()
            expected = [literal_softmax_cost(one, box, label, wanted) for label, wanted in pairs]
            assert costs[layer, 0, query].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)


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
