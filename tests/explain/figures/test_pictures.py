"""Pictures of attention: what is drawn lies where the trace says, on a fixed scale, and beside it are its numbers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.quiver import Quiver
from torch import Tensor

from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.trace import AttentionTrace, QueryPrediction
from msdeform.explain.figures.drawing import (
    MARKERS,
    Drawing,
    around,
    canvas,
    close_up,
    colour_of,
    draw_box,
    root_ticks,
    show,
)
from msdeform.explain.figures.encoder import draw_encoder
from msdeform.explain.figures.heat import LEAST, draw_heat, draw_heat_grid, heat_colours, percent
from msdeform.explain.figures.points import draw_point_grid, draw_points
from msdeform.explain.figures.trajectories import draw_journey, draw_queries, draw_seeds
from msdeform.explain.figures.truth import draw_truth
from tests.models.tiny import tiny
from tests.train.visual.test_label_placement import assert_apart_and_inside

HEIGHT, WIDTH = 90, 120
ARROWS = (
    "arrows: where to move a point so that {} rises; along the longest arrow {} a pixel (none below a quarter of that)"
)


def look(family: str, **overrides: Any) -> AttentionTrace:
    """A small detector of that family, with wandering points, at a small random image, wider than high."""
    model = tiny(family, **overrides)
    model.categories = ["cat", "dog", "emu"]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name or "bbox_embed" in name:
                parameter.normal_(0, 0.1, generator=generator)
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)
    return AttentionTrace(model, image, size=128)


@pytest.fixture(scope="module")
def deformable() -> AttentionTrace:
    """Two-stage, with refinement: references are boxes. Two decoder layers, 2 heads, 2 levels, 2 points."""
    torch.set_num_threads(1)
    return look("two-stage")


@pytest.fixture(scope="module")
def dense() -> AttentionTrace:
    return look("detr")


def panels(drawing: Drawing) -> list[Any]:
    """The axes with the image, without colour bars."""
    return [axes for axes in drawing.figure.axes if axes.get_label() != "<colorbar>"]


def bars(drawing: Drawing) -> list[Any]:
    return [axes for axes in drawing.figure.axes if axes.get_label() == "<colorbar>"]


def scattered(axes: Any) -> list[Any]:
    """Collections of weighted points, by level."""
    return [one for one in axes.collections if one.get_array() is not None]


def said(drawing: Drawing) -> str:
    return drawing.figure.get_suptitle()


def rectangles(axes: Any) -> list[tuple[float, float, float, float]]:
    found = []
    for patch in axes.patches:
        x, y, w, h = patch.get_bbox().bounds
        found.append((x, y, x + w, y + h))
    return found


def test_points_lie_where_the_scene_says_and_are_the_numbers(deformable: AttentionTrace) -> None:
    prediction = deformable.prediction(3)
    drawing = draw_points(deformable, prediction, "decoder.1.cross", image="street.jpg")
    points = deformable.points("decoder.1.cross", 3)
    assert np.array_equal(drawing.numbers["xy"], points.xy)
    assert np.array_equal(drawing.numbers["weights"], points.weights)
    assert np.array_equal(drawing.numbers["reference"], points.reference)
    assert tuple(drawing.numbers["box"]) == pytest.approx(prediction.box)
    for axes in panels(drawing):
        assert len(scattered(axes)) == 2
        for level, collection in enumerate(scattered(axes)):
            order = np.argsort(points.weights[:, level].flatten().numpy(), kind="stable")
            assert np.array_equal(collection.get_offsets(), points.xy[:, level].reshape(-1, 2)[order])
            assert np.array_equal(collection.get_array(), points.weights[:, level].flatten()[order])
            assert np.all(np.diff(collection.get_sizes()) >= 0)
        x, y, w, h = points.reference.tolist()
        boxes = rectangles(axes)
        assert boxes[0] == pytest.approx(prediction.box)
        assert boxes[1] == pytest.approx((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        (cross,) = axes.lines
        assert (cross.get_xdata()[0], cross.get_ydata()[0]) == pytest.approx((x, y))
    assert said(drawing).startswith(f"street.jpg: {prediction.name} {prediction.score:.2f} (query 3)\n")
    assert "decoder layer 1, cross-attention, all heads, all levels: 8 sampled points" in " ".join(
        said(drawing).split("\n")
    )


def test_an_image_pixel_is_drawn_at_its_own_place(deformable: AttentionTrace) -> None:
    axes = panels(draw_points(deformable, deformable.prediction(0), "decoder.0.cross"))[0]
    image = axes.images[0]
    assert tuple(image.get_extent()) == (0, WIDTH, HEIGHT, 0)
    assert axes.get_aspect() == 1
    assert image.get_array().shape == (HEIGHT, WIDTH, 3)
    grey = deformable.image.float().mean(0).flatten().numpy()
    assert np.corrcoef(image.get_array().mean(-1).flatten(), grey)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"heads": [1]}, "head 1, all levels: 4 sampled points"),
        ({"levels": [1]}, "all heads, level 1: 4 sampled points"),
        ({"heads": [0], "levels": [0]}, "head 0, level 0: 2 sampled points"),
    ],
)
def test_heads_and_levels_apart(deformable: AttentionTrace, chosen: dict[str, list[int]], sentence: str) -> None:
    drawing = draw_points(deformable, deformable.prediction(0), "decoder.0.cross", **chosen)
    whole = deformable.points("decoder.0.cross", 0).xy.numpy()
    part = whole[chosen.get("heads", slice(None))][:, chosen.get("levels", slice(None))]
    assert np.array_equal(drawing.numbers["xy"], part)
    assert sum(len(one.get_offsets()) for one in scattered(panels(drawing)[0])) == part[..., 0].size
    assert sentence in said(drawing)
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    levels = chosen.get("levels", [0, 1])
    shown = [f"level {level} ({h} x {w})" for level, (h, w) in enumerate(deformable.shapes) if level in levels]
    assert labels == [*shown, "reference", "reference box"]
    markers = [handle.get_marker() for handle in drawing.figure.legends[0].legend_handles[: len(levels)]]
    assert markers == [MARKERS[level] for level in levels]


def test_the_scale_is_the_same_for_every_picture(deformable: AttentionTrace) -> None:
    for query in (0, 5):
        norm = scattered(panels(draw_points(deformable, deformable.prediction(query), "decoder.0.cross"))[0])[0].norm
        assert (norm.vmin, norm.vmax) == (0, 1)
        assert float(norm(0.25)) == 0.5  # the square root
    drawing = draw_points(deformable, deformable.prediction(0), "decoder.0.cross", most=0.1)
    assert scattered(panels(drawing)[0])[0].norm.vmax == 0.1
    (bar,) = bars(drawing)
    assert "0.1" in [text.get_text() for text in bar.get_yticklabels()]
    assert "1" not in [text.get_text() for text in bar.get_yticklabels()]
    assert "weight" in bar.get_ylabel()


def test_a_heat_map_is_drawn_in_units_of_its_mean(deformable: AttentionTrace) -> None:
    prediction = deformable.prediction(2)
    heat = heat_map(deformable, prediction, "raw")
    drawing = draw_heat(deformable, heat, prediction, "raw attention", image="street.jpg")
    assert np.array_equal(drawing.numbers["heat"], heat)
    shown = panels(drawing)[0].images[1]
    assert tuple(shown.get_extent()) == (0, WIDTH, HEIGHT, 0)
    assert np.allclose(shown.get_array(), heat / heat.mean())
    assert shown.norm.vmax == pytest.approx(max(float(heat.max() / heat.mean()), LEAST))
    assert said(drawing).endswith("raw attention")
    assert draw_heat(deformable, heat, most=30.0).numbers["most"] == 30
    # a lone pixel does not leave the rest dark, which the bar says by its arrow
    lone = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 20 + torch.eye(HEIGHT, WIDTH)
    lone[lone < 19] = 0
    lone[3, 4] = 10_000
    end = float(draw_heat(deformable, lone).numbers["most"])
    assert end == pytest.approx(3 * float((lone / lone.mean()).quantile(0.999)), rel=1e-4)
    assert end < float(lone.max() / lone.mean()) / 10
    # what is nearly uniform does not look like a peak, and nothing is nothing
    flat = draw_heat(deformable, torch.ones(HEIGHT, WIDTH))
    assert flat.numbers["most"] == LEAST
    assert "zero everywhere" in said(draw_heat(deformable, torch.zeros(HEIGHT, WIDTH), title="relevance"))


def rendered(drawing: Drawing) -> np.ndarray:
    """(H, W, 3) uint8, of the whole figure."""
    canvas = FigureCanvasAgg(drawing.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_a_photograph_keeps_its_colours_where_a_map_is_low() -> None:
    """To the pixel where it is zero, nearly at a hundredth of its maximum, and more is hidden the higher it is."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image[0], image[1] = 200, 120
    trace = AttentionTrace(tiny("detr"), image, size=128)
    heat = torch.zeros(HEIGHT, WIDTH)
    heat[:, 80:] = 0.01
    heat[:, 100:] = 1.0
    drawing = draw_heat(trace, heat)
    picture = rendered(drawing)
    view = panels(drawing)[0].get_window_extent()
    middle = picture.shape[0] - round((view.y0 + view.y1) / 2)
    zero, low, high = (
        picture[middle, round(view.x0 + x / WIDTH * view.width)].astype(int) for x in (40.0, 90.0, 110.0)
    )
    assert zero.tolist() == [200, 120, 0]
    assert np.abs(low - zero).max() < 25
    assert np.abs(high - zero).max() > 60
    opacity = heat_colours()(np.linspace(0, 1, 256))[:, 3]
    assert opacity[0] == 0
    assert (np.diff(opacity) >= 0).all()
    assert opacity[81] < 1 / 3, "at a tenth of the maximum, whose square root is 0.32"


