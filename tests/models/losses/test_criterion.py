import math

import pytest
import torch

from msdeform.models.losses.criterion import SetCriterion
from msdeform.models.losses.matcher import HungarianMatcher

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


def criterion(*, focal=True):
    return SetCriterion(aux_layers=2, two_stage=True, focal=focal)


def leaves(outputs):
    layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
    return [one[name] for one in layers for name in ("pred_logits", "pred_boxes")]


def literal_giou(a, b):
    """Generalised IoU of two cxcywh boxes: areas of rectangles between sorted edges."""
    edges = [[(box[axis] - box[axis + 2] / 2, box[axis] + box[axis + 2] / 2) for axis in (0, 1)] for box in (a, b)]
    overlap = hull = 1.0
    for (low, high), (other_low, other_high) in zip(*edges, strict=True):
        overlap *= max(min(high, other_high) - max(low, other_low), 0.0)
        hull *= max(high, other_high) - min(low, other_low)
    union = a[2] * a[3] + b[2] * b[3] - overlap
    return overlap / union - (hull - union) / hull


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
                overlap += 1 - literal_giou(boxes[query], wanted.tolist())
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


@pytest.mark.parametrize("focal", [True, False])
def test_parts_of_a_batch_add_up_to_the_whole(focal):
    counts = (3, 0, 8, 2)  # one image with more boxes than queries
    outputs, targets = example(counts)
    one = criterion(focal=focal)
    for target in targets:  # a softmax keeps the last class for no object
        target["labels"].clamp_(max=C - 2)
    whole = one(outputs, targets)

    def part(tree, rows):
        if isinstance(tree, dict):
            return {name: part(branch, rows) for name, branch in tree.items()}
        return [part(branch, rows) for branch in tree] if isinstance(tree, list) else tree[rows]

    rows = [slice(0, 1), slice(1, 4)]
    parts = [one(part(outputs, r), targets[r], box_counts=[len(target["labels"]) for target in targets]) for r in rows]
    for name in one.weight_dict:
        torch.testing.assert_close(sum(p[name] for p in parts), whole[name], rtol=1e-12, atol=0)


def literal_cross_entropy(output, targets, matcher, no_object_weight=0.1):
    """Weighted mean over all queries of -log p of the wanted class, one query at a time (DETR's softmax loss)."""
    logits, boxes = output["pred_logits"].detach(), output["pred_boxes"].detach()
    matches = matcher(logits[None], boxes[None], targets)
    wanted = {
        (i, q): int(targets[i]["labels"][b])
        for i, q, b in zip(matches.image.tolist(), matches.query.tolist(), matches.box.tolist(), strict=True)
    }
    total = weight = 0.0
    for image, rows in enumerate(logits.tolist()):
        for query, scores in enumerate(rows):
            label = wanted.get((image, query), len(scores) - 1)
            w = no_object_weight if label == len(scores) - 1 else 1.0
            total += w * (math.log(sum(math.exp(s) for s in scores)) - scores[label])
            weight += w
    return total / weight


@pytest.mark.parametrize("counts", [(3, 1, 0), (0, 0), (8, 2)], ids=["mixed", "none", "more boxes than queries"])
def test_softmax_loss_matches_a_literal_loop(counts):
    outputs, targets = example(counts)
    for target in targets:  # the last class is no object
        target["labels"].clamp_(max=outputs["pred_logits"].shape[-1] - 2)
    one = SetCriterion(aux_layers=2, two_stage=False, focal=False)
    assert one.weight_dict["loss_ce"] == one.matcher.cost_class == 1.0
    del outputs["enc_outputs"]
    losses = one(outputs, targets)
    for suffix, output in [("", outputs), *((f"_{i}", aux) for i, aux in enumerate(outputs["aux_outputs"]))]:
        expected = literal_cross_entropy(output, targets, one.matcher)
        assert losses["loss_ce" + suffix].item() == pytest.approx(expected, rel=1e-9)
    found = outputs["pred_logits"].argmax(-1) < outputs["pred_logits"].shape[-1] - 1
    expected = sum(abs(int(row.sum()) - n) for row, n in zip(found, counts, strict=True)) / len(counts)
    assert losses["cardinality_error"].item() == pytest.approx(expected)


def test_softmax_takes_no_label_of_no_object():
    outputs, targets = example((1,))
    targets[0]["labels"].fill_(outputs["pred_logits"].shape[-1] - 1)
    with pytest.raises(ValueError, match=f"labels: expected classes 0 to {C - 2}, got {C - 1}"):
        SetCriterion(aux_layers=2, two_stage=False, focal=False)(outputs, targets)


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


class OnDevice(torch.Tensor):
    """A tensor, and all made from it, as if on a device: what makes the host wait is counted or refused."""

    transfers = 0

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), settings=None):
        name = getattr(function, "__name__", "")
        if name in ("item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "unique"):
            raise AssertionError(f"{name} makes the host wait for the device")
        if name == "cpu":
            OnDevice.transfers += 1
            return arguments[0].as_subclass(torch.Tensor)
        if name == "__getitem__" and "bool" in str(arguments[1:]):
            raise AssertionError("a mask as an index makes the host wait for the device")
        return super().__torch_function__(function, types, arguments, settings or {})


@pytest.mark.parametrize("focal", [True, False])
@pytest.mark.parametrize("counts", [(3, 1, 0), (0, 0), (8, 2)], ids=["mixed", "none", "more boxes than queries"])
def test_the_host_waits_once_for_all_decoder_layers(focal, counts):
    """And once for the encoder, whose queries are other."""
    outputs, targets = example(counts)
    for target in targets:
        target["labels"].clamp_(max=C - 2)
    expected = criterion(focal=focal)(outputs, targets)

    def moved(tree):
        if isinstance(tree, dict):
            return {name: moved(branch) for name, branch in tree.items()}
        return [moved(branch) for branch in tree] if isinstance(tree, list) else tree.detach().as_subclass(OnDevice)

    OnDevice.transfers = 0
    losses = criterion(focal=focal)(moved(outputs), moved(targets))
    assert OnDevice.transfers == 2
    for name, loss in losses.items():
        torch.testing.assert_close(loss.as_subclass(torch.Tensor), expected[name].detach())


@pytest.mark.parametrize("focal", [True, False])
def test_low_precision_is_widened_even_under_autocast(focal):
    outputs, targets = example((2, 1), torch.float32)
    low = {"pred_logits": outputs["pred_logits"].bfloat16(), "pred_boxes": outputs["pred_boxes"].bfloat16()}
    high = {name: tensor.float() for name, tensor in low.items()}
    for target in targets:
        target["labels"].clamp_(max=C - 2)
    one = SetCriterion(aux_layers=0, two_stage=False, focal=focal)
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
