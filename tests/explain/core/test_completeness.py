"""What attentions are said to add to a target is what they add, where the answer is known."""

from typing import Any

import pytest
import torch

from msdeform.explain.core.completeness import completeness
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import TARGETS, AttentionTrace
from tests.explain.models import images, uneven
from tests.explain.planted import GAIN, PLANTED, random_board


def planted(kind: str, squares: int = 2) -> tuple[AttentionTrace, Any]:
    board = random_board(0, squares)
    trace = AttentionTrace(PLANTED[kind](), board.image)
    return trace, trace.prediction(board.queries[0], board.labels[0])


def test_the_last_layer_of_the_planted_detector_is_linear() -> None:
    """It adds half of the colour's share, and nothing speaks against it; the query itself sees nothing of others."""
    trace, prediction = planted("deformable")
    rows = {row.sites: row for row in completeness(trace, prediction)}
    assert list(rows) == [*trace.tape, "decoder.*.cross"]
    last = rows["decoder.1.cross"]
    assert last.kept == pytest.approx(GAIN / 2, abs=1e-6)
    assert last.lost == pytest.approx(0, abs=1e-6)
    assert last.change == pytest.approx(last.first_order, abs=1e-6)
    assert last.missed == pytest.approx(0, abs=1e-6)
    # all of the logit above its bias comes through the two layers
    assert rows["decoder.*.cross"].change == pytest.approx(GAIN, abs=1e-6)
    # evidence is doubled by the encoder: without it, half is left
    assert rows["encoder.0.self"].change == pytest.approx(GAIN / 2, abs=1e-6)
    for layer in (0, 1):
        among = rows[f"decoder.{layer}.self"]
        assert (among.kept, among.lost, among.change) == (0, 0, 0)


def test_where_everything_is_linear_the_sites_add_up() -> None:
    """Dense attention by position alone: the sum over both layers is their joint change."""
    trace, prediction = planted("dense")
    rows = {row.sites: row for row in completeness(trace, prediction)}
    together = rows["decoder.*.cross"]
    assert together.missed == pytest.approx(0, abs=1e-6)
    assert together.first_order == pytest.approx(
        sum(rows[f"decoder.{layer}.cross"].first_order for layer in (0, 1)), abs=1e-9
    )
    # a sharp head reads a little of what lies beside the square
    assert together.change == pytest.approx(GAIN, rel=0.05)


@pytest.mark.parametrize("target", TARGETS)
def test_small_weights_are_told_by_the_first_order(target: str) -> None:
    """The derivative of the change by a scale of all weights is the sum of the products: held to a difference."""
    trace = AttentionTrace(uneven("deformable", dec_layers=2), images((64, 64))[0], size=64)
    prediction = trace.prediction(3)
    (row,) = completeness(trace, prediction, target, ["decoder.1.cross"])
    assert row.kept >= 0 >= row.lost
    assert row.first_order != 0
    site = trace.sites["decoder.1.cross"].module
    step, y = 1e-5, []
    for sign in (1, -1):
        hook = site.output_proj.register_forward_pre_hook(lambda _, args, sign=sign: (args[0] * (1 + sign * step),))
        with torch.no_grad():
            y.append(float(trace.y(prediction, target, trace.model([trace.pixels]))))
        hook.remove()
    assert (y[0] - y[1]) / (2 * step) == pytest.approx(row.first_order, rel=1e-5, abs=1e-9)


def test_queries_are_the_same_after_what_would_choose_others() -> None:
    """In two stages, a mask on the encoder makes other pixels queries; the change is of the same one all the same."""
    trace = AttentionTrace(uneven("two-stage"), images((64, 96))[0], size=64)
    prediction = trace.prediction(3)
    masked = AttentionTrace(trace.model, trace.image, size=64, masks=[Mask("encoder.0.self")])
    seeds, others = trace.tape.seeds, masked.tape.seeds
    assert seeds is not None
    assert others is not None
    assert not torch.equal(seeds, others)
    (row,) = completeness(trace, prediction, patterns=["encoder.0.self"])
    chosen = (others[0] == seeds[0, 3]).nonzero()
    assert len(chosen) == 1, "the pixel is a query there as well, so that its logit is known"
    after = masked.y(masked.prediction(int(chosen[0]), prediction.label))
    expected = float((trace.y(prediction) - after).detach())
    assert row.change is not None
    # other queries beside it change its self-attention a little
    assert row.change == pytest.approx(expected, rel=0.2, abs=0.05)
    assert "choose_proposals" not in vars(trace.model.transformer)


def test_what_is_not_there() -> None:
    trace, prediction = planted("deformable", 1)
    with pytest.raises(ValueError, match="matches nothing"):
        completeness(trace, prediction, patterns=["decoder.7.cross"])
    with pytest.raises(ValueError, match="target: expected one of"):
        completeness(trace, prediction, "z")