def test_names_of_boxes_are_apart_and_inside(deformable: AttentionTrace) -> None:
    """45 of them in one picture, wherever the boxes are; as they are drawn, at any resolution and zoomed in."""
    random = np.random.default_rng(0)
    corners = random.uniform([-10, -10], [120, 90], (45, 2))
    figure, [[axes]] = canvas(deformable)
    for corner, size in zip(corners, random.uniform(4, 50, (45, 2)), strict=True):
        draw_box(axes, [*corner, *(corner + size)], (1.0, 0.2, 0.1), name=f"dog {random.uniform():.2f}")
    (labels,) = axes.artists
    for dpi, window in ((60, None), (150, None), (100, (30, 20, 90, 65))):
        figure.set_dpi(dpi)
        if window is not None:
            show(axes, deformable, np.zeros((0, 2)), window)
        rendered(Drawing(figure, {}))
        view = axes.get_window_extent()
        assert len(labels.placed) == 45 or window is not None
        assert len(labels.placed) > 20
        assert_apart_and_inside(labels.placed, (view.x0 - 0.1, -view.y1 - 0.1, view.x1 + 0.1, -view.y0 + 0.1))


def test_the_caption_of_arrows_is_words_and_pixels(deformable: AttentionTrace) -> None:
    prediction, site = deformable.prediction(3), "decoder.1.cross"
    told = {
        target: " ".join(said(draw_points(deformable, prediction, site, slopes=target)).split())
        for target in ("class", "x", "h")
    }
    longest = {
        target: float(np.linalg.norm(deformable.slopes(site, prediction, target), axis=-1).max()) for target in told
    }
    by = f"its logit by {longest['class']:.2g}"
    assert told["class"].endswith(ARROWS.format(f"the score of {prediction.name}", by))
    # the model has coordinates in [0, 1]
    by = f"by {longest['x'] * WIDTH:.2g} pixels"
    assert told["x"].endswith(ARROWS.format("the horizontal position of its box", by))
    by = f"by {longest['h'] * HEIGHT:.2g} pixels"
    assert told["h"].endswith(ARROWS.format("the height of its box", by))


