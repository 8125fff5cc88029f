"""Names there and back: every tensor, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform.models.catalog import MODELS
from msdeform.models.weights.huggingface import family_of, from_huggingface, to_huggingface
from msdeform.models.weights.huggingface_config import config_from_args, config_from_huggingface, config_to_huggingface
from msdeform.models.zoo import build_model
from tests.models.huggingface import VARIANTS, dilated, randomise, saved, shorten_resnet50, theirs

# a layer of each kind is enough: names are made by rule
SMALL = {"enc_layers": 2, "dec_layers": 3, "dim_feedforward": 24, "hidden_dim": 32, "nheads": 4, "num_queries": 5}
CONFIGS: dict[str, dict[str, Any]] = {
    "detr": {"family": "detr"},
    "detr, learned positions": {"family": "detr", "position_embedding": "learned"},
    "single scale": {"family": "deformable_detr", "num_feature_levels": 1},
    "multi-scale": {"family": "deformable_detr"},
    "refine": {"family": "deformable_detr", "with_box_refine": True},
    "two-stage": {"family": "deformable_detr", "with_box_refine": True, "two_stage": True},
}


def state_of(config: dict[str, Any], backbone: str = "resnet10_tiny") -> dict[str, Tensor]:
    model = build_model({**SMALL, "backbone": backbone, "backbone_frozen": True, **config}, attn_backend="reference")
    randomise(model)
    return model.state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("backbone", ["timm", "transformers"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back_is_the_identity(config: dict[str, Any], backbone: str) -> None:
    state = state_of(config)
    there = to_huggingface(state, backbone=backbone)
    assert_same(from_huggingface(there), state)
    # with the same names again, so that nothing is lost on a second way
    assert_same(to_huggingface(from_huggingface(there), backbone=backbone), there)


def test_bottleneck_blocks_there_and_back() -> None:
    state = state_of({"family": "detr"}, backbone="resnet50")
    assert_same(from_huggingface(to_huggingface(state, backbone="transformers")), state)


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_of_transformers_there_and_back(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if dilated(variant):
        shorten_resnet50(monkeypatch)
    file = saved(theirs(variant), tmp_path)
    official = from_huggingface(file)
    back = to_huggingface(official, backbone="timm" if dilated(variant) else "transformers")
    # a head that the file names once has all its names after
    assert_same({name: back[name] for name in file}, file)
    for name in back.keys() - file.keys():
        assert any(torch.equal(back[name], tensor) for other, tensor in file.items() if "_embed." in other), name
    assert_same(from_huggingface(back), official)


def test_projections_are_split_in_their_order() -> None:
    state = state_of({"family": "deformable_detr"})
    there = to_huggingface(state)
    whole = state["transformer.decoder.layers.1.self_attn.in_proj_weight"]
    for i, name in enumerate("qkv"):
        part = there[f"model.decoder.layers.1.self_attn.{name}_proj.weight"]
        assert torch.equal(part, whole[32 * i : 32 * (i + 1)])
    assert "model.backbone.conv_encoder.model.layer1.0.conv1.weight" in there
    assert not any("in_proj" in name for name in there)


def test_counts_of_batches_are_left_out_as_their_norms_are_frozen() -> None:
    model = build_model({**SMALL, "family": "detr", "backbone": "resnet10_tiny"})
    there = to_huggingface(model.state_dict())
    assert any(name.endswith("num_batches_tracked") for name in model.state_dict())
    assert not any(name.endswith("num_batches_tracked") for name in there)


def test_shared_heads_come_back_under_all_their_names() -> None:
    state = state_of(CONFIGS["refine"])
    there = to_huggingface(state)
    # as files of different versions of transformers have them: either name alone
    for dropped in ("model.decoder.bbox_embed.", "bbox_embed."):
        assert_same(from_huggingface({k: v for k, v in there.items() if not k.startswith(dropped)}), state)
    shared = state_of(CONFIGS["multi-scale"])
    only_first = {
        name: tensor
        for name, tensor in to_huggingface(shared).items()
        if not name.startswith(("class_embed.1", "class_embed.2", "bbox_embed.1", "bbox_embed.2"))
    }
    assert_same(from_huggingface(only_first), shared)
    # heads that refine and are equal, as they are at the start, are told by the configuration
    equal = from_huggingface(only_first, with_box_refine=True)
    assert torch.equal(equal["transformer.decoder.bbox_embed.2.layers.1.bias"], shared["bbox_embed.0.layers.1.bias"])


def test_what_does_not_belong_is_named() -> None:
    state = state_of({"family": "detr"})
    with pytest.raises(ValueError, match=r"^transformer\.encoder\.norm\.weight: Hugging Face's detector has no such"):
        to_huggingface({**state, "transformer.encoder.norm.weight": torch.ones(2)})
    there = to_huggingface(state)
    with pytest.raises(ValueError, match=r"^model\.mask_head\.weight: not a name in a file of Hugging Face's"):
        from_huggingface({**there, "model.mask_head.weight": torch.ones(2)})
    key = "model.decoder.layers.0.self_attn.k_proj.bias"
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.k_proj\.bias: expected beside .*q_proj"):
        from_huggingface({name: tensor for name, tensor in there.items() if name != key})
    with pytest.raises(ValueError, match="weights: expected the names of DETR, Deformable DETR or Faster R-CNN, found"):
        family_of({"fc.weight": 0})
    with pytest.raises(ValueError, match="which Hugging Face has, got detr_demo's"):
        to_huggingface({"linear_class.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="backbone: expected timm or transformers, got 'torch'"):
        to_huggingface(state, backbone="torch")


@pytest.mark.parametrize("name", MODELS)
def test_configurations_there_and_back(name: str) -> None:
    config = {"family": MODELS[name].family, **vars(MODELS[name])}
    refused = {"detr_demo", "faster_rcnn"} & {config["family"]} or name.endswith("_dc5_plus")
    if refused or (config["family"] == "deformable_detr" and config["hidden_dim"] % 128):
        with pytest.raises(ValueError, match="Hugging Face"):
            config_to_huggingface(config)
        return
    back = config_from_huggingface(config_to_huggingface(config))
    known = {key: value for key, value in config.items() if key in back}
    assert back == {**known, "backbone_frozen": True}
    assert set(config) - set(back) <= {"num_classes", "pre_norm", "focal", "aux_loss"}


def test_configurations_as_published_are_read() -> None:
    """Fields as in the config.json of the published repositories, which earlier versions of transformers wrote."""
    config = {
        "model_type": "deformable_detr",
        "backbone": "resnet50",
        "use_timm_backbone": True,
        "activation_function": "relu",
        "d_model": 256,
        "dilation": True,
        "encoder_layers": 6,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 1024,
        "num_feature_levels": 1,
        "num_queries": 300,
        "position_embedding_type": "sine",
    }
    dc5 = MODELS["deformable_detr_r50_single_scale_dc5"]
    read = config_from_huggingface(config)
    assert read == {key: value for key, value in vars(dc5).items() if key in read} | {
        "family": "deformable_detr",
        "backbone_frozen": True,
    }
    for change, sentence in (
        ({"model_type": "rt_detr"}, "model_type: expected detr or deformable_detr, got 'rt_detr'"),
        ({"decoder_ffn_dim": 512}, "decoder_ffn_dim: expected 1024 like encoder_ffn_dim, got 512"),
        ({"activation_function": "gelu"}, "activation_function: expected 'relu', got 'gelu'"),
        ({"backbone": "swin_tiny"}, "backbone: expected one of resnet18"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1]}}, "backbone_config: expected a ResNet of"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            config_from_huggingface({**config, **change})


def test_the_official_command_line_is_read() -> None:
    args = {"lr": 2e-4, "backbone": "resnet50", "dilation": False, "position_embedding": "v3", "two_stage": True}
    args |= {"with_box_refine": True, "nheads": 4, "num_feature_levels": 4, "masks": False, "hidden_dim": 256}
    found = config_from_args(args, "deformable_detr")
    assert found["position_embedding"] == "learned"
    model = build_model({**found, "enc_layers": 1, "dec_layers": 1}, attn_backend="reference")
    assert model.require_config().to_dict()["nheads"] == 4
