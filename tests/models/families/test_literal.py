"""Whole detectors in float64, on a padded batch, from projected maps to boxes, against `tests.models.literal`."""

import pytest
import torch

from msdeform.models.zoo import create_model
from tests.models.literal import DeformableImage, box_head, detr_transformer, linear, pixel_position

# of the images; the batch is padded to 96 x 96
SIZES = ((64, 96), (96, 64))
LAYERS = {"enc_layers": 2, "dec_layers": 2, "hidden_dim": 16, "dim_feedforward": 24, "num_queries": 7}


def build(name, **settings):
    """A tiny detector in float64 and evaluation, every parameter moved off its initial value."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, **(LAYERS | settings)).double().eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if not key.startswith("backbone.0"):
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def outputs_and_maps(model):
    """What the model makes of two images, and what went into its transformer: maps and masks of each level."""
    seen = []
    model.transformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in SIZES]
    outputs = model(images)
    maps, masks = seen[0][:2]
    return (outputs, maps, masks) if isinstance(maps, list) else (outputs, [maps], [masks])


def own_part(maps, masks, image):
    """The unpadded part of each level of one image, (C, h, w)."""
    parts = []
    for x, mask in zip(maps, masks, strict=True):
        inside = ~mask[image]
        parts.append(x[image][:, : int(inside[:, 0].sum()), : int(inside[0].sum())])
    return parts


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


TWO_STAGE = {"with_box_refine": True, "two_stage": True}


@pytest.mark.parametrize(
    "settings",
    [
        {"num_feature_levels": 1},
        {"num_feature_levels": 2},
        {"num_feature_levels": 4},
        {"num_feature_levels": 2, "with_box_refine": True},
        {"num_feature_levels": 2, **TWO_STAGE},
        {"num_feature_levels": 2, "pre_norm": True, "position_embedding": "learned", **TWO_STAGE},
        {"num_feature_levels": 2, "pre_norm": True},
        {"num_feature_levels": 2, "position_embedding": "learned"},
    ],
    ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()),
)
def test_deformable_detr_is_its_equations(settings):
    model = build("deformable_detr_tiny", **settings)
    outputs, maps, masks = outputs_and_maps(model)
    layers = [*outputs["aux_outputs"], outputs]
    assert len(layers) == 2
    for image in range(len(SIZES)):
        padding = sum(int(mask[image].sum()) for mask in masks)
        assert padding > 0
        literal = DeformableImage(model, own_part(maps, masks, image), padding)
        for layer, logits, boxes in zip(layers, literal.logits, literal.boxes, strict=True):
            assert_close(layer["pred_logits"][image], logits)
            assert_close(layer["pred_boxes"][image], boxes)
        if "enc_outputs" in outputs:
            offered = {key: (logits, box) for key, logits, box in literal.offers}
            row = 0
            for level, mask in enumerate(masks):
                for i, j in ((i, j) for i in range(mask.shape[1]) for j in range(mask.shape[2])):
                    logits, box = offered[None if mask[image, i, j] else (level, i, j)]
                    assert_close(outputs["enc_outputs"]["pred_logits"][image, row], logits)
                    assert_close(
                        outputs["enc_outputs"]["pred_boxes"][image, row], torch.tensor(box, dtype=torch.float64)
                    )
                    row += 1


@pytest.mark.parametrize(
    "settings", [{}, {"pre_norm": True}, {"position_embedding": "learned"}, {"focal": True}], ids=str
)
def test_detr_is_its_equations(settings):
    model = build("detr_tiny", **settings)
    outputs, maps, masks = outputs_and_maps(model)
    for image in range(len(SIZES)):
        (x,) = own_part(maps, masks, image)
        _, height, width = x.shape
        position = torch.stack(
            [
                pixel_position(model.backbone[1], i, j, height, width, len(x), 0.0)
                for i in range(height)
                for j in range(width)
            ]
        )
        hidden = detr_transformer(
            model.transformer,
            x.flatten(1).T,
            [False] * (height * width),
            position,
            model.query_embed.weight,
            pre_norm=model.config.pre_norm,
        )
        for layer, rows in zip([*outputs["aux_outputs"], outputs], hidden, strict=True):
            assert_close(layer["pred_logits"][image], torch.stack([linear(model.class_embed, r) for r in rows]))
            boxes = torch.stack([box_head(model.bbox_embed, row) for row in rows])
            assert_close(layer["pred_boxes"][image], 1 / (1 + torch.exp(-boxes)))
