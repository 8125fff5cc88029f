"""The family's variants at full width, without memory; and the tiny ones in every float dtype and form of input."""

import dataclasses

import pytest
import torch

from msdeform.models.catalog import config_of, list_models
from msdeform.models.layers.batch import pad_images
from msdeform.models.zoo import build_model, create_criterion, create_model
from tests.models.tiny import TINY, tiny

LARGE = [name for name in list_models() if "r101" in name or "resnet101" in name]


@pytest.mark.parametrize("name", LARGE)
def test_every_model_also_has_a_resnet101(name):
    """The ResNet-50 ones are counted in test_zoo."""
    config = config_of(name)
    with torch.device("meta"):
        large = create_model(name, backbone_frozen=True)
        small = build_model(dataclasses.replace(config, backbone="resnet50", backbone_frozen=True))
    added = [17 * size for size in (1024 * 256, 9 * 256 * 256, 256 * 1024)]  # 17 more blocks of three convolutions
    assert sum(p.numel() for p in large.parameters()) - sum(p.numel() for p in small.parameters()) == sum(added)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("detr_r50_dc5", {"pre_norm": True, "position_embedding": "learned"}),
        ("detr_r101_dc5", {}),
        ("deformable_detr_r50_dc5", {}),
        ("deformable_detr_r50_dc5", {"pre_norm": True, "position_embedding": "learned"}),
        ("deformable_detr_r50_single_scale_dc5", {}),
        ("deformable_detr_r50_two_stage", {"dilation": True, "pre_norm": True}),
        ("deformable_detr_r50_refine", {"position_embedding": "learned"}),
    ],
    ids=str,
)
def test_norms_positions_and_dilation_combine(name, changes):
    """At full width, with a layer each: the strides of the maps, and the parts that are there."""
    with torch.device("meta"):
        model = create_model(name, enc_layers=1, dec_layers=1, **changes)
        seen = []
        model.transformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        outputs = model(torch.empty(1, 3, 256, 384))
    detr = model.config.family == "detr"
    assert outputs["pred_logits"].shape == ((1, 100, 92) if detr else (1, 300, 91))
    assert outputs["pred_boxes"].shape == (1, 100 if detr else 300, 4)
    maps = seen[0] if isinstance(seen[0], list) else [seen[0]]
    last = 16 if model.config.dilation else 32
    strides = [last] if detr or "single_scale" in name else [8, 16, last, 2 * last]
    assert [tuple(x.shape[2:]) for x in maps] == [(256 // stride, 384 // stride) for stride in strides]
    names = model.state_dict().keys()
    assert ("transformer.encoder.norm.weight" in names) == ("pre_norm" in changes)
    assert ("backbone.1.row_embed.weight" in names) == ("position_embedding" in changes)


QUICK = [family for family in TINY if family != "faster r-cnn"]  # which has a test of its own


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "changes"),
    [(family, {}) for family in QUICK]
    # the listing has one form
    + [(family, {"pre_norm": True, "position_embedding": "learned"}) for family in QUICK if family != "demo"],
)
def test_every_float_dtype(family, changes, dtype):
    images = [torch.randn(3, 64, 96), torch.randn(3, 80, 64)]
    with torch.no_grad():
        expected = tiny(family, **changes).eval()(images)
    model = tiny(family, **changes).to(dtype)
    with torch.no_grad():
        outputs = model.eval()(images)
    assert outputs["pred_logits"].dtype == dtype
    assert outputs["pred_boxes"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if family != "two-stage":  # whose queries are the best pixels, and rounding may exchange two of them
        # a deviation of 30 in the last stage of random weights costs 16 bits one of their digits
        near = {torch.float64: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]
        torch.testing.assert_close(outputs["pred_boxes"].double(), expected["pred_boxes"].double(), rtol=0, atol=near)
    wanted = [
        {"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.4, 0.2, 0.2]])},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    criterion = create_criterion(model)
    losses = criterion(model.train()(images), wanted)
    total = sum(losses[name] * weight for name, weight in criterion.weight_dict.items())
    assert total.dtype == outputs["pred_boxes"].dtype
    total.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("family", TINY)
def test_every_form_of_input(family):
    model = tiny(family).eval()
    same, mixed = torch.randn(2, 3, 32, 64), [torch.randn(3, 64, 32), torch.randn(3, 32, 64)]

    def boxes(images):
        with torch.no_grad():
            outputs = model(images)
        if "pred_boxes" in outputs:
            return outputs["pred_boxes"]
        return torch.cat([one["boxes"] for one in outputs["detections"]])

    for forms in (
        [same, list(same), tuple(same), (same, torch.zeros(2, 32, 64, dtype=torch.bool)), same.double()],
        [mixed, tuple(mixed), pad_images(mixed), [image.double() for image in mixed]],
    ):
        expected = boxes(forms[0])
        for form in forms[1:]:
            torch.testing.assert_close(boxes(form), expected, rtol=0, atol=0)
    for low in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(boxes(same.to(low)), boxes(same.to(low).float()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="images: expected normalised images of a float dtype, got torch.uint8"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
