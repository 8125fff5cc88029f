import math

import pytest
import torch
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from msdeform.models.configs import DetrConfig
from msdeform.models.families.detr_transformer import Attentions, DetrTransformer
from msdeform.models.layers.position import LearnedPosition, sine_of_pixels
from msdeform.models.zoo import create_criterion, create_model
from tests.models.literal import detr_transformer


def official_names():
    """The keys of an official checkpoint of DETR with ResNet-50, spelled out."""

    def pair(*prefixes):
        return {f"{prefix}.{kind}" for prefix in prefixes for kind in ("weight", "bias")}

    def attention(prefix):
        return {f"{prefix}.in_proj_weight", f"{prefix}.in_proj_bias"} | pair(f"{prefix}.out_proj")

    body = resnet50(norm_layer=FrozenBatchNorm2d).state_dict()
    names = {f"backbone.0.body.{key}" for key in body if not key.startswith("fc.")}
    for i in range(6):
        encoder, decoder = f"transformer.encoder.layers.{i}", f"transformer.decoder.layers.{i}"
        names |= attention(f"{encoder}.self_attn") | attention(f"{decoder}.self_attn")
        names |= attention(f"{decoder}.multihead_attn")
        names |= pair(*(f"{encoder}.{part}" for part in ("linear1", "linear2", "norm1", "norm2")))
        names |= pair(*(f"{decoder}.{part}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3")))
    names |= pair(
        "transformer.decoder.norm", "class_embed", "input_proj", *(f"bbox_embed.layers.{i}" for i in range(3))
    )
    return names | {"query_embed.weight"}


def test_names_are_the_published_ones():
    with torch.device("meta"):
        model = create_model("detr_r50", backbone_frozen=True)
        assert model.state_dict().keys() == official_names()
        pre_norm = create_model("detr_r50", backbone_frozen=True, pre_norm=True, position_embedding="learned")
    more = {"transformer.encoder.norm.weight", "transformer.encoder.norm.bias"}
    assert pre_norm.state_dict().keys() == official_names() | more | {
        "backbone.1.row_embed.weight",
        "backbone.1.col_embed.weight",
    }
    assert model.state_dict()["class_embed.weight"].shape == (92, 256)


def tiny(**overrides):
    torch.manual_seed(0)
    model = create_model("detr_tiny", num_classes=4, **overrides).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def transformer_and_input(*, pre_norm, layers=2):
    torch.manual_seed(0)
    config = DetrConfig(
        hidden_dim=8, nheads=2, enc_layers=layers, dec_layers=layers, dim_feedforward=16, dropout=0.0, pre_norm=pre_norm
    )
    transformer = DetrTransformer(config).double()
    for parameter in transformer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[1, 2:], mask[1, :, 3:] = True, True
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    position = sine_of_pixels(mask, 8, centred=False, dtype=torch.float64)
    return transformer, x, mask, position, torch.randn(3, 8, dtype=torch.float64)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_transformer_is_its_literal_self(pre_norm):
    transformer, x, mask, position, query_embed = transformer_and_input(pre_norm=pre_norm)
    hidden = transformer(x, mask, position, query_embed)
    for image in range(2):
        expected = detr_transformer(
            transformer,
            x[image].flatten(1).T,
            mask[image].flatten().tolist(),
            position[image],
            query_embed,
            pre_norm=pre_norm,
        )
        for layer, wanted in zip(hidden, expected, strict=True):
            torch.testing.assert_close(layer[image], wanted, rtol=1e-10, atol=1e-10)


def test_padding_does_not_leak_through_the_transformer():
    transformer, x, mask, position, query_embed = transformer_and_input(pre_norm=False)
    small = torch.zeros(1, 2, 3, dtype=torch.bool)
    alone = transformer(
        x[1:, :, :2, :3], small, sine_of_pixels(small, 8, centred=False, dtype=torch.float64), query_embed
    )
    for padded, one in zip(transformer(x, mask, position, query_embed), alone, strict=True):
        torch.testing.assert_close(padded[1:], one, rtol=1e-10, atol=1e-10)


def test_attention_probabilities_are_given_on_request():
    transformer, x, mask, position, query_embed = transformer_and_input(pre_norm=False)
    keep = Attentions()
    with_them = transformer(x, mask, position, query_embed, keep)
    torch.testing.assert_close(with_them[-1], transformer(x, mask, position, query_embed)[-1])
    shapes = ((12, 12), (3, 3), (3, 12))
    for kind, shape in zip((keep.encoder, keep.decoder_self, keep.decoder_cross), shapes, strict=True):
        assert [tuple(weights.shape) for weights in kind] == [(2, 2, *shape)] * 2
        for weights in kind:
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, shape[0], dtype=torch.float64))
    assert (keep.decoder_cross[0][1, :, :, mask[1].flatten()] == 0).all()
    outputs = tiny()([torch.randn(3, 64, 96)], need_attentions=True)
    assert outputs["attentions"].encoder[0].shape == (1, 2, 6, 6)


