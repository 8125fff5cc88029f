"""The losses of transformers' detectors: theirs, and those of parts of a batch add up to the whole's."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="needs the package transformers")

from msdeform.integrations.detectors.deimv2 import departs
from msdeform.integrations.detectors.detector import TransformersDetector
from msdeform.integrations.detectors.image_settings import ImageSettings
from msdeform.integrations.detectors.training import TRAINED, TransformersConfig, TransformersCriterion
from msdeform.models.inference.image_size import ExactSize
from msdeform.models.inference.images import IMAGENET_MEAN, IMAGENET_STD
from msdeform.models.losses.matcher import NonFiniteCostError
from msdeform.train.config.options import Optim
from msdeform.train.engine.optim import make_optimizer
from tests.integrations.architectures import CLASSES, make

SIDE = 96
BOXES = (3, 2, 0, 0, 1, 4)
# of parts, these are averaged: what divides them is not the number of boxes
AVERAGED = {
    "d_fine": r"loss_ddf.*|loss",
    "deimv2": r"loss_(ddf|bbox|giou|fgl).*|loss",
}


def detector_of(name: str, **changes: Any) -> TransformersDetector:
    """In training, but for batch norms, which would look at the whole batch."""
    settings = ImageSettings(ExactSize(SIDE, SIDE), IMAGENET_MEAN, IMAGENET_STD)
    detector = TransformersDetector(make(name), settings, attn_backend="reference")
    if changes:
        described = TransformersConfig.from_dict(detector.require_config().to_dict())
        torch.manual_seed(0)
        detector = TransformersDetector.from_config(described, settings.size, "reference", overrides=changes).double()
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    return detector


def batch_of() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    random = torch.Generator().manual_seed(3)
    images = [torch.randn(3, SIDE, SIDE, generator=random).double() for _ in BOXES]
    targets = [
        {
            "labels": torch.randint(0, CLASSES, (count,), generator=random),
            "boxes": torch.rand(count, 4, generator=random).double() * 0.3 + 0.3,
        }
        for count in BOXES
    ]
    return images, targets


def losses_of(detector: TransformersDetector, sizes: tuple[int, ...]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Summed over passes of so many images, and the gradients."""
    criterion = TransformersCriterion(detector.model)
    images, targets = batch_of()
    detector.zero_grad()
    sums: dict[str, float] = {}
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        start += size
        losses = criterion(detector(images[part], targets[part]), targets[part], box_counts=BOXES)
        losses["loss"].backward()
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
    assert start == len(images)
    return sums, {key: one.grad.clone() for key, one in detector.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("name", ["rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr", "deformable_detr"])
def test_parts_of_a_batch_add_up_to_the_whole(name: str) -> None:
    detector = detector_of(name, group_detr=3) if name in ("lw_detr", "rf_detr") else detector_of(name)
    averaged = AVERAGED.get(name, "") + "|cardinality.*"
    whole, gradients = losses_of(detector, (6,))
    assert len(whole) > 4
    for sizes in ((2, 2, 2), (4, 2)):
        parts, others = losses_of(detector, sizes)
        exact = {key for key in whole if not re.fullmatch(averaged, key)}
        assert len(exact) > 2
        for key in exact:
            assert parts[key] == pytest.approx(whole[key], rel=1e-6 if name in ("d_fine", "deimv2") else 1e-9), key
        if "loss" in exact:
            for key, gradient in gradients.items():
                torch.testing.assert_close(others[key], gradient, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["rt_detr_v2", "deimv2"])
def test_the_losses_are_those_of_transformers(name: str) -> None:
    detector = detector_of(name, num_denoising=8).float()
    images, targets = batch_of()
    images = [image.float() for image in images]
    labels = [{"class_labels": one["labels"], "boxes": one["boxes"].float()} for one in targets]
    torch.manual_seed(5)
    expected = detector.model(pixel_values=torch.stack(images), labels=labels)
    torch.manual_seed(5)
    found = TransformersCriterion(detector.model)(detector(images, targets), targets)
    assert any("_dn_" in key for key in found)
    assert found.keys() == {*expected.loss_dict, "loss"}
    torch.testing.assert_close(found["loss"], expected.loss)
    # the model is left as it was
    assert detector.model.loss_function.__name__.endswith("ForObjectDetectionLoss")


def test_predictions_that_are_no_numbers_are_told_apart_from_wrong_targets() -> None:
    detector = detector_of("rt_detr_v2")
    criterion = TransformersCriterion(detector.model)
    images, targets = batch_of()
    outputs = detector(images, targets)
    with pytest.raises(ValueError, match="labels: expected classes 0 to 4, got 5 in image 0 of the batch"):
        criterion(outputs, [{**targets[0], "labels": targets[0]["labels"] * 0 + 5}, *targets[1:]])
    with torch.no_grad():
        next(detector.model.model.decoder.layers[0].parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteCostError, match="expected finite predictions, got NaN or infinity"):
        criterion(detector(images, targets), targets)
    with pytest.raises(ValueError, match="expected those of model"):
        criterion(detector.eval()(images), targets)


def test_a_model_without_losses_is_refused() -> None:
    with pytest.raises(ValueError, match=f"PPDocLayoutV2.* has no losses in transformers.*{TRAINED[0]}"):
        TransformersCriterion(make("pp_doclayout_v2"))


@pytest.mark.parametrize("name", ["rt_detr_v2", "deimv2", "lw_detr", "rf_detr"])
def test_backbones_learn_slower(name: str) -> None:
    detector = detector_of(name)
    groups = make_optimizer(detector, Optim(lr=1e-3), backbone_trained=True).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    backbone = [parameter for parameter in detector.body.parameters() if parameter.requires_grad]
    assert backbone
    assert {rates[id(parameter)] for parameter in backbone} == {1e-4}
    assert len(groups) == 3
    assert len(rates) == sum(parameter.requires_grad for parameter in detector.parameters())


def test_a_description_rebuilds_the_model() -> None:
    detector = detector_of("d_fine")
    described = TransformersConfig.from_dict(detector.require_config().to_dict())
    again = TransformersDetector.from_config(described, ExactSize(SIDE, SIDE), "reference", num_classes=2)
    assert (again.require_config().num_classes, len(again.categories)) == (2, 2)
    assert again.settings == detector.settings
    shapes = {key: tensor.shape for key, tensor in detector.state_dict().items()}
    changed = {key for key, tensor in again.state_dict().items() if tensor.shape != shapes[key]}
    assert changed
    assert all("class_embed" in key or "enc_score_head" in key for key in changed)
    with pytest.raises(
        ValueError, match=r"^override: num_querys is not a field .* of d_fine; did you mean num_queries"
    ):
        TransformersDetector.from_config(described, None, "reference", overrides={"num_querys": 3})


def test_norms_that_were_folded_into_other_weights_stay_constants() -> None:
    detector = detector_of("rt_detr_v2")
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 2
    fresh, *others = norms
    fresh.reset_running_stats()  # of no weights yet: it learns its statistics
    for norm in others:
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    assert detector.train() is detector
    assert fresh.training
    assert not any(norm.training for norm in others)
    images, targets = batch_of()
    detector(images, targets)
    assert all(bool((norm.running_mean == 0).all()) for norm in others)
    assert bool((fresh.running_mean != 0).any())


def test_a_configuration_asks_for_the_authors_code_of_deimv2() -> None:
    described = detector_of("deimv2").require_config()
    own, authors = (
        TransformersDetector.from_config(described, ExactSize(SIDE, SIDE), "reference", overrides=overrides)
        for overrides in ({}, {"authors_code": True})
    )
    assert own.model.model.enc_output is not None
    assert departs(own.model.config)
    assert not departs(authors.model.config)
    removed = own.state_dict().keys() - authors.state_dict().keys()
    assert removed
    assert all(".enc_output." in name for name in removed)
    images, targets = batch_of()
    images = [image.float() for image in images]
    seen: list[Tensor] = []
    authors.model.model.decoder.query_pos_head.register_forward_hook(lambda *given: seen.append(given[2]))
    TransformersCriterion(authors.model)(authors(images, targets), targets)["loss"].backward()
    assert len(seen) > 1
    assert all(one is seen[0] for one in seen)
    # a checkpoint of it is one of the authors' code again
    again = TransformersDetector.from_config(authors.require_config(), ExactSize(SIDE, SIDE), "reference")
    assert again.state_dict().keys() == authors.state_dict().keys()
    with pytest.raises(ValueError, match="authors_code: expected a DEIMv2, got a rt_detr"):
        detector_of("rt_detr", authors_code=True)
