"""Pictures of many maps: the strongest beside the share of each, and what masks do to one detection's."""

from typing import Any

import numpy as np
import pytest
import torch

from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.figures.drawing import Drawing
from msdeform.explain.figures.heat import STRONGEST, draw_heat_grid, draw_strongest, inside, percent
from msdeform.explain.figures.masked import draw_masked_relevance, variants
from msdeform.explain.figures.views import Explained, View, find_layers
from tests.models.tiny import tiny

HEIGHT, WIDTH = 60, 80
LAYERS, HEADS = ["decoder layer 0", "decoder layer 1"], [f"head {n}" for n in range(4)]


@pytest.fixture(scope="module")
def trace() -> AttentionTrace:
    """Learned queries, which stay the same under masks."""
    torch.set_num_threads(1)
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return AttentionTrace(tiny("deformable", dec_layers=4), image, size=64)


def blob(total: float, x: int, y: int) -> torch.Tensor:
    """A map that adds up to `total`, within 4 x 4 pixels."""
    heat = torch.zeros(HEIGHT, WIDTH)
    heat[y : y + 4, x : x + 4] = total / 16
    return heat


def panels(drawing: Drawing) -> list[Any]:
    return [axes for axes in drawing.figure.axes if axes.get_label() != "<colorbar>"]


def said(drawing: Drawing) -> str:
    return " ".join(drawing.figure.get_suptitle().split("\n"))


def test_the_strongest_maps_are_drawn_and_the_share_of_each_is_told(trace: AttentionTrace) -> None:
    totals = [[1.0, 2, 30, 4], [5, 20, 7, 31]]
    heats = [
        [blob(total, 8 * column, 10 * row) for column, total in enumerate(line)] for row, line in enumerate(totals)
    ]
    drawing = draw_strongest(trace, heats, LAYERS, HEADS, trace.prediction(0), "relevance")
    table, *maps = panels(drawing)
    assert [text.get_text() for text in table.texts] == ["1", "2", "30", "4", "5", "20", "7", "31"]
    assert [axes.get_title() for axes in maps] == [
        "decoder layer 1, head 3: 31%",
        "decoder layer 0, head 2: 30%",
        "decoder layer 1, head 1: 20%",
        "decoder layer 1, head 2: 7%",
        "decoder layer 1, head 0: 5%",
    ]
    assert len(maps) == STRONGEST
    first = maps[0].images[1].get_array()
    assert np.allclose(first, heats[1][3] / heats[1][3].mean())
    assert {axes.images[1].norm.vmax for axes in maps} == {float(drawing.numbers["most"])}
    assert np.allclose(drawing.numbers["heat"][0, 1], heats[0][1])
    assert np.allclose(drawing.numbers["mean"] * HEIGHT * WIDTH, totals)
    assert "the 5 strongest" in said(drawing)
    nothing = draw_strongest(trace, [[torch.zeros(HEIGHT, WIDTH)] * 4] * 2, LAYERS, HEADS, trace.prediction(0), "it")
    assert "it: zero everywhere" in said(nothing)


def test_which_grids_are_cut_to_the_strongest(trace: AttentionTrace) -> None:
    """Not of six or fewer, and not raw attention, of which every head has as much."""
    for method, head, maps in (("relevance", "all", 1 + STRONGEST), ("raw", "all", 8), ("relevance", "mean", 4)):
        view = View(layer="all", head=head)
        look = Explained(trace, trace.prediction(0), view, find_layers(trace, "all"), "")
        ((_, draw),) = look.jobs(method)
        assert len(panels(draw())) == maps


def test_maps_in_one_line_have_their_whole_names(trace: AttentionTrace) -> None:
    heats = [[blob(1, 10 * n, 5)] for n in range(5)]
    drawing = draw_heat_grid(trace, heats, [f"layer {n}" for n in range(5)], ["all heads"])
    assert [axes.get_title() for axes in panels(drawing)] == [f"layer {n}, all heads" for n in range(5)]
    assert drawing.numbers["heat"].shape == (5, 1, HEIGHT, WIDTH)


def test_what_lies_inside_a_cut_out_is_told() -> None:
    heats = torch.stack([blob(98, 40, 10), blob(2, 10, 40)]).numpy()
    assert inside(heats, (35, 8, 50, 20)) == "cut out around the detection, where 98% of it lies"
    assert inside(heats, (0, 0, WIDTH, HEIGHT)) == "cut out around the detection, where all of it lies"
    assert inside(heats, None) == ""
    assert [percent(share) for share in (0.314, 0.012, 0.004, 0.0)] == ["31%", "1%", "0.4%", "0%"]


def test_masks_are_compared_by_shape_and_their_totals_told(trace: AttentionTrace) -> None:
    sets = [("one off", [Mask("decoder.*.cross", heads=(0,))]), ("all off", [Mask("decoder.*.cross")])]
    made = variants(trace.model, trace.image, sets, confidence=0.0, size=64)
    drawing = draw_masked_relevance(made, trace.prediction(1), 0.0)
    heats = drawing.numbers["heat"]
    layers = len(trace.cross_sites)
    assert heats.shape == (3, layers + 1, HEIGHT, WIDTH)
    on, one, none = panels(drawing)
    whole = heats[:, layers]
    assert np.allclose(one.images[1].get_array(), whole[1] / whole[1].mean(), rtol=1e-4)
    assert np.allclose(on.images[1].get_array(), whole[0] / whole[0].mean(), rtol=1e-4)
    assert one.images[1].norm.vmax == on.images[1].norm.vmax
    assert none.images[1].get_array().max() == 0
    assert "total" not in on.get_title()
    assert one.get_title().endswith(f"total x {whole[1].mean(dtype=float) / whole[0].mean(dtype=float):.2g}")
    assert none.get_title().endswith("total x 0")
    assert drawing.numbers["columns"].tolist()[-1] == "all layers"
