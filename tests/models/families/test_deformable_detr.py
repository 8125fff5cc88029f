import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from msdeform.models.attention import MSDeformAttn
from msdeform.models.layers.batch import pad_images
from msdeform.models.zoo import create_criterion, create_model


def official_names(*, levels, refine, two_stage, layers=6):
    """The keys of an official checkpoint of Deformable DETR with ResNet-50, spelled out."""

    def pair(*prefixes):
        return {f"{prefix}.{kind}" for prefix in prefixes for kind in ("weight", "bias")}

    deformable = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    body = resnet50(norm_layer=FrozenBatchNorm2d).state_dict()
    names = {f"backbone.0.body.{key}" for key in body if not key.startswith("fc.")}
    names |= pair(*(f"input_proj.{level}.{part}" for level in range(levels) for part in (0, 1)))
    names |= {"transformer.level_embed"}
    for i in range(layers):
        encoder, decoder = f"transformer.encoder.layers.{i}", f"transformer.decoder.layers.{i}"
        names |= pair(*(f"{encoder}.self_attn.{part}" for part in deformable))
        names |= pair(*(f"{encoder}.{part}" for part in ("norm1", "linear1", "linear2", "norm2")))
        names |= pair(*(f"{decoder}.cross_attn.{part}" for part in deformable))
        names |= pair(*(f"{decoder}.{part}" for part in ("norm1", "norm2", "norm3", "linear1", "linear2")))
        names |= pair(f"{decoder}.self_attn.out_proj")
        names |= {f"{decoder}.self_attn.in_proj_weight", f"{decoder}.self_attn.in_proj_bias"}
    heads = layers + two_stage
    for prefix in ["", *(["transformer.decoder."] if refine else [])]:
        names |= pair(*(f"{prefix}bbox_embed.{i}.layers.{j}" for i in range(heads) for j in range(3)))
    for prefix in ["", *(["transformer.decoder."] if two_stage else [])]:
        names |= pair(*(f"{prefix}class_embed.{i}" for i in range(heads)))
    if two_stage:
        names |= pair(*(f"transformer.{part}" for part in ("enc_output", "enc_output_norm")))
        names |= pair(*(f"transformer.{part}" for part in ("pos_trans", "pos_trans_norm")))
    else:
        names |= pair("transformer.reference_points") | {"query_embed.weight"}
    return names


@pytest.mark.parametrize(
    ("name", "levels", "entries", "millions"),
    [
        ("deformable_detr_r50", 1, 549, 34.07),
        ("deformable_detr_r50", 4, 561, 40.07),
        ("deformable_detr_r50_refine", 4, 597, 40.85),
        ("deformable_detr_r50_two_stage", 4, 630, 41.18),
    ],
)
def test_names_and_size_are_the_published_ones(name, levels, entries, millions):
    with torch.device("meta"):
        model = create_model(name, backbone_frozen=True, num_feature_levels=levels)
    refine, two_stage = name.endswith(("_refine", "_two_stage")), name.endswith("_two_stage")
    assert set(model.state_dict()) == official_names(levels=levels, refine=refine, two_stage=two_stage)
    assert len(model.state_dict()) == entries
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def test_shapes_of_the_published_tensors():
    with torch.device("meta"):
        state = create_model("deformable_detr_r50", backbone_frozen=True).state_dict()
    expected = {
        "query_embed.weight": (300, 512),
        "transformer.level_embed": (4, 256),
        "transformer.reference_points.weight": (2, 256),
        "transformer.encoder.layers.0.linear1.weight": (1024, 256),
        "transformer.decoder.layers.5.self_attn.in_proj_weight": (768, 256),
        "transformer.decoder.layers.5.cross_attn.sampling_offsets.weight": (256, 256),
        "transformer.decoder.layers.5.cross_attn.attention_weights.weight": (128, 256),
        "input_proj.0.0.weight": (256, 512, 1, 1),
        "input_proj.2.0.weight": (256, 2048, 1, 1),
        "input_proj.3.0.weight": (256, 2048, 3, 3),
        "class_embed.0.weight": (91, 256),
        "bbox_embed.5.layers.2.weight": (4, 256),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected


def test_a_state_dict_goes_round():
    source, target = (create_model("deformable_detr_tiny", num_classes=3).eval() for _ in range(2))
    images = torch.randn(1, 3, 48, 64)
    before = target(images)["pred_logits"]
    target.load_state_dict(source.state_dict())
    expected = source(images)["pred_logits"]
    torch.testing.assert_close(target(images)["pred_logits"], expected, rtol=0, atol=0)
    assert not torch.allclose(before, expected)


@pytest.mark.parametrize(("refine", "two_stage"), [(False, False), (True, False), (True, True)])
def test_initial_values(refine, two_stage):
    torch.manual_seed(0)
    model = create_model(
        "deformable_detr_tiny", num_classes=7, dec_layers=2, with_box_refine=refine, two_stage=two_stage
    )
    for name, parameter in model.transformer.named_parameters():
        embed = "bbox_embed" in name or "class_embed" in name
        attention = "sampling_offsets" in name or "attention_weights" in name
        if parameter.dim() == 2 and not (embed or attention or name == "level_embed"):
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.85 * bound < parameter.abs().max() <= bound, name
    assert 0.7 < model.transformer.level_embed.std() < 1.3
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            assert not module.sampling_offsets.weight.any()
            assert not module.attention_weights.weight.any()
    for head in model.class_embed:
        torch.testing.assert_close(head.bias, torch.full((7,), -math.log(99)))
    for i, head in enumerate(model.bbox_embed):
        assert not head.layers[-1].weight.any()
        assert not head.layers[-1].bias[:2].any()
        small = not two_stage and (not refine or i == 0)
        assert head.layers[-1].bias[2:].tolist() == ([-2.0, -2.0] if small else [0.0, 0.0])
    for project in model.input_proj:
        assert not project[0].bias.any()
        fan = sum(nn.init._calculate_fan_in_and_fan_out(project[0].weight))
        assert 0.9 * math.sqrt(6 / fan) < project[0].weight.abs().max() <= math.sqrt(6 / fan)


def test_heads_are_shared_unless_refined():
    plain = create_model("deformable_detr_tiny", dec_layers=2)
    assert plain.bbox_embed[0] is plain.bbox_embed[1]
    assert plain.class_embed[0] is plain.class_embed[1]
    refined = create_model("deformable_detr_tiny", dec_layers=2, with_box_refine=True, two_stage=True)
    assert len({id(head) for head in refined.bbox_embed}) == len({id(head) for head in refined.class_embed}) == 3
    assert refined.transformer.decoder.bbox_embed is refined.bbox_embed


def test_nothing_is_frozen_over_random_weights():
    model = create_model("deformable_detr_tiny")
    assert all(parameter.requires_grad for parameter in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms == []
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())


def test_a_frozen_backbone_fixes_norms_stem_and_first_stage():
    model = create_model("deformable_detr_tiny", backbone_frozen=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("backbone.0.body.conv1", "backbone.0.body.layer1"))
    }
    assert fixed


