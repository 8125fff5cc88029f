"""Another image's content at one attention: on planted detectors, whose heads are known; and what cannot be."""

import math
from dataclasses import replace

import pytest
import torch

from msdeform.explain.ablation.patching import each_head, patch
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace
from tests.explain.models import images, uneven
from tests.explain.planted import GAIN, MIDDLES, PLANTED, SIDE, THRESHOLD, random_board

BLACK = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["values", "outputs"])
@pytest.mark.parametrize("family", PLANTED)
def test_the_head_of_a_colour_brings_its_square(family: str, kind: str) -> None:
    """In a black image, with the square of the other image: through that head alone, in both layers, it appears."""
    board = random_board(4, 1)
    query, label = board.queries[0], board.labels[0]
    trace = AttentionTrace(PLANTED[family](), BLACK)
    before = trace.prediction(query, label)
    assert before.score < 0.01
    for head, one in enumerate(patch(trace, board.image, before, each_both(trace), kind=kind)):
        assert (one.head, one.level) == (head, None)
        if head == label:
            assert one.score > 0.9
            assert one.change == pytest.approx(one.score - before.score)
            assert (one.name, one.name_score) == (trace.class_name(label), one.score)
        else:
            assert one.score == pytest.approx(before.score, abs=1e-9)
    # one layer brings half of the evidence: too little
    alone = patch(trace, board.image, before, [Mask("decoder.1.cross", heads=(label,))], kind=kind)[0]
    half = GAIN * (0.5 - THRESHOLD)
    # of dense attention, a little of what is read lies beside the square
    assert math.log(alone.score) == pytest.approx(half, rel=0.06)


def each_both(trace: AttentionTrace) -> list[Mask]:
    return [Mask("decoder.*.cross", heads=(head,)) for head in range(trace.sites["decoder.0.cross"].heads)]


@pytest.mark.parametrize("kind", ["values", "outputs"])
@pytest.mark.parametrize("family", ["detr", "deformable"])
def test_all_of_the_other_image_is_the_other_image(family: str, kind: str) -> None:
    """With every cross-attention's content of B, outputs are B's: a decoder knows of the image through them alone."""
    model = uneven(family, dec_layers=2)
    one, two = (image for image in images((64, 96), (64, 96)))
    trace, other = AttentionTrace(model, one, size=64), AttentionTrace(model, two, size=64)
    before, there = trace.prediction(3, 1), other.prediction(3, 1)
    # a layer further on looks by what came before: by values alone, each place must be patched from the first on
    found = patch(trace, two, before, [Mask("*.cross")], kind="outputs", size=64)[0]
    assert found.score == pytest.approx(there.score, abs=1e-9)
    assert found.box == pytest.approx(there.box, abs=1e-4)
    itself = patch(trace, one, before, [Mask("*.cross"), *each_head(trace)], kind=kind, size=64)
    assert len(itself) == 1 + 2 * trace.sites["decoder.0.cross"].heads
    for same in itself:
        assert same.score == pytest.approx(before.score, abs=1e-9)
        assert same.iou == pytest.approx(1, abs=1e-4)


def test_levels_are_patched_alone_and_add_up() -> None:
    """In the last layer, whose outputs nothing samples by: a level at a time, and all of them."""
    model = uneven("deformable")
    one, two = images((64, 96), (64, 96))
    trace = AttentionTrace(model, one, size=64)
    before = trace.prediction(3, 1)
    places = each_head(trace, by_level=True)
    site = trace.sites["decoder.0.cross"]
    assert len(places) == site.heads * site.levels
    found = patch(trace, two, before, places, size=64)
    assert [(each.head, each.level) for each in found] == [
        (head, level) for head in range(site.heads) for level in range(site.levels)
    ]
    assert len({round(each.score, 12) for each in found}) == len(found), "each level holds something else"
    whole = patch(trace, two, before, [Mask("decoder.0.cross", heads=(0,))], size=64)[0]
    both = patch(trace, two, before, [Mask("decoder.0.cross", heads=(0,), levels=(*range(site.levels),))], size=64)[0]
    assert replace(both, level=None) == whole


def test_two_stages_follow_the_same_pixel_and_take_values_alone() -> None:
    trace = AttentionTrace(uneven("two-stage"), images((64, 96))[0], size=64)
    other, before = images((64, 96), seed=1)[0], trace.prediction(3)
    found = patch(trace, other, before, [Mask("decoder.*.cross")], size=64)[0]
    assert found.change != 0
    same = patch(trace, trace.image, before, [Mask("encoder.*.self"), Mask("decoder.*.cross")], size=64)
    assert all(abs(each.change) < 1e-6 for each in same)
    with pytest.raises(ValueError, match="kind: queries of a two-stage detector differ"):
        patch(trace, other, before, [Mask()], kind="outputs", size=64)


def test_what_cannot_be_patched_is_said() -> None:
    trace = AttentionTrace(PLANTED["deformable"](), BLACK)
    before = trace.prediction(len(MIDDLES) - 1)
    wide = torch.zeros(3, SIDE, 2 * SIDE, dtype=torch.uint8)
    with pytest.raises(ValueError, match="other: expected an image that is resized to 64x64 as the first, got 128x64"):
        patch(trace, wide, before, [Mask()])
    with pytest.raises(ValueError, match="matches nothing"):
        patch(trace, BLACK, before, [Mask("decoder.7.cross")])
    with pytest.raises(ValueError, match="expected a head from 0 to 3"):
        patch(trace, BLACK, before, [Mask(heads=(9,))])
    with pytest.raises(ValueError, match="kind: expected values or outputs"):
        patch(trace, BLACK, before, [Mask()], kind="both")
