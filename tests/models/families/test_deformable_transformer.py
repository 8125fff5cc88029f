import pytest
import torch
from torch import nn

from msdeform.models.attention import MSDeformAttn
from msdeform.models.configs import DeformableDetrConfig
from msdeform.models.families.deformable_detr import BoxHead
from msdeform.models.families.deformable_transformer import DecoderLayer, DeformableTransformer, EncoderLayer
from msdeform.models.layers.geometry import Levels
from msdeform.models.layers.position import sine_of_pixels

WIDTH, QUERIES, LAYERS, CLASSES = 16, 5, 2, 3


def build(*, refine=False, two_stage=False, queries=QUERIES):
    torch.manual_seed(0)
    config = DeformableDetrConfig(
        hidden_dim=WIDTH,
        nheads=2,
        num_feature_levels=2,
        num_queries=queries,
        enc_layers=1,
        dec_layers=LAYERS,
        dim_feedforward=32,
        dropout=0.0,
        enc_n_points=2,
        dec_n_points=2,
        with_box_refine=refine,
        two_stage=two_stage,
    )
    transformer = DeformableTransformer(config, "reference")
    heads = LAYERS + two_stage
    class_heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(heads))
    box_heads = nn.ModuleList(BoxHead(WIDTH) for _ in range(heads))
    for parameter in (*transformer.parameters(), *box_heads.parameters()):
        parameter.data += 0.1 * torch.randn_like(parameter)
    query_embed = None if two_stage else torch.randn(queries, 2 * WIDTH)

    def run(maps, masks):
        positions = [sine_of_pixels(mask, WIDTH).to(maps[0].dtype) for mask in masks]
        return transformer(maps, masks, positions, query_embed, class_heads=class_heads, box_heads=box_heads)

    return run, transformer, class_heads, box_heads


def maps_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, WIDTH, h, w, generator=generator) for h, w in sizes]
    return maps, [torch.zeros(1, h, w, dtype=torch.bool) for h, w in sizes]


def pad(maps, masks, sizes):
    """The same maps in the corner of larger ones, full of other numbers where padded."""
    padded_maps, padded_masks = [], []
    for x, mask, (h, w) in zip(maps, masks, sizes, strict=True):
        large = torch.full((1, WIDTH, h, w), 7.0)
        large[:, :, : x.shape[2], : x.shape[3]] = x
        large_mask = torch.ones(1, h, w, dtype=torch.bool)
        large_mask[:, : x.shape[2], : x.shape[3]] = mask
        padded_maps.append(large)
        padded_masks.append(large_mask)
    return padded_maps, padded_masks