@pytest.mark.parametrize(("levels", "strides"), [(1, [32]), (2, [16, 32]), (3, [8, 16, 32]), (5, [8, 16, 32, 64, 128])])
def test_levels(levels, strides):
    model = create_model("deformable_detr_tiny", num_feature_levels=levels).eval()
    seen = []
    model.transformer.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments[0]))
    model(torch.randn(1, 3, 96, 160))
    assert [tuple(x.shape[2:]) for x in seen] == [(math.ceil(96 / s), math.ceil(160 / s)) for s in strides]


def test_the_fourth_level_comes_from_the_raw_last_stage():
    model = create_model("deformable_detr_tiny", num_feature_levels=5)
    assert [project[0].in_channels for project in model.input_proj] == [16, 16, 32, 32, 32]
    seen = {}
    model.backbone[0].register_forward_hook(lambda _, __, maps: seen.update(last=maps[-1]))
    model.input_proj[3].register_forward_pre_hook(lambda _, arguments: seen.update(fourth=arguments[0]))
    model(torch.randn(2, 3, 64, 64))
    assert seen["fourth"] is seen["last"]


def test_outputs():
    model = create_model("deformable_detr_tiny", num_classes=4, dec_layers=3, with_box_refine=True, two_stage=True)
    outputs = model([torch.randn(3, 64, 96), torch.randn(3, 80, 64)])
    assert set(outputs) == {"pred_logits", "pred_boxes", "aux_outputs", "enc_outputs"}
    layers = [outputs, *outputs["aux_outputs"]]
    assert len(layers) == 3
    for layer in layers:
        assert layer["pred_logits"].shape == (2, 10, 4)
        assert layer["pred_boxes"].shape == (2, 10, 4)
        assert ((layer["pred_boxes"] >= 0) & (layer["pred_boxes"] <= 1)).all()
    pixels = 5 * 6 + 3 * 3
    assert outputs["enc_outputs"]["pred_logits"].shape == (2, pixels, 4)
    assert outputs["enc_outputs"]["pred_boxes"].shape == (2, pixels, 4)
    assert set(create_model("deformable_detr_tiny", aux_loss=False)(torch.randn(1, 3, 64, 64))) == {
        "pred_logits",
        "pred_boxes",
    }


def test_a_list_and_its_padded_batch_give_the_same():
    model = create_model("deformable_detr_tiny").eval()
    images = [torch.randn(3, 64, 96), torch.randn(3, 80, 64)]
    expected = model(images)["pred_logits"]
    torch.testing.assert_close(model(pad_images(images))["pred_logits"], expected, rtol=0, atol=0)
    # without its mask the padding counts as image
    assert not torch.allclose(model(pad_images(images)[0])["pred_logits"], expected)


