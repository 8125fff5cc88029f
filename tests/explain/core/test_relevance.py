"""The matrix-free rules against the rules as published, with every matrix formed; and deformable against dense."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform.explain.core.capture import Gradients, Tape, capture
from msdeform.explain.core.relevance import By, factors, relevance
from msdeform.explain.core.trace import AttentionTrace
from msdeform.models.attention import MSDeformAttn
from tests.explain.models import DETRS, images, uneven


def recorded(
    family: str, sizes: tuple[tuple[int, int], ...] = ((64, 64), (96, 64)), **settings: Any
) -> tuple[Tape, dict[str, Gradients]]:
    """A padded batch of two, and the gradients of one logit of the smaller image."""
    model = uneven(family, **settings)
    batch = [image.double() for image in images(*sizes)]
    with capture(model, "*", gradients=True) as tape:
        y = model(batch)["pred_logits"][0, 3, 1]
    return tape, tape.gradients(y)


def dense_factor(gradients: Gradients, by: By) -> Tensor:
    """C with A and G as whole matrices."""
    record = gradients.record
    if not record.site.deformable:
        return (record.weights[0] * gradients.weights[0]).clamp(min=0).mean(0)
    if by == "point":
        # the matrix of weights that are what the positive part leaves of them
        return replace(record, weights=(record.weights * gradients.weights).clamp(min=0)).dense()[0].mean(0)
    G = torch.einsum("qhd,shd->hqs", gradients.heads[0], record.value()[0])
    return (record.dense()[0] * G).clamp(min=0).mean(0)


def published(tape: Tape, gradients: dict[str, Gradients], by: By, *, parity: bool = False) -> Tensor:
    """R_qi (Q, S), by the rules of Chefer et al. 2021 as they are written down.

    A row of zeros is normalised to zeros; with parity to NaN, and an addition with a NaN in it to nothing.
    """
    C = {name: dense_factor(found, by) for name, found in gradients.items()}

    def normalised(rest: Tensor) -> Tensor:
        quotient = rest / rest.sum(-1, keepdim=True)
        return (quotient if parity else quotient.nan_to_num(0)) + torch.eye(len(rest))

    S, Q = len(C["encoder.0.self"]), len(C["decoder.0.cross"])
    # R - I in place of R: taken away at the end, I would leave the rounding of numbers much larger than some rows
    rest_ii, rest_qq, R_qi = torch.zeros(S, S).double(), torch.zeros(Q, Q).double(), torch.zeros(Q, S).double()
    for name in tape:
        if name not in C:
            continue
        if name.startswith("encoder"):
            rest_ii = rest_ii + C[name] + C[name] @ rest_ii
        elif name.endswith("self"):
            rest_qq, R_qi = rest_qq + C[name] + C[name] @ rest_qq, R_qi + C[name] @ R_qi
        else:
            addition = normalised(rest_qq).T @ C[name] @ normalised(rest_ii)
            R_qi = R_qi + (addition.nan_to_num(0) if parity else addition)
    return R_qi


@pytest.mark.parametrize("by", ["point", "pixel"])
@pytest.mark.parametrize("family", DETRS)
def test_matrix_free_is_the_published_rule(family: str, by: By) -> None:
    settings = {} if family in ("demo", "two-stage") else {"dec_layers": 2}
    if family.startswith("de") and family != "demo":
        settings["enc_layers"] = 2
    tape, gradients = recorded(family, **settings)
    expected = published(tape, gradients, by)
    assert expected[3].max() > 0
    c = factors(tape, gradients, by=by)
    got = relevance(c, [3, 0, 7])
    assert torch.allclose(got, expected[[3, 0, 7]], rtol=0, atol=1e-12)
    layers = relevance(c, [3], by_layer=True)
    assert layers.shape[1] == len([name for name in tape if name.endswith("cross")])
    assert torch.allclose(layers.sum(1), expected[[3]], rtol=0, atol=1e-12)


def test_parity_repeats_the_faults() -> None:
    """A layer is left out whole where a row is zero, as the first layer's of a DETR is whose queries begin as zeros."""
    # without padding, whose rows are zero: nobody attends to it
    tape, gradients = recorded("detr", ((64, 96),), dec_layers=2)
    c = factors(tape, gradients)
    assert published(tape, gradients, "point", parity=True)[3].max() > 0
    first = gradients["decoder.0.self"]
    first.weights[:, :, 3] = 0
    c.decoder_self[0][3] = 0  # which the second layer fills again
    expected = published(tape, gradients, "point", parity=True)
    whole = published(tape, gradients, "point")
    assert not torch.allclose(expected, whole)
    assert expected[3].max() > 0
    assert torch.allclose(relevance(c, [3], parity=True), expected[[3]], rtol=0, atol=1e-12)
    assert torch.allclose(relevance(c, [3]), whole[[3]], rtol=0, atol=1e-12)
    assert relevance(c, [3], by_layer=True, parity=True)[0, 0].sum() == 0
    # and a row of the encoder leaves nothing at all
    c.encoder[0][0] = 0
    gradients["encoder.0.self"].weights[:, :, 0] = 0
    assert relevance(c, [3], parity=True).sum() == 0
    assert published(tape, gradients, "point", parity=True).sum() == 0
    assert torch.allclose(relevance(c, [3]), published(tape, gradients, "point")[[3]], rtol=0, atol=1e-12)