def test_arrows_are_those_of_the_steepest_slopes(deformable: AttentionTrace) -> None:
    drawing = draw_points(deformable, deformable.prediction(3), "decoder.1.cross", slopes="class")
    xy, slopes = drawing.numbers["xy"].reshape(-1, 2), drawing.numbers["slopes"].reshape(-1, 2)
    length = np.linalg.norm(slopes, axis=-1)
    *before, last = panels(drawing)
    assert not any(isinstance(one, Quiver) for axes in before for one in axes.collections)
    (arrows,) = (one for one in last.collections if isinstance(one, Quiver))
    long = length >= length.max() / 4
    assert 0 < long.sum() < len(long)
    assert np.allclose(arrows.XY, xy[long])
    assert np.allclose(np.arctan2(arrows.V, arrows.U), np.arctan2(slopes[long, 1], slopes[long, 0]), atol=1e-5)


def test_a_reference_box_that_the_detections_hides_is_left_out(deformable: AttentionTrace) -> None:
    prediction = deformable.prediction(3)
    x, y, w, h = deformable.points("decoder.1.cross", 3).reference.tolist()
    for shift, boxes in ((0.0, 1), (0.04 * w, 1), (0.06 * w, 2)):
        moved = replace(prediction, box=(x - w / 2 + shift, y - h / 2, x + w / 2 + shift, y + h / 2))
        drawing = draw_points(deformable, moved, "decoder.1.cross")
        assert {len(axes.patches) for axes in panels(drawing)} == {boxes}
        labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
        assert ("reference box" in labels) == (boxes == 2)