@pytest.mark.parametrize(("refine", "two_stage"), [(False, False), (True, False), (True, True)])
def test_padding_changes_nothing(refine, two_stage):
    run, *_ = build(refine=refine, two_stage=two_stage)
    maps, masks = maps_of((4, 6), (2, 3))
    alone, padded = run(maps, masks), run(*pad(maps, masks, ((7, 8), (4, 5))))
    for a, b in zip(alone.hidden + alone.boxes, padded.hidden + padded.boxes, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("refine", [False, True])
def test_a_refined_reference_is_detached(refine):
    run, transformer, _, box_heads = build(refine=refine)
    decoded = run(*maps_of((4, 6), (2, 3)))
    # summed unevenly, so that no gradient cancels
    (decoded.boxes[1] * torch.rand(4)).sum().backward()
    assert all(parameter.grad is None for parameter in box_heads[0].parameters())
    assert any(parameter.grad.any() for parameter in box_heads[1].parameters())
    # through the box directly without refinement, through the first layer's sampling always
    assert transformer.reference_points.weight.grad.any()


def test_refinement_starts_from_the_layer_before():
    run, _, _, box_heads = build(refine=True)
    for parameter in box_heads[1].parameters():
        parameter.data.zero_()
    decoded = run(*maps_of((4, 6), (2, 3)))
    torch.testing.assert_close(decoded.boxes[1], decoded.boxes[0], atol=1e-5, rtol=1e-5)


def test_without_refinement_every_layer_starts_from_the_same_points():
    run, transformer, _, box_heads = build()
    for parameter in box_heads.parameters():
        parameter.data.zero_()
    seen = []
    for layer in transformer.decoder.layers:
        layer.cross_attn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    decoded = run(*maps_of((4, 6), (2, 3)))
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    assert seen[0].shape == (1, QUERIES, 2, 2)
    for boxes in decoded.boxes:
        torch.testing.assert_close(boxes[..., :2], seen[0][:, :, 0])
        torch.testing.assert_close(boxes[..., 2:], torch.full_like(boxes[..., 2:], 0.5))


def test_two_stages_take_the_best_proposals_by_class_zero():
    run, transformer, *_ = build(refine=True, two_stage=True)
    seen = []
    transformer.decoder.layers[0].cross_attn.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    decoded = run(*maps_of((4, 6), (2, 3)))
    assert decoded.encoder_logits.shape == (1, 30, CLASSES)
    order = sorted(range(30), key=lambda s: -decoded.encoder_logits[0, s, 0].item())
    expected = decoded.encoder_boxes[0, order[:QUERIES]]
    torch.testing.assert_close(seen[0][0, :, 0], expected)
    assert not seen[0].requires_grad


def test_pixels_that_cannot_propose_are_blank():
    run, *_ = build(refine=True, two_stage=True)
    decoded = run(*pad(*maps_of((4, 6), (2, 3)), ((5, 6), (2, 3))))
    # the first level's last row is padding
    scores, boxes = decoded.encoder_logits[0], decoded.encoder_boxes[0]
    torch.testing.assert_close(scores[24:30], scores[24:25].expand(6, -1), rtol=0, atol=0)
    assert (boxes[24:30] == 1).all()
    assert len(scores[:24].unique(dim=0)) == 24


def test_two_stages_cap_the_queries_at_the_pixels():
    run, *_ = build(refine=True, two_stage=True, queries=50)
    decoded = run(*maps_of((2, 3), (1, 2)))
    assert decoded.boxes[-1].shape == (1, 8, 4)
    assert decoded.boxes[-1].isfinite().all()


@pytest.fixture
def layer_input():
    torch.manual_seed(0)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[1, [3, 7, 9]] = True
    levels = Levels(((2, 4), (1, 2)), torch.ones(2, 2, 2), mask)
    return torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH), torch.rand(2, 5, 2, 2), torch.randn(2, 10, WIDTH), levels


def randomise(layer):
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return layer


def test_an_encoder_layer_spelled_out(layer_input):
    _, _, _, memory, levels = layer_input
    position, reference = torch.randn_like(memory), torch.rand(2, 10, 2, 2)
    layer = randomise(EncoderLayer(MSDeformAttn(WIDTH, 2, 2, 2, backend="reference"), 32, 0.0))
    attended = layer.self_attn(memory + position, reference, memory, levels.shapes, None, levels.mask)
    x = layer.norm1(memory + attended)
    x = layer.norm2(x + layer.linear2(layer.linear1(x).clamp(min=0)))
    torch.testing.assert_close(layer(memory, position, reference, levels), x)


def test_a_decoder_layer_spelled_out(layer_input):
    x, position, reference, memory, levels = layer_input
    layer = randomise(DecoderLayer(MSDeformAttn(WIDTH, 2, 2, 2, backend="reference"), 32, 0.0))
    output = layer(x, position, reference, memory, levels)
    query = x + position
    x = layer.norm2(x + layer.self_attn(query, query, x)[0])
    x = layer.norm1(x + layer.cross_attn(x + position, reference, memory, levels.shapes, None, levels.mask))
    x = layer.norm3(x + layer.linear2(layer.linear1(x).clamp(min=0)))
    torch.testing.assert_close(output, x, atol=1e-5, rtol=1e-5)


def test_position_enters_queries_not_values():
    run, transformer, *_ = build()
    attention = transformer.encoder.layers[0].self_attn
    seen = []
    attention.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    maps, masks = maps_of((4, 6), (2, 3))
    run(maps, masks)
    flat = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    torch.testing.assert_close(seen[0][2], flat, rtol=0, atol=0)
    sines = [sine_of_pixels(mask, WIDTH) + embed for mask, embed in zip(masks, transformer.level_embed, strict=True)]
    torch.testing.assert_close(seen[0][0], flat + torch.cat(sines, dim=1))


def test_a_missing_query_embedding_is_named():
    _, transformer, class_heads, box_heads = build()
    maps, masks = maps_of((2, 3), (1, 2))
    positions = [sine_of_pixels(mask, WIDTH) for mask in masks]
    with pytest.raises(ValueError, match="query_embed: expected"):
        transformer(maps, masks, positions, None, class_heads=class_heads, box_heads=box_heads)