def test_positions_count_whole_pixels():
    """DETR's own, which does not take a pixel's centre."""
    sines = sine_of_pixels(torch.zeros(1, 2, 3, dtype=torch.bool), 4, centred=False, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            y, x = 2 * math.pi * (i + 1) / (2 + 1e-6), 2 * math.pi * (j + 1) / (3 + 1e-6)
            expected = torch.tensor([math.sin(y), math.cos(y), math.sin(x), math.cos(x)], dtype=torch.float64)
            torch.testing.assert_close(sines[0, 3 * i + j], expected)


def test_learned_positions_are_the_column_then_the_row():
    position = LearnedPosition(6, size=5)
    found = position(torch.zeros(2, 3, 4, dtype=torch.bool), torch.float64)
    assert found.shape == (2, 12, 6)
    for i in range(3):
        for j in range(4):
            expected = torch.cat([position.col_embed.weight[j], position.row_embed.weight[i]]).double()
            assert torch.equal(found[1, 4 * i + j], expected)
    with pytest.raises(ValueError, match="learned positions: expected feature maps of at most 5 x 5, got 3 x 6"):
        position(torch.zeros(2, 3, 6, dtype=torch.bool), torch.float32)


@pytest.mark.parametrize("family", ["detr_tiny", "deformable_detr_tiny"])
@pytest.mark.parametrize("changes", [{"pre_norm": True}, {"position_embedding": "learned"}], ids=str)
def test_both_families_take_either_norm_and_position(family, changes):
    torch.manual_seed(0)
    model = create_model(family, num_classes=4, **changes).double().eval()
    outputs = model([torch.randn(3, 64, 96), torch.randn(3, 80, 64)])
    assert outputs["pred_boxes"].shape == (2, 10, 4)
    total = outputs["pred_boxes"].sum() + outputs["pred_logits"].sum()
    total.backward()
    names = [n for n, p in model.named_parameters() if ("norm" in n or "_embed" in n) and p.grad is None]
    assert names == []


def test_dc5_halves_the_last_stride_and_keeps_the_size():
    with torch.device("meta"):
        plain, dilated = (
            create_model(f"detr_r50{suffix}", backbone_frozen=True).backbone[0] for suffix in ("", "_dc5")
        )
        images = torch.empty(1, 3, 128, 192)
        assert plain(images)[-1].shape == (1, 2048, 4, 6)
        assert dilated(images)[-1].shape == (1, 2048, 8, 12)
    assert dilated.body.layer4[1].conv2.dilation == (2, 2)
    assert dilated.body.layer4[0].conv2.dilation == (1, 1)
    with pytest.raises(ValueError, match=r"dilation: expected a backbone of bottleneck blocks .*, got resnet18"):
        create_model("detr_r50_dc5", backbone="resnet18")


def test_dc5_plus_has_focal_loss_and_300_queries():
    with torch.device("meta"):
        model = create_model("detr_r50_dc5_plus")
    criterion = create_criterion("detr_r50_dc5_plus")
    assert model.focal
    assert criterion.focal
    assert criterion.matcher.focal
    assert (criterion.weight_dict["loss_ce"], criterion.matcher.cost_class) == (2.0, 2.0)
    assert model.query_embed.weight.shape == (300, 256)
    assert model.class_embed.weight.shape == (91, 256)


def test_the_demo_is_the_listing():
    """Carion et al. 2020, listing 1, line by line, for one image."""
    torch.manual_seed(0)
    model = create_model("detr_demo", num_classes=4, backbone="resnet10_tiny", hidden_dim=32, nheads=2, enc_layers=1)
    model = model.double().eval()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    h = model.conv(model.backbone(image))
    height, width = h.shape[-2:]
    pos = torch.stack(
        [torch.cat([model.col_embed[j], model.row_embed[i]]) for i in range(height) for j in range(width)]
    )
    h = model.transformer(pos[None] + 0.1 * h.flatten(2).transpose(1, 2), model.query_pos[None])
    outputs = model(image)
    torch.testing.assert_close(outputs["pred_logits"], model.linear_class(h), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(outputs["pred_boxes"], model.linear_bbox(h).sigmoid(), rtol=1e-10, atol=1e-10)
    assert set(create_criterion("detr_demo").weight_dict) == {"loss_ce", "loss_bbox", "loss_giou"}
    # beside a larger image, whose padding is masked: only the convolutions see it
    with torch.no_grad():
        pair = model([image[0], torch.randn(3, 96, 128, dtype=torch.float64)])
    assert pair["pred_logits"].shape == (2, 100, 5)


def test_the_demo_makes_no_nested_tensors(monkeypatch):
    """They are a prototype, and torch warns of them on each first use."""
    monkeypatch.setattr(torch, "_nested_tensor_from_mask", lambda *_, **__: pytest.fail("a nested tensor"))
    model = create_model("detr_demo", num_classes=4, backbone="resnet10_tiny", hidden_dim=32, nheads=2).eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))


def test_softmax_post_processing_gives_each_query_its_best_class():
    model = tiny()
    outputs = model([torch.randn(3, 64, 96)])
    outputs["pred_logits"] = torch.randn_like(outputs["pred_logits"])
    outputs["pred_logits"][:, ::2, -1] += 5.0  # half of the queries see nothing, most probably
    found = model.post_process(outputs, torch.tensor([[64, 96]]))[0]
    probability = outputs["pred_logits"][0].softmax(-1)[:, :-1]
    order = probability.amax(-1).argsort(descending=True)
    torch.testing.assert_close(found["scores"], probability.amax(-1)[order])
    assert torch.equal(found["labels"], probability.argmax(-1)[order])
    x, y, w, h = (outputs["pred_boxes"][0, order] * torch.tensor([96, 64, 96, 64])).unbind(-1)
    torch.testing.assert_close(found["boxes"], torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1))
    assert len(model.post_process(outputs, torch.tensor([[64, 96]]), top_k=3)[0]["scores"]) == 3