@pytest.mark.parametrize(
    ("heat", "sentence"),
    [
        (torch.ones(WIDTH, HEIGHT), r"heat: expected the image's size \(90, 120\), got \(120, 90\)"),
        (torch.full((HEIGHT, WIDTH), -1.0), "heat: expected finite values of at least 0, got -1.0 to -1.0"),
        (torch.full((HEIGHT, WIDTH), float("nan")), "heat: expected finite values"),
    ],
)
def test_what_is_no_heat_map_is_refused(deformable: AttentionTrace, heat: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw_heat(deformable, heat)


def test_a_grid_of_points_has_each_once(deformable: AttentionTrace) -> None:
    prediction, sites = deformable.prediction(1), ["decoder.0.cross", "decoder.1.cross"]
    every = torch.stack([deformable.points(site, 1).xy for site in sites])  # (N, H, L, P, 2)
    expected: dict[str, Callable[[int, int], Tensor]] = {
        "layers x heads": lambda row, column: every[row, column],
        "layers x levels": lambda row, column: every[row, :, column],
        "heads x levels": lambda row, column: every[0, row, column],
    }
    for by, cell in expected.items():
        some = sites[:1] if by == "heads x levels" else sites
        drawing = draw_point_grid(deformable, prediction, some, by=by)  # type: ignore[arg-type]
        assert np.array_equal(drawing.numbers["xy"], every[: len(some)])
        for place, axes in enumerate(panels(drawing)):
            there = np.concatenate([one.get_offsets() for one in scattered(axes)])
            wanted = cell(*divmod(place, 2)).reshape(-1, 2).numpy()
            assert sorted(map(tuple, there.tolist())) == sorted(map(tuple, wanted.tolist())), by
        limits = {(axes.get_xlim(), axes.get_ylim()) for axes in panels(drawing)}
        assert len(limits) == 1
        assert len(bars(drawing)) == 1
    rows = [axes.get_ylabel() for axes in panels(drawing)]
    assert rows == ["head 0", "", "head 1", ""]


def test_a_grid_of_maps_is_on_one_scale_each_in_units_of_its_mean(deformable: AttentionTrace) -> None:
    prediction, columns = deformable.prediction(1), ["level 0", "level 1"]
    maps = [
        [heat_map(deformable, prediction, "gradcam", layer=layer, level=level) for level in (0, 1)] for layer in (0, 1)
    ]
    drawing = draw_heat_grid(deformable, maps, ["layer 0", "layer 1"], columns, prediction)
    heats = drawing.numbers["heat"]
    assert heats.shape == (2, 2, HEIGHT, WIDTH)
    assert np.array_equal(heats[1, 0], maps[1][0])
    for place, axes in enumerate(panels(drawing)):
        heat = heats[divmod(place, 2)]
        assert np.allclose(axes.images[1].get_array(), heat / (heat.mean() or 1), rtol=1e-5)
        (share,) = axes.texts
        assert share.get_text() == percent(heat.sum() / heats.sum())
        assert drawing.numbers["mean"][divmod(place, 2)] == pytest.approx(heat.mean())
        assert axes.images[1].norm.vmax == float(drawing.numbers["most"])
    assert drawing.numbers["columns"].tolist() == columns
    assert [axes.get_title() for axes in panels(drawing)] == [*columns, "", ""]
    assert [axes.get_ylabel() for axes in panels(drawing)] == ["layer 0", "", "layer 1", ""]


def test_the_encoder_is_drawn_by_row_and_by_column(dense: AttentionTrace, deformable: AttentionTrace) -> None:
    places = [(30.0, 20.0), (100.0, 80.0)]
    for trace, columns in ((dense, 2), (deformable, 2)):
        drawing = draw_encoder(trace, "encoder.0.self", places, head=1)
        numbers = drawing.numbers
        matrix = trace.tape["encoder.0.self"].dense()[0, 1]
        for number, (x, y) in enumerate(places):
            token = trace.token_at(x, y)
            assert numbers["tokens"][number] == token
            assert np.allclose(numbers["rows"][number], trace.to_pixels(matrix[token]), atol=1e-7)
            assert np.allclose(numbers["columns"][number], trace.to_pixels(matrix[:, token]), atol=1e-7)
            axes = panels(drawing)[number * columns : (number + 1) * columns]
            maps = [one.images[1].get_array() for one in axes[-2:]]
            assert np.allclose(maps[0], numbers["rows"][number] * HEIGHT * WIDTH)
            assert np.allclose(maps[1], numbers["columns"][number] * HEIGHT * WIDTH)
            rings = [one for one in axes[0].collections if one.get_array() is None]
            assert rings[0].get_offsets().tolist() == [[x, y]]
        titles = [axes.get_title() for axes in panels(drawing)[:columns]]
        assert titles[-2:] == ["where this place looks (row)", "which places look here (column)"]
        assert "head 1" in said(drawing)
    points = deformable.points("encoder.0.self", int(numbers["tokens"][0]))
    assert np.array_equal(numbers["xy"][0, 0], points.xy[1])
    drawn = panels(drawing)[0].collections[-2:]
    assert [np.array_equal(one.get_offsets(), points.xy[1, level]) for level, one in enumerate(drawn)] == [True, True]
    assert (drawn[1].get_sizes().argsort() == points.weights[1, 1].argsort().numpy()).all()


def test_a_journey_leads_from_the_reference_to_the_last_box(deformable: AttentionTrace) -> None:
    prediction = deformable.prediction(4)
    drawing = draw_journey(deformable, prediction)
    numbers = drawing.numbers
    assert np.array_equal(numbers["boxes"], deformable.layer_boxes[:, 4])
    assert numbers["own_scores"][-1] == pytest.approx(prediction.score)
    assert numbers["labels"].tolist() == deformable.layer_scores[:, 4].argmax(-1).tolist()
    assert np.array_equal(numbers["references"], torch.stack([one[4] for one in deformable.references]))
    layers = panels(drawing)
    # a picture a layer, in which its box lies over the last one, dashed
    assert np.allclose([rectangles(axes)[-1] for axes in layers], numbers["boxes"])
    assert np.allclose(rectangles(layers[0])[:-1], numbers["boxes"][-1:])
    assert layers[0].patches[0].get_linestyle() == "--"
    assert len(layers[1].patches) == 1
    centres = (numbers["boxes"][:, :2] + numbers["boxes"][:, 2:]) / 2
    stops = np.concatenate([numbers["references"][:1, :2], centres])
    # arrows where the way is long enough to be seen
    for axes, start, end in ((layers[0], *stops[:2]), (layers[1], *stops[1:])):
        arrows = [(one.xyann, one.xy) for one in axes.texts if one.arrow_patch is not None]
        seen_from = 0.02 * max(abs(np.diff(axes.get_xlim())[0]), abs(np.diff(axes.get_ylim())[0]))
        assert len(arrows) == int(np.linalg.norm(end - start) >= seen_from)
        assert np.allclose(arrows, [(start, end)] if arrows else [])
    crosses = [next(line.get_xydata()[0] for line in axes.lines if line.get_marker() == "+") for axes in layers]
    assert np.allclose(crosses, numbers["references"][:, :2])
    name = ["cat", "dog", "emu"][numbers["labels"][0]]
    first = layers[0].get_title()
    assert first.startswith(f"layer 0: {name} {numbers['scores'][0]:.2f}")
    assert f"moved by {np.linalg.norm(stops[1] - stops[0]):.1f} pixels, IoU 0." in first


def test_layers_whose_boxes_coincide_are_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = look("two-stage", dec_layers=4)
    boxes = torch.tensor([[10.0, 10, 50, 50], [60, 10, 100, 50], [60, 10, 100, 50.5], [60, 10, 100, 51]])
    scores = torch.zeros(4, trace.queries, 3)
    scores[:, :, 1] = torch.tensor([0.2, 0.4, 0.5, 0.6])[:, None]
    every = boxes[:, None].expand(-1, trace.queries, -1)
    monkeypatch.setattr(AttentionTrace, "layer_boxes", every)
    monkeypatch.setattr(AttentionTrace, "layer_scores", scores)
    drawing = draw_journey(trace, trace.prediction(2))
    first, rest = panels(drawing)
    assert first.get_title().startswith("layer 0: dog 0.20\n")
    assert rest.get_title().startswith("layers 1 to 3: dog 0.40 to 0.60\n")
    assert rectangles(rest) == [pytest.approx((60, 10, 100, 51))]
    assert "layers whose boxes coincide are one picture" in " ".join(said(drawing).split("\n"))
    assert drawing.numbers["boxes"].shape == (4, 4)
    # of another class it is another picture
    scores[3, :, 2] = 0.9
    assert len(panels(draw_journey(trace, trace.prediction(2, 1)))) == 3


def test_references_that_begin_as_points_and_become_boxes() -> None:
    """A detector that refines boxes in one stage."""
    trace = look("two-stage", two_stage=False)
    assert [reference.shape[-1] for reference in trace.references] == [2, 4]
    prediction, sites = trace.prediction(0), ["decoder.0.cross", "decoder.1.cross"]
    grid = draw_point_grid(trace, prediction, sites)
    reference = grid.numbers["reference"]
    assert np.isnan(reference[0, 2:]).all()
    assert np.isfinite(reference[1]).all()
    # the detection's box, and from the second layer on that of the reference
    assert [len(axes.patches) for axes in panels(grid)] == [1, 1, 2, 2]
    assert np.array_equal(draw_journey(trace, prediction).numbers["references"], reference, equal_nan=True)
    assert draw_queries(trace).numbers["references"].shape == (2, trace.queries, 4)


def test_a_journey_of_detr_has_no_reference(dense: AttentionTrace) -> None:
    numbers = draw_journey(dense, dense.prediction(0)).numbers
    assert "references" not in numbers
    assert numbers["boxes"].shape == (1, 4)
    assert "references" not in draw_queries(dense).numbers


def test_all_queries_are_drawn_in_the_colours_of_their_classes(deformable: AttentionTrace) -> None:
    scores = deformable.layer_scores[-1].amax(-1)
    confidence = float(scores.sort(descending=True).values[2])
    drawing = draw_queries(deformable, confidence)
    numbers = drawing.numbers
    boxes = deformable.layer_boxes.numpy()
    assert np.allclose(numbers["centres"], (boxes[..., :2] + boxes[..., 2:]) / 2)
    assert np.array_equal(numbers["references"], torch.stack(deformable.references))
    sure = np.flatnonzero(numbers["scores"][-1] >= confidence)
    last = panels(drawing)[0].collections[-1]
    assert np.array_equal(last.get_offsets(), numbers["centres"][-1, sure])
    labels = numbers["labels"][-1, sure].tolist()
    assert np.allclose(last.get_facecolors()[:, :3], [colour_of(label) for label in labels])
    assert np.allclose(last.get_sizes(), 90 * numbers["scores"][-1, sure] + 2)
    told = " ".join(said(drawing).split("\n"))
    assert f"{len(scores)} queries through 2 decoder layers: the way of the {len(sure)} that detect something" in told
    start, rest = panels(drawing)[0].collections[-2], panels(drawing)[0].collections[0]
    assert np.array_equal(start.get_offsets(), numbers["references"][0, sure, :2])
    assert len(rest.get_offsets()) == len(scores) - len(sure)
    ways = [line.get_xydata() for line in panels(drawing)[0].lines]
    path = np.concatenate([numbers["references"][:1, :, :2], numbers["centres"]])
    assert np.allclose(ways, np.concatenate([np.stack(pair, 1) for pair in pairwise(path[:, sure])]))


def test_seeds_are_the_tokens_that_became_queries(deformable: AttentionTrace, dense: AttentionTrace) -> None:
    drawing = draw_seeds(deformable, confidence=0.0)
    numbers = drawing.numbers
    assert deformable.tape.seeds is not None
    assert numbers["tokens"].tolist() == deformable.tape.seeds[0, numbers["queries"]].tolist()
    for token, xy, level in zip(numbers["tokens"], numbers["xy"], numbers["levels"], strict=True):
        assert (*xy, level) == pytest.approx(deformable.place_of(int(token)))
    drawn = {tuple(line.get_xydata()[0]) for line in panels(drawing)[0].lines}
    assert drawn == set(map(tuple, numbers["xy"]))
    with pytest.raises(ValueError, match="seeds: expected a two-stage detector"):
        draw_seeds(dense)
    assert draw_seeds(deformable, confidence=1.0).numbers["boxes"].shape == (0, 4)


def test_detections_beside_truth(deformable: AttentionTrace) -> None:
    best, other = deformable.detections(0.0)[:2]
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], list(best.box)])
    drawing = draw_truth(deformable, boxes, torch.tensor([2, best.label]), confidence=other.score)
    numbers = drawing.numbers
    assert numbers["matched"][0] == 1
    assert 0 not in numbers["matched"]
    left, right = panels(drawing)
    assert [patch.get_linestyle() for patch in left.patches] == ["--", "-"]
    assert rectangles(right)[-1] == pytest.approx(best.box)
    assert right.patches[-1].get_linestyle() == "-"
    none = draw_truth(deformable, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), confidence=1.0)
    assert none.numbers["matched"].shape == (0,)


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda s, d, a: draw_points(d, a, "decoder.0.cross"), "decoder.0.cross attends to every key"),
        (
            lambda s, d, a: draw_points(s, a, "decoder.7.cross"),
            "site 'decoder.7.cross': expected one of encoder.0.self",
        ),
        (
            lambda s, d, a: draw_points(s, a, "decoder.0.cross", heads=[2]),
            "head: expected from 0 to 1 at decoder.0.cross",
        ),
        (lambda s, d, a: draw_points(s, a, "decoder.0.cross", levels=[-1]), "level: expected from 0 to 1 at decoder"),
        (lambda s, d, a: draw_points(s, a, "decoder.0.cross", most=0.0), "most: expected a number above 0, the end of"),
        (lambda s, d, a: draw_encoder(s, "decoder.0.cross", [(1, 1)]), "expected one of the encoder's, encoder.0.self"),
        (lambda s, d, a: draw_encoder(s, "encoder.0.self", []), "places: expected at least one x, y"),
        (lambda s, d, a: draw_encoder(s, "encoder.0.self", [(500, 1)]), "ref: expected a place within 120 x 90"),
        (lambda s, d, a: draw_encoder(s, "encoder.0.self", [(5, 1)], head=9), "head: expected from 0 to 1"),
        (lambda s, d, a: draw_point_grid(s, a, []), "sites: expected at least one site for layers x heads, got none"),
        (lambda s, d, a: draw_point_grid(s, a, ["x"], by="heads"), "by: expected layers x heads, layers x levels"),
        (
            lambda s, d, a: draw_point_grid(s, a, ["a", "b"], by="heads x levels"),
            "sites: expected one site for heads x levels",
        ),
        (lambda s, d, a: draw_heat_grid(s, [[]], ["a"], ["b"]), "heats: expected 1 rows of 1 maps, got rows of 0"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_sentence(
    deformable: AttentionTrace,
    dense: AttentionTrace,
    draw: Callable[[AttentionTrace, AttentionTrace, QueryPrediction], Drawing],
    sentence: str,
) -> None:
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        draw(deformable, dense, deformable.prediction(0))


def test_picture_and_numbers_are_written_side_by_side(deformable: AttentionTrace, tmp_path: Path) -> None:
    drawing = draw_points(deformable, deformable.prediction(0), "decoder.0.cross")
    written = drawing.save(tmp_path / "deep" / "points.png", dpi=40)
    assert [path.name for path in written] == ["points.png", "points.npz"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    with np.load(written[1]) as found:
        assert set(found) == set(drawing.numbers)
        assert np.array_equal(found["xy"], drawing.numbers["xy"])
    with pytest.raises(ValueError, match="picture: expected a name that ends in .png, .svg, .pdf, got .*points.gif"):
        drawing.save(tmp_path / "points.gif")


def test_points_outside_the_image_are_shown_or_counted() -> None:
    trace = look("deformable")
    site = trace.tape["decoder.0.cross"].site.module
    with torch.no_grad():
        site.sampling_offsets.bias.view(2, 2, 2, 2)[0, 0] = torch.tensor([-40.0, 0.0])
        site.sampling_offsets.bias.view(2, 2, 2, 2)[1, 1] = torch.tensor([0.0, 1.0])
    trace = AttentionTrace(trace.model, trace.image, size=128)
    drawing = draw_points(trace, trace.prediction(0), "decoder.0.cross")
    x = drawing.numbers["xy"][..., 0]
    assert x.min() < -0.15 * WIDTH
    axes = panels(drawing)[0]
    assert axes.get_xlim()[0] == pytest.approx(-0.15 * WIDTH)
    outside = int((x < -0.15 * WIDTH).sum())
    assert f"{outside} of them outside the picture" in " ".join(said(drawing).split("\n"))


def test_windows_have_the_proportions_of_the_image(deformable: AttentionTrace) -> None:
    window = around(deformable, np.array([[10.0, 10.0], [20.0, 25.0]]), margin=0.1)
    assert window is not None
    x0, y0, x1, y1 = window
    assert (x1 - x0) / (y1 - y0) == pytest.approx(WIDTH / HEIGHT)
    assert min(x0, y0) >= 0
    assert max(x0, y0) <= 10
    assert x1 >= 20
    assert y1 >= 25
    assert around(deformable, np.array([[0.0, 0.0], [100.0, 80.0]]), margin=0.1) is None


def test_a_close_up_lies_within_the_image_and_is_no_strip(deformable: AttentionTrace) -> None:
    for box in ((10.0, 10, 14, 40), (0, 80, 40, 90), (60, 40, 62, 42)):
        window = close_up(deformable, np.array(box).reshape(-1, 2), margin=0.2)
        assert window is not None
        x0, y0, x1, y1 = window
        assert 0 <= x0 <= box[0] < box[2] <= x1 <= WIDTH
        assert 0 <= y0 <= box[1] < box[3] <= y1 <= HEIGHT
        assert 0.74 < (x1 - x0) / (y1 - y0) < 1.34
        assert x1 - x0 >= 0.9 * WIDTH / 8
    assert close_up(deformable, np.array([[0.0, 0.0], [100.0, 80.0]]), margin=0.1) is None


def test_ticks_are_round_and_apart() -> None:
    for most in (1.0, 0.1, 20.4, 8.0, 137.0, 1e-4):
        ticks = root_ticks(most)
        assert ticks[0] == most
        assert ticks[-1] == 0
        assert 4 <= len(ticks) <= 9
        assert np.diff(np.sqrt(ticks)).max() <= -0.06 * most**0.5
    assert root_ticks(1.0) == pytest.approx([1, 0.5, 0.2, 0.1, 0.05, 0.01, 0])
