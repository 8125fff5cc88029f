import dataclasses
import json
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from msdeform.models.catalog import config_of, list_models
from msdeform.models.zoo import build_model, create_criterion, create_model

PUBLISHED = {
    "fasterrcnn_resnet50_fpn": 41.76,
    "detr_r50": 41.52,
    "detr_r50_dc5": 41.52,
    "detr_r50_dc5_plus": 41.58,
    "detr_demo": 41.41,
    "deformable_detr_r50_single_scale": 34.07,
    "deformable_detr_r50_single_scale_dc5": 34.07,
    "deformable_detr_r50": 40.07,
    "deformable_detr_r50_dc5": 40.07,
    "deformable_detr_r50_refine": 40.85,
    "deformable_detr_r50_two_stage": 41.18,
}


def test_models_are_listed_by_name():
    names = list_models()
    assert names == sorted(names)
    assert set(names) > PUBLISHED.keys()
    for name in PUBLISHED:
        other = {"detr_demo": "detr_demo_r101"}.get(name, name.replace("r50", "r101").replace("resnet50", "resnet101"))
        assert config_of(other) == dataclasses.replace(config_of(name), backbone="resnet101")
    with pytest.raises(ValueError, match=r"name: no model is called 'detr_r5'; did you mean detr_r50 or "):
        create_model("detr_r5")
    with pytest.raises(ValueError, match=r"no model is called 'Deformable-DETR'; did you mean deformable_detr_r50 or "):
        create_model("Deformable-DETR")
    with pytest.raises(ValueError, match=r"no model is called 'yolo'; expected one of deformable_detr_mini, "):
        create_model("yolo")


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_sizes_are_the_published_ones(name, millions):
    with torch.device("meta"):
        model = create_model(name, backbone_frozen=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", ["detr_tiny", "deformable_detr_tiny", "fasterrcnn_tiny"])
def test_a_model_of_any_family_is_rebuilt_from_json(name):
    model = create_model(name, num_classes=3)
    again = build_model(json.loads(json.dumps(model.config.to_dict())))
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="family: expected one of deformable_detr, detr, detr_demo, faster_rcnn, got"):
        build_model({"family": "yolo"})


def test_a_model_built_by_hand_has_no_description():
    model = create_model("detr_tiny")
    model.config = None
    for function in (type(model).require_config, create_criterion):
        with pytest.raises(ValueError, match="got one built from parts by hand"):
            function(model)


def test_overrides_are_fields_of_the_configuration():
    config = create_model("deformable_detr_tiny", num_classes=3, num_queries=7, aux_loss=False).config
    assert (config.num_classes, config.num_queries, config.aux_loss) == (3, 7, False)


def test_a_model_is_rebuilt_from_its_configuration_as_json():
    model = create_model("deformable_detr_tiny", num_classes=3, with_box_refine=True, two_stage=True)
    stored = json.loads(json.dumps(dataclasses.asdict(model.config)))
    again = build_model(stored)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="colour: not a field"):
        build_model({**stored, "colour": 1})


def test_the_criterion_follows_the_model():
    model = create_model("deformable_detr_tiny", dec_layers=2, with_box_refine=True, two_stage=True)
    suffixes = {name.removeprefix("loss_ce") for name in create_criterion(model).weight_dict if "loss_ce" in name}
    assert suffixes == {"", "_0", "_enc"}
    config = dataclasses.replace(model.config, aux_loss=False, two_stage=False)
    assert set(create_criterion(config).weight_dict) == {"loss_ce", "loss_bbox", "loss_giou"}


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_backbone_weights_from_a_file(published, suffix, tmp_path):
    path = tmp_path / f"resnet18.{suffix}"
    if suffix == "pth":
        torch.save(published, path)
    else:
        save_file(published, path)
    model = create_model("deformable_detr_tiny", backbone="resnet18", backbone_weights=path)
    assert model.config.backbone_frozen
    body = model.backbone[0].body
    torch.testing.assert_close(body.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])
    torch.testing.assert_close(body.bn1.running_var, published["bn1.running_var"])
    assert not body.conv1.weight.requires_grad
    assert body.layer2[0].conv1.weight.requires_grad


def test_backbone_weights_that_do_not_fit(published, tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(published, path)
    with pytest.raises(ValueError, match=r"resnet18.pth does not hold the weights of resnet34: Missing key"):
        create_model("deformable_detr_tiny", backbone="resnet34", backbone_weights=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="expected a state dict in"):
        create_model("deformable_detr_tiny", backbone="resnet18", backbone_weights=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="backbone_weights: file of weights .* is damaged"):
        create_model("deformable_detr_tiny", backbone="resnet18", backbone_weights=path)
    with pytest.raises(FileNotFoundError, match="expected 'imagenet' or a file of weights, found no file"):
        create_model("deformable_detr_tiny", backbone="resnet18", backbone_weights=tmp_path / "none.pth")


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(ConnectionError, match=r"could not be downloaded from https.*no route.*backbone_weights=PATH"):
        create_model("deformable_detr_tiny", backbone="resnet18", backbone_weights="imagenet")
    with pytest.raises(ValueError, match=r"publishes ImageNet weights of resnet18, .*, not of resnet10_tiny"):
        create_model("deformable_detr_tiny", backbone_weights="imagenet")
