import math

import pytest
import torch

from msdeform.models.boxes import cxcywh_to_xyxy, generalized_iou
from msdeform.models.criterion import SetCriterion
from msdeform.models.matcher import HungarianMatcher

C, Q, S = 4, 6, 9


def layer(generator, queries, batch, dtype):
    logits = torch.randn(batch, queries, C, generator=generator, dtype=dtype)
    boxes = torch.rand(batch, queries, 4, generator=generator, dtype=dtype) * 0.5 + 0.1
    return {"pred_logits": logits.requires_grad_(), "pred_boxes": boxes.requires_grad_()}


def example(counts, dtype=torch.float64):
    """Outputs of three decoder layers and an encoder, and targets with `counts` boxes."""
    generator = torch.Generator().manual_seed(0)
    outputs = layer(generator, Q, len(counts), dtype)
    outputs["aux_outputs"] = [layer(generator, Q, len(counts), dtype) for _ in range(2)]
    outputs["enc_outputs"] = layer(generator, S, len(counts), dtype)
    targets = [
        {
            "labels": torch.randint(0, C, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator, dtype=dtype) * 0.5 + 0.1,
        }
        for n in counts
    ]
    return outputs, targets


def criterion():
    return SetCriterion(aux_layers=2, two_stage=True)


def leaves(outputs):
    layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
    return [one[name] for one in layers for name in ("pred_logits", "pred_boxes")]


def literal_losses(outputs, targets):
    """The three losses of one layer, term by term, from Python floats."""
    matches = HungarianMatcher()(outputs["pred_logits"][None], outputs["pred_boxes"][None], targets)
    matched = {
        (image, query): box
        for image, query, box in zip(matches.image.tolist(), matches.query.tolist(), matches.box.tolist(), strict=True)
    }
    num_boxes = max(sum(len(target["labels"]) for target in targets), 1)
    focal = distance = overlap = 0.0
    for image, (logits, boxes) in enumerate(
        zip(outputs["pred_logits"].tolist(), outputs["pred_boxes"].tolist(), strict=True)
    ):
        for query, scores in enumerate(logits):
            box = matched.get((image, query))
            label = None if box is None else int(targets[image]["labels"][box])
            for c, score in enumerate(scores):
                p = 1 / (1 + math.exp(-score))
                focal += 0.25 * (1 - p) ** 2 * -math.log(p) if c == label else 0.75 * p**2 * -math.log(1 - p)
            if box is not None:
                wanted = targets[image]["boxes"][box]
                distance += sum(abs(a - b) for a, b in zip(boxes[query], wanted.tolist(), strict=True))
                chosen = outputs["pred_boxes"][image, query].detach()
                overlap += 1 - float(generalized_iou(cxcywh_to_xyxy(chosen), cxcywh_to_xyxy(wanted)))
    # the published form: the mean over queries, summed over images and classes, times the number of queries
    queries = outputs["pred_logits"].shape[1]
    return focal / queries / num_boxes * queries, distance / num_boxes, overlap / num_boxes


@pytest.mark.parametrize("counts", [(3, 1, 0), (0, 0), (8, 2)], ids=["mixed", "none", "more boxes than queries"])
def test_losses_match_a_literal_loop(counts):
    outputs, targets = example(counts)
    losses = criterion()(outputs, targets)
    binary = [target | {"labels": torch.zeros_like(target["labels"])} for target in targets]
    cases = [("", outputs, targets), ("_enc", outputs["enc_outputs"], binary)]
    cases += [(f"_{i}", aux, targets) for i, aux in enumerate(outputs["aux_outputs"])]
    for suffix, one, wanted in cases:
        for name, expected in zip(("loss_ce", "loss_bbox", "loss_giou"), literal_losses(one, wanted), strict=True):
            assert losses[name + suffix].item() == pytest.approx(expected, rel=1e-9), name + suffix


def test_names_and_weights_are_the_published_ones():
    one = criterion()
    assert one.weight_dict == {
        f"{name}{suffix}": weight
        for suffix in ("", "_0", "_1", "_enc")
        for name, weight in (("loss_ce", 2.0), ("loss_bbox", 5.0), ("loss_giou", 2.0))
    }
    losses = one(*example((2, 1)))
    logged = {"class_error", *(f"cardinality_error{s}" for s in ("", "_0", "_1", "_enc"))}
    assert set(losses) == set(one.weight_dict) | logged
    assert all(loss.shape == () for loss in losses.values())
    assert set(SetCriterion(aux_layers=0, two_stage=False).weight_dict) == {"loss_ce", "loss_bbox", "loss_giou"}


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)], ids=["boxes", "none"])
def test_every_output_takes_part_in_the_graph(counts):
    outputs, targets = example(counts)
    one = criterion()
    losses = one(outputs, targets)
    sum(losses[name] * weight for name, weight in one.weight_dict.items()).backward()
    for tensor in leaves(outputs):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    boxes_move = [bool(tensor.grad.any()) for tensor in leaves(outputs)[1::2]]
    assert boxes_move == [sum(counts) > 0] * 4


def test_the_number_of_boxes_can_be_given():
    outputs, targets = example((3, 1))
    own, given = criterion()(outputs, targets), criterion()(outputs, targets, num_boxes=8.0)
    for name in criterion().weight_dict:
        torch.testing.assert_close(own[name] * 4, given[name] * 8)


def test_what_is_logged():
    outputs, targets = example((2, 1))
    logits = torch.full_like(outputs["pred_logits"], -5.0)
    logits[:, 0] = 5.0
    outputs["pred_logits"] = logits
    losses = criterion()(outputs, targets)
    assert losses["cardinality_error"] == 0.5
    for target in targets:  # every class ties, and the first wins
        target["labels"].zero_()
    assert criterion()(outputs, targets)["class_error"] == 0
    for target in targets:
        target["labels"].fill_(2)
    assert criterion()(outputs, targets)["class_error"] == 100
    assert criterion()(*example((0, 0)))["class_error"] == 0


def test_low_precision_is_widened_even_under_autocast():
    outputs, targets = example((2, 1), torch.float32)
    low = {"pred_logits": outputs["pred_logits"].bfloat16(), "pred_boxes": outputs["pred_boxes"].bfloat16()}
    high = {name: tensor.float() for name, tensor in low.items()}
    one = SetCriterion(aux_layers=0, two_stage=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = one(low, targets)
    expected = one(high, targets)
    for name in one.weight_dict:
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda targets: targets.pop(), "targets: expected 2, one an image, got 1"),
        (lambda targets: targets[1].pop("boxes"), r"targets\[1\]: expected labels and boxes, got no boxes"),
        (lambda targets: targets[0].update(boxes=torch.zeros(3, 4)), r"\[0\]: expected boxes \(N=2, 4\), got \(3, 4\)"),
        (lambda targets: targets[0].update(labels=torch.zeros(2)), r"\[0\]: expected integer labels .* torch.float32"),
    ],
)
def test_bad_targets_are_named(change, sentence):
    outputs, targets = example((2, 1))
    change(targets)
    with pytest.raises(ValueError, match=sentence):
        criterion()(outputs, targets)
