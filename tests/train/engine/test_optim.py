"""The official parameter groups, and the learning rate over a run."""

import pytest
import torch

from msdeform.models.zoo import create_model
from msdeform.train.config.options import Optim, Schedule
from msdeform.train.engine.optim import make_optimizer, rate_at


def test_groups_are_the_official_ones() -> None:
    model = create_model("deformable_detr_tiny", num_classes=3, attn_backend="reference")
    optimizer = make_optimizer(model, Optim(), backbone_trained=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"main": 2e-4, "backbone": 2e-5, "offsets": 2e-5}
    )
    assert all(group["weight_decay"] == 1e-4 for group in groups.values())
    held = {name: sorted(names[id(p)] for p in group["params"]) for name, group in groups.items()}
    assert all(name.startswith("backbone.0.") for name in held["backbone"])
    assert held["offsets"] == sorted(
        f"transformer.{module}.{kind}"
        for module in (
            "encoder.layers.0.self_attn.sampling_offsets",
            "decoder.layers.0.cross_attn.sampling_offsets",
            "reference_points",
        )
        for kind in ("weight", "bias")
    )
    everything = [name for group in held.values() for name in group]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters())


def test_frozen_parameters_are_in_no_group_and_an_untrained_backbone_learns_as_fast() -> None:
    model = create_model("deformable_detr_tiny", num_classes=3, attn_backend="reference")
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    optimizer = make_optimizer(model, Optim(), backbone_trained=False)
    assert [group["name"] for group in optimizer.param_groups] == ["main", "offsets"]
    model = create_model("deformable_detr_tiny", num_classes=3, attn_backend="reference")
    rates = {g["name"]: g["lr"] for g in make_optimizer(model, Optim(), backbone_trained=False).param_groups}
    assert rates["backbone"] == rates["main"] == 2e-4


def test_the_rate_drops_tenfold_at_the_published_epoch() -> None:
    factor = rate_at(Schedule(), steps_per_epoch=10, total_steps=500)
    assert [factor(step) for step in (0, 399, 400, 499)] == [1.0, 1.0, 0.1, 0.1]


def test_warm_up_and_cosine_meet_at_one_and_end_near_zero() -> None:
    factor = rate_at(Schedule(schedule="cosine", warmup_steps=10), steps_per_epoch=10, total_steps=100)
    assert [factor(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor(55) == pytest.approx(0.5)
    assert factor(99) < 0.001
    assert rate_at(Schedule(schedule="constant"), 10, 100)(99) == 1.0


def test_the_first_step_of_warm_up_learns() -> None:
    weight = torch.nn.Linear(1, 1)
    optimizer = make_optimizer(weight, Optim(), backbone_trained=False)
    assert rate_at(Schedule(warmup_steps=5), 10, 100)(0) * optimizer.param_groups[0]["lr"] > 0
