import copy

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from msdeform.models.losses.matcher import NonFiniteCostError
from msdeform.models.zoo import create_criterion, create_model


def tiny():
    torch.manual_seed(0)
    model = create_model("fasterrcnn_tiny", num_classes=3)
    # the second stage's layers are torchvision's own, and wide: fewer boxes for them
    model.detector.roi_heads.fg_bg_sampler.batch_size_per_image = 16
    model.detector.rpn._post_nms_top_n = {"training": 50, "testing": 50}
    return model


TARGETS = [
    {"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.4, 0.2, 0.2]])},
    {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
]
IMAGES = [torch.rand(3, 96, 128), torch.rand(3, 64, 100)]


def test_it_is_torchvisions_own():
    ours = create_model("fasterrcnn_resnet50_fpn", num_classes=90)
    torch.manual_seed(0)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    theirs_norm = {n for n in theirs.state_dict() if not n.endswith("num_batches_tracked")}
    assert {n for n in ours.detector.state_dict() if not n.endswith("num_batches_tracked")} == theirs_norm
    frozen = create_model("fasterrcnn_resnet50_fpn", num_classes=90, backbone_frozen=True)
    weights = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    frozen.detector.load_state_dict(weights)
    # the same numbers as torchvision's, given images that need neither resizing nor normalising
    theirs.backbone.load_state_dict(frozen.detector.backbone.state_dict(), strict=False)
    theirs.transform = copy.deepcopy(theirs.transform)
    theirs.transform.image_mean, theirs.transform.image_std = [0.0] * 3, [1.0] * 3
    theirs.transform.resize = lambda image, target: (image, target)
    images = [torch.rand(3, 96, 128), torch.rand(3, 64, 100)]
    with torch.no_grad():
        expected = theirs.eval()(images)
        found = frozen.eval()(images)
        results = frozen.post_process(found, torch.tensor([[96, 128], [64, 100]]))
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result["boxes"], wanted["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(result["scores"], wanted["scores"])
        assert torch.equal(result["labels"] + 1, wanted["labels"])


def test_losses_reach_every_parameter_that_is_not_frozen():
    model, criterion = tiny().train(), create_criterion("fasterrcnn_tiny")
    losses = criterion(model(IMAGES), TARGETS)
    assert losses.keys() == criterion.weight_dict.keys()
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_losses_are_torchvisions_own():
    """Whose labels count from 1, and whose boxes are corners in pixels."""
    model, criterion = tiny().train(), create_criterion("fasterrcnn_tiny")
    torch.manual_seed(1)
    found = criterion(model(IMAGES), TARGETS)
    wanted = [
        {
            # of the shares above, in an image 128 wide and 96 high
            "boxes": torch.tensor([[38.4, 19.2, 89.6, 76.8], [25.6, 28.8, 51.2, 48.0]]),
            "labels": torch.tensor([1, 3]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    theirs = model.detector
    theirs.transform.image_mean, theirs.transform.image_std = [0.0] * 3, [1.0] * 3
    theirs.transform.resize = lambda image, target: (image, target)
    torch.manual_seed(1)
    expected = theirs(IMAGES, wanted)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        assert loss > 0
        torch.testing.assert_close(found[name], loss, rtol=1e-4, atol=1e-5)


def test_a_part_of_a_batch_counts_by_its_images():
    model, criterion = tiny().train(), create_criterion("fasterrcnn_tiny")
    outputs = model(IMAGES)
    torch.manual_seed(1)
    alone = criterion(outputs, TARGETS)
    torch.manual_seed(1)
    half = criterion(outputs, TARGETS, box_counts=[len(target["labels"]) for target in TARGETS] * 2)
    for name, loss in alone.items():
        torch.testing.assert_close(half[name], loss / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_float_dtype(dtype):
    """Boxes stay at least float32: there is no suppression of 16-bit boxes on a CPU."""
    model = tiny().eval()
    images = [torch.rand(3, 32, 64), torch.rand(3, 32, 32)]
    sizes = torch.tensor([[32, 64], [32, 32]])
    with torch.no_grad():
        expected = model.post_process(model(images), sizes)[0]
        found = model.to(dtype).post_process(model(images), sizes)[0]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert found["boxes"].dtype == found["scores"].dtype == wide
    assert len(found["boxes"]) == pytest.approx(len(expected["boxes"]), abs=8)
    assert found["scores"][0].item() == pytest.approx(expected["scores"][0].item(), abs=0.02)
    if dtype != torch.float16:  # a backward pass in float16 takes a CPU half a minute
        losses = create_criterion(model)(model.train()(images), TARGETS)
        assert {loss.dtype for loss in losses.values()} <= {torch.float32, wide}  # torchvision's own, of objectness
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_mistakes_are_named():
    model, criterion = tiny(), create_criterion("fasterrcnn_tiny")
    with pytest.raises(ValueError, match="outputs: expected those of the model in training mode"):
        criterion(model.eval()(IMAGES), TARGETS)
    outputs = model.train()(IMAGES)
    wrong = {**TARGETS[0], "labels": torch.tensor([0, 3]), "image_id": 139}
    with pytest.raises(ValueError, match=r"labels: .* 0 to 2, got 3 in image 0 of .* \(image_id 139\), .* index 1"):
        criterion(outputs, [wrong, TARGETS[1]])
    with pytest.raises(ValueError, match=r"boxes: .* shares of the image, .*, got \(50, 50, 40, 60\) in image 0"):
        criterion(outputs, [{**TARGETS[0], "boxes": TARGETS[0]["boxes"] * 100}, TARGETS[1]])
    flat = {**TARGETS[0], "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.4, 0.2, 0.0]]), "image_id": 139}
    with pytest.raises(ValueError, match=r"a height above 0, got \(0.3, 0.4, 0.2, 0\) in .* 139\), annotation index 1"):
        criterion(outputs, [flat, TARGETS[1]])
    with pytest.raises(ValueError, match="targets: expected 2, one an image, got 1"):
        criterion(outputs, TARGETS[:1])
    with torch.no_grad():
        next(model.detector.rpn.parameters()).fill_(float("nan"))
    with pytest.raises((NonFiniteCostError, ValueError)):
        criterion(model(IMAGES), TARGETS)


def test_detections_are_in_pixels_of_the_original_best_first():
    model = tiny().eval()
    with torch.no_grad():
        outputs = model(IMAGES)
    found = model.post_process(outputs, torch.tensor([[192, 256], [64, 100]]), top_k=5)
    assert len(found) == 2
    for one in found:
        assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)
        assert len(one["scores"]) <= 5
        assert one["boxes"].shape == (len(one["scores"]), 4)