def test_padding_and_the_other_image_get_nothing() -> None:
    for family in ("detr", "deformable"):
        tape, gradients = recorded(family)
        mask = tape["decoder.0.cross"].mask
        assert mask is not None
        assert mask[0].any()
        assert (relevance(factors(tape, gradients), [3])[0, mask[0]] == 0).all()
        other = factors(tape, gradients, 1)
        assert relevance(other, [3]).sum() == 0


@pytest.mark.parametrize("family", ["detr", "deformable"])
def test_several_targets_in_one_pass(family: str) -> None:
    """Of the sum of their gradients: their rows are those of the published rule for that sum."""
    trace = AttentionTrace(uneven(family), images((64, 64))[0], size=64)
    several = [trace.prediction(query) for query in (2, 5)]
    gradients = trace.gradients(several)
    got = relevance(factors(trace.tape, gradients), [2, 5])
    expected = published(trace.tape, gradients, "point")[[2, 5]]
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


def pixel_centred(model: torch.nn.Module, shape: tuple[int, int]) -> None:
    """Makes every attention of a model with one level sample each pixel's centre once."""
    h, w = shape
    y, x = torch.meshgrid(torch.arange(h).double() + 0.5, torch.arange(w).double() + 0.5, indexing="ij")
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            offsets = torch.stack([x, y], -1).view(1, 1, h * w, 2).expand(module.n_heads, -1, -1, -1)
            module.sampling_offsets.weight.data.zero_()
            module.sampling_offsets.bias.data.copy_(offsets.flatten())

            def at_the_corner(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                query, reference, *rest = args
                return (query, torch.zeros_like(reference), *rest), kwargs

            module.register_forward_pre_hook(at_the_corner, with_kwargs=True)


def test_with_a_sample_on_every_pixel_it_is_dense_attention() -> None:
    """The maps of deformable attention are then those of the same probabilities, as one matrix, by every method."""
    h, w = 2, 3
    settings = {"num_feature_levels": 1, "enc_n_points": h * w, "dec_n_points": h * w, "dec_layers": 2}
    model = uneven("deformable", **settings)
    pixel_centred(model, (h, w))
    image = images((64, 96))[0].double()
    with capture(model, "*", gradients=True) as tape:
        y = model([image])["pred_logits"][0, 3, 1]
    assert tape["decoder.0.cross"].shapes == ((h, w),)
    gradients = tape.gradients(y)
    for name, record in tape.items():
        if record.site.deformable:
            probabilities = record.weights[0, :, :, 0].transpose(0, 1)  # (H, Q, S), a point a pixel
            assert torch.allclose(record.dense()[0], probabilities, rtol=0, atol=1e-12), name
            G = torch.einsum("qhd,shd->hqs", gradients[name].heads[0], record.value()[0])
            assert torch.allclose(gradients[name].weights[0, :, :, 0].transpose(0, 1), G, rtol=0, atol=1e-12), name
    point, pixel = (relevance(factors(tape, gradients, by=by), [3]) for by in ("point", "pixel"))
    assert torch.allclose(point, pixel, rtol=0, atol=1e-12)
    assert torch.allclose(point[0], published(tape, gradients, "pixel")[3], rtol=0, atol=1e-12)
    assert point.max() > 0


@pytest.mark.parametrize("family", ["detr", "deformable"])
def test_the_encoder_rolled_out_is_the_product_of_its_attention(family: str) -> None:
    """After the decoder's rules as they are; where no encoder attends there is nothing to roll out."""
    tape, gradients = recorded(family, enc_layers=2, dec_layers=2)
    c = factors(tape, gradients, rollout=True)
    (before,) = relevance(replace(c, encoder=[], rollout=False), [3])
    assert torch.equal(relevance(replace(c, encoder=[]), [3])[0], before)
    expected = before
    for name in ("encoder.1.self", "encoder.0.self"):
        expected = (expected + expected @ tape[name].dense()[0].mean(0)) / 2
    (got,) = relevance(c, [3])
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(got, relevance(factors(tape, gradients), [3])[0])
    layers = relevance(c, [3], by_layer=True)
    assert torch.allclose(layers.sum(1)[0], got, rtol=0, atol=1e-12)


def test_one_head_is_its_own_factor() -> None:
    tape, gradients = recorded("deformable")
    whole = factors(tape, gradients).decoder_cross[0]
    heads = [factors(tape, gradients, head=head).decoder_cross[0] for head in range(2)]
    every = torch.eye(sum(h * w for h, w in tape["decoder.0.cross"].shapes), dtype=torch.float64)
    first, second, both = (factor @ every for factor in (*heads, whole))
    assert first.any()
    assert torch.allclose(both, (first + second) / 2, rtol=0, atol=1e-12)