def test_an_image_alone_and_in_a_batch_of_its_size_agree():
    model = create_model("deformable_detr_mini").eval()
    images = [torch.randn(3, 64, 64) for _ in range(3)]
    together, alone = model(images), model(images[1:2])
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(together[name][1:2], alone[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (7, 200), (33, 31)])
def test_images_of_any_size(size):
    model = create_model("deformable_detr_tiny", with_box_refine=True, two_stage=True).eval()
    assert model([torch.randn(3, *size)])["pred_boxes"].isfinite().all()


def targets(*counts):
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "labels": torch.randint(0, 3, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.2,
        }
        for n in counts
    ]


def step(model, images, wanted):
    criterion = create_criterion(model)
    losses = criterion(model(images), wanted)
    return sum(losses[name] * weight for name, weight in criterion.weight_dict.items())


@pytest.mark.parametrize(("refine", "two_stage"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("counts", [(2, 1), (0, 0)], ids=["boxes", "none"])
def test_every_parameter_gets_a_gradient(refine, two_stage, counts):
    model = create_model(
        "deformable_detr_tiny", num_classes=3, dec_layers=2, with_box_refine=refine, two_stage=two_stage
    )
    step(model, torch.randn(2, 3, 64, 64), targets(*counts)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("two_stage", [False, True])
def test_a_few_steps_reduce_the_loss(two_stage):
    torch.manual_seed(0)
    model = create_model(
        "deformable_detr_tiny", num_classes=3, dec_layers=2, with_box_refine=two_stage, two_stage=two_stage
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images, wanted = torch.randn(2, 3, 64, 64), targets(3, 2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = step(model, images, wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.7 * losses[0]


def test_autocast():
    torch.manual_seed(0)
    model = create_model("deformable_detr_tiny", num_classes=3, dec_layers=2, with_box_refine=True, two_stage=True)
    images, wanted = torch.randn(2, 3, 64, 64), targets(2, 1)
    expected = step(copy.deepcopy(model), images, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images)
        loss = step(model, images, wanted)
    assert outputs["pred_boxes"].dtype == torch.float32
    assert outputs["pred_logits"].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_double_precision_stays_double():
    model = create_model("deformable_detr_tiny", with_box_refine=True, two_stage=True).double().eval()
    outputs = model(torch.randn(1, 3, 64, 64, dtype=torch.float64))
    assert outputs["pred_boxes"].dtype == outputs["pred_logits"].dtype == torch.float64


def test_traces_into_one_graph():
    model = create_model("deformable_detr_tiny", with_box_refine=True, two_stage=True).eval()
    batch = pad_images([torch.randn(3, 64, 96), torch.randn(3, 80, 64)])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch)["pred_logits"], model(batch)["pred_logits"], atol=1e-5, rtol=1e-5)


def test_every_attention_module_holds_the_backend():
    model = create_model("deformable_detr_mini", attn_backend="reference")
    held = [module.backend for module in model.modules() if isinstance(module, MSDeformAttn)]
    assert held == ["reference"] * (model.config.enc_layers + model.config.dec_layers)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"two_stage": True}, "two_stage: expected with_box_refine=True beside it, got False"),
        ({"hidden_dim": 30, "nheads": 4}, "hidden_dim: expected a multiple of nheads=4, got 30"),
        ({"hidden_dim": 30}, "hidden_dim: expected a multiple of 4 .*, got 30"),
        ({"num_queries": 0}, "num_queries: expected at least 1, got 0"),
        ({"enc_layers": -1}, "enc_layers: expected at least 0, got -1"),
        ({"dropout": 1.5}, r"dropout: expected a probability in \[0, 1\), got 1.5"),
        ({"backbone": "resnet51"}, "backbone: expected one of resnet18, .*, got 'resnet51'"),
        ({"queries": 3}, "queries: not a field of the configuration of deformable_detr, which has num_classes, "),
    ],
)
def test_bad_configurations(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model("deformable_detr_tiny", **overrides)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(3, 8, 8), r"images: expected \(B, 3, H, W\) or a list of \(3, h, w\), got \(3, 8, 8\)"),
        ([torch.zeros(1, 8, 8)], "images: expected 3 channels, got 1"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)), r"mask: expected bool \(2, 8, 8\) .* torch.float32"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 9).bool()), r"mask: .*got torch.bool \(2, 8, 9\)"),
    ],
)
def test_bad_images(images, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model("deformable_detr_tiny")(images)


def test_the_configuration_is_plain_and_frozen():
    config = create_model("deformable_detr_tiny").config
    assert all(isinstance(value, bool | int | float | str) for value in dataclasses.asdict(config).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_queries = 5
