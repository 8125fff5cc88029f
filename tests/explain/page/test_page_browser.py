"""The page in a real browser, from a file: what is drawn follows hand and keys, and nothing is asked of the network."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msdeform.explain.core.maps import heat_map, token_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.figures.drawing import MARKERS, root_scale
from msdeform.explain.figures.points import point_colours
from msdeform.explain.page import page as page_module
from msdeform.explain.page.page import write_page
from msdeform.train.visual.boxes import class_colour
from msdeform.train.visual.label_placement import place_labels
from tests.explain.page.browser import HOSTILE as HOSTILE_NAME
from tests.explain.page.browser import NARROW, Open, Watched, browser, dark, wider_than_the_window
from tests.explain.page.test_page import HOSTILE
from tests.explain.stand_in import StandInTrace, stand_in_head_maps, stand_in_maps
from tests.models.tiny import tiny
from tests.train.visual.test_label_placement import assert_apart_and_inside, random_boxes

pytestmark = pytest.mark.slow

# the first canvas as a PNG, to see whether anything changed
INK = "() => document.querySelector('.view canvas').toDataURL()"
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(autouse=True)
def made_up_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "layer_maps", stand_in_maps)
    monkeypatch.setattr(page_module, "head_maps", stand_in_head_maps)


def ink(watched: Watched) -> str:
    watched.page.evaluate(DRAWN)
    return watched.page.evaluate(INK)


def state(watched: Watched) -> dict[str, Any]:
    watched.page.evaluate(DRAWN)
    return watched.page.evaluate("() => msdeform.state")


def on_image(watched: Watched, x: float, y: float, trace: StandInTrace) -> tuple[float, float]:
    """A place of the image in the browser's window."""
    area = watched.page.locator(".view canvas").first.bounding_box()
    _, height, width = trace.image.shape
    return area["x"] + x * area["width"] / width, area["y"] + y * area["height"] / height


def splat(trace: StandInTrace, query: int, layers: list[int], heads: list[int], levels: list[int]) -> np.ndarray:
    """Raw attention by grid_sample's own adjoint: the gradient of the sampled sum by the value, in float64."""
    starts = np.cumsum([0, *(h * w for h, w in trace.shapes)])
    tokens = torch.zeros(int(starts[-1]), dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for layer in layers:
        record = trace.tape[f"decoder.{layer}.cross"]
        for head in heads:
            for level in levels:
                h, w = trace.shapes[level]
                value = tokens[starts[level] : starts[level + 1]].view(1, 1, h, w)
                where = 2 * record.locations[0, query, head, level].double()[None, None] - 1
                sampled = torch.nn.functional.grid_sample(value, where, align_corners=False)[0, 0, 0]
                total = total + (sampled * record.weights[0, query, head, level].double()).sum()
    (gradient,) = torch.autograd.grad(total / (len(layers) * len(heads)), tokens)
    return gradient.numpy()


@pytest.mark.parametrize(
    ("layers", "heads", "levels"), [([2], [0, 1], [0, 1]), ([0], [1], [0, 1]), ([0, 1, 2], [0], [1])]
)
def test_raw_attention_is_computed_exactly(
    open_page: Open, layers: list[int], heads: list[int], levels: list[int]
) -> None:
    trace = StandInTrace()
    watched = open_page(trace)
    for query in range(6):
        tokens = watched.page.evaluate(
            "([q, ...where]) => [...msdeform.tokenMap(q, 'raw', ...where)]", [query, layers, heads, levels]
        )
        np.testing.assert_allclose(tokens, splat(trace, query, layers, heads, levels), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["two-stage", "detr"])
def test_raw_maps_are_those_of_the_library(open_page: Open, family: str) -> None:
    trace = AttentionTrace(tiny(family), torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8), size=48)
    watched = open_page(trace, methods=["raw"], most=50, confidence=0.0)
    levels = list(range(len(trace.shapes)))
    # of DETR the page holds 256 steps
    tolerance = 1 / 500 if family == "detr" else 1e-5
    for layer, head in ((0, 1), (len(trace.layer_boxes) - 1, None)):
        for query in (0, 5):
            heads = [0, 1] if head is None else [head]
            where = [query, [layer], heads, levels]
            tokens = watched.page.evaluate("([q, ...where]) => [...msdeform.tokenMap(q, 'raw', ...where)]", where)
            pixels = watched.page.evaluate(
                "([q, ...where]) => [...msdeform.gridMap(msdeform.tokenMap(q, 'raw', ...where))]", where
            )
            for got, expected in (
                (tokens, token_map(trace, trace.prediction(query), "raw", layer=layer, head=head)),
                (pixels, heat_map(trace, trace.prediction(query), "raw", layer=layer, head=head).flatten()),
            ):
                np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * float(expected.max()))


def test_dense_attention_is_shown_by_head(open_page: Open) -> None:
    trace = StandInTrace(dense=True)
    watched = open_page(trace, methods=["raw"])
    query = trace.detections(0.0)[0].query
    tokens = watched.page.evaluate(f"() => [...msdeform.tokenMap({query}, 'raw', [1], [1], [0])]")
    expected = trace.tape["decoder.1.cross"].weights[0, 1, query]
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=float(expected.max()) / 509)


def test_hovering_previews_and_clicking_keeps(open_page: Open) -> None:
    trace = StandInTrace()
    watched = open_page(trace)
    page, best = watched.page, trace.detections()[0]
    nothing = ink(watched)
    page.mouse.move(*on_image(watched, *(torch.tensor(best.box).view(2, 2).mean(0).tolist()), trace))
    assert state(watched)["hover"] == {"side": "a", "query": best.query}
    hovered = ink(watched)
    assert hovered != nothing
    page.mouse.move(5, 5)
    assert ink(watched) == nothing
    page.locator("#list li").first.click()
    page.mouse.move(5, 5)
    assert state(watched)["a"] == best.query
    assert ink(watched) == hovered
    assert f"{best.name}" in page.locator(".what").inner_text()


def test_heads_and_levels_switch_what_is_drawn(open_page: Open) -> None:
    watched = open_page(StandInTrace())
    page = watched.page
    page.locator("#list li").first.click()
    prediction = {ink(watched)}
    for box in ("#heads input >> nth=0", "#levels input >> nth=1"):
        page.locator(box).uncheck()
        prediction.add(ink(watched))
    assert len(prediction) == 3
    page.get_by_role("button", name="no heads").click()
    page.evaluate(DRAWN)
    assert "Every head is off" in page.locator("#status").inner_text()
    page.get_by_role("button", name="all heads").click()
    page.get_by_role("button", name="all levels").click()
    assert ink(watched) in prediction


def test_stepping_through_the_decoder_by_button_slider_key_and_play(open_page: Open) -> None:
    watched = open_page(StandInTrace())
    page = watched.page
    page.locator("#list li").first.click()
    assert state(watched)["layer"] == 2
    last = ink(watched)
    page.locator("#back").click()
    assert state(watched)["layer"] == 1
    assert ink(watched) != last
    page.locator("#layer").fill("0")
    assert state(watched)["layer"] == 0
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    assert state(watched)["layer"] == 1
    page.keyboard.press("a")
    assert state(watched)["all"]
    page.keyboard.press("a")
    page.locator("#play").click()
    page.wait_for_function("() => msdeform.state.layer === 2")
    page.wait_for_function("() => msdeform.state.layer === 0")
    page.locator("#play").click()
    page.locator(".scores button").nth(1).click()
    assert state(watched)["layer"] == 1


def test_two_detections_are_compared_on_one_scale(open_page: Open) -> None:
    trace = StandInTrace()
    watched = open_page(trace)
    page, (first, second) = watched.page, trace.detections()[:2]
    page.locator("#list li").first.click()
    page.locator("#list li .pin").nth(1).click()
    now = state(watched)
    assert (now["a"], now["b"]) == (first.query, second.query)
    assert page.locator(".view canvas").count() == 2
    assert page.locator(".view .side").all_inner_texts() == ["A", "B"]
    page.keyboard.press("Escape")
    page.evaluate(DRAWN)
    assert page.locator(".view canvas").count() == 1


def test_any_query_can_be_chosen_and_the_threshold_moved(open_page: Open) -> None:
    trace = StandInTrace()
    watched = open_page(trace, confidence=0.9, most=1)
    page, worst = watched.page, trace.detections(0.0)[-1]
    assert page.locator("#list li").count() == len(trace.detections(0.9))
    page.locator("#confidence").fill("0")
    page.evaluate(DRAWN)
    assert page.locator("#list li").count() == 6
    page.locator("#query").fill(str(worst.query))
    page.keyboard.press("Enter")
    assert state(watched)["a"] == worst.query
    page.get_by_role("button", name="relevance").click()
    page.evaluate(DRAWN)
    assert (
        f"relevance was computed for 1 of 6 queries, not for query {worst.query}."
        in page.locator("#status").inner_text()
    )
    page.locator("#query").fill("6")
    page.keyboard.press("Enter")
    assert page.locator("#status").inner_text() == "Queries are numbered 0 to 5."


def test_everything_is_reached_by_keys(open_page: Open) -> None:
    trace = StandInTrace()
    watched = open_page(trace)
    page, found = watched.page, trace.detections()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert state(watched)["a"] == found[1].query
    page.keyboard.press("b")
    page.keyboard.press("ArrowUp")
    now = state(watched)
    assert (now["a"], now["b"]) == (found[0].query, found[1].query)
    page.keyboard.press("1")
    assert state(watched)["heads"] == [False, True]
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    now = state(watched)
    assert (now["a"], now["b"]) == (None, None)


def test_arrow_keys_step_whatever_was_clicked(open_page: Open) -> None:
    """A method that was chosen does not take them."""
    trace = StandInTrace()
    watched = open_page(trace)
    page = watched.page
    button = page.get_by_role("button", name="relevance")
    button.click()
    assert state(watched)["method"] == "relevance"
    assert button.get_attribute("aria-pressed") == "true"
    for key, name, expected in (
        ("ArrowLeft", "layer", 1),
        ("ArrowLeft", "layer", 0),
        ("ArrowRight", "layer", 1),
        ("ArrowDown", "a", trace.detections()[0].query),
    ):
        page.keyboard.press(key)
        now = state(watched)
        assert (now[name], now["method"]) == (expected, "relevance"), key
    # by keys alone
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert state(watched)["method"] == "raw"


def test_colours_are_those_of_the_pictures(open_page: Open) -> None:
    """Of points, classes and maps; a map of zero leaves the photograph as it is."""
    watched = open_page(StandInTrace())
    page = watched.page
    for index in range(6):
        drawn = page.evaluate("(index) => { const c = document.createElement('canvas').getContext('2d');"
            "c.fillStyle = classColour(index); c.fillRect(0, 0, 1, 1);"
            "return [...c.getImageData(0, 0, 1, 1).data.slice(0, 3)]; }", index)  # fmt: skip
        assert np.abs(np.array(drawn) - class_colour(index)).max() <= 2
    for weight in (0.0, 0.2, 0.7, 1.0):
        drawn = page.evaluate("(weight) => colourOf(weightColours, Math.sqrt(weight))", weight)
        wanted = point_colours()(root_scale(1.0)(weight), bytes=True)
        assert np.abs(np.array([int(v) for v in re.findall(r"\d+", drawn)[:3]]) - wanted[:3]).max() <= 4
    assert page.evaluate("() => MARKS.length") == len(MARKERS)
    page.locator("#list li").first.click()
    for name in ("points", "boxes"):
        page.locator(f"#show-{name}").uncheck()
    page.locator("#opacity").fill("1")
    page.get_by_role("button", name="no heads").click()
    zero = ink(watched)
    page.locator("#show-map").uncheck()
    assert ink(watched) == zero


def test_names_of_boxes_are_placed_as_in_pictures(open_page: Open) -> None:
    page = open_page(StandInTrace()).page
    for count, seed in ((1, 0), (45, 1), (100, 2)):
        boxes = random_boxes(count, seed)
        sizes = [(float(w), 14.0) for w in np.random.default_rng(seed).integers(20, 90, count)]
        found = page.evaluate("([boxes, sizes]) => placeLabels(boxes, sizes, 640, 480)", [boxes, sizes])
        assert len(found) == count
        assert_apart_and_inside(found)
        assert np.allclose(found, place_labels(boxes, sizes, (0, 0, 640, 480)))
    assert page.evaluate("() => placeLabels([[0, 0, 9, 9], [0, 0, 9, 9]], [[5, 5], [5, 9]], 9, 9)") == [
        [0, 0, 5, 5],
        None,
    ]


def test_a_class_that_was_asked_for_is_named(open_page: Open) -> None:
    trace = StandInTrace()
    query = trace.detections(0.0)[-1].query
    prediction = trace.prediction(query)
    other = (prediction.label + 1) % 3
    watched = open_page(trace, subjects=[replace(prediction, label=other)])
    assert state(watched)["a"] == query
    assert "relevance of" not in watched.page.locator(".what").inner_text()
    watched.page.get_by_role("button", name="relevance").click()
    watched.page.evaluate(DRAWN)
    told = watched.page.locator(".what").inner_text()
    assert f"relevance of its {trace.model.categories[other]}" in told
    assert prediction.name in told


def test_names_from_outside_are_text(open_page: Open) -> None:
    watched = open_page(StandInTrace(names=(HOSTILE, HOSTILE, HOSTILE)), title=HOSTILE)
    watched.page.locator("#list li").first.click()
    watched.page.evaluate(DRAWN)
    assert watched.page.locator("h1").inner_text() == HOSTILE
    assert HOSTILE in watched.page.locator(".what").inner_text()
    assert watched.page.locator("img").count() == 0


@pytest.mark.parametrize("width", [360, 800, 1300])
def test_nothing_is_wider_than_the_window(open_page: Open, width: int) -> None:
    watched = open_page(StandInTrace())
    watched.page.set_viewport_size({"width": width, "height": 800})
    watched.page.locator("#list li").first.click()
    watched.page.locator("#help summary").click()
    watched.page.evaluate(DRAWN)
    assert watched.page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_a_narrow_window_in_the_dark(tmp_path: Path) -> None:
    """Nothing is cut off, text is light on a dark ground, and names that are code do nothing."""
    with browser(**NARROW) as watched:
        trace = StandInTrace(names=(HOSTILE_NAME,) * 3)
        write_page(trace, tmp_path / "page.html", title=HOSTILE_NAME)
        watched.page.goto((tmp_path / "page.html").as_uri())
        watched.page.wait_for_function("() => window.msdeform?.drawn > 0")
        watched.page.locator("#list li").first.click()
        watched.page.evaluate(DRAWN)
        assert watched.page.locator("h1").inner_text() == HOSTILE_NAME
        assert "owned" not in watched.page.title().replace(HOSTILE_NAME, "")
        assert watched.page.locator("img").count() == 0
        assert wider_than_the_window(watched.page) == []
        assert dark(watched.page)
        assert watched.complaints == []


def test_300_queries_in_6_layers_stay_responsive(open_page: Open, tmp_path: Path) -> None:
    trace = StandInTrace(
        queries=300, layers=6, heads=8, points=4, shapes=((100, 134), (50, 67), (25, 34), (13, 17)), size=(800, 1066)
    )
    watched = open_page(trace)
    clicked = """async (line) => { const start = performance.now(), before = msdeform.drawn;
        document.querySelectorAll("#list li")[line].click();
        while (msdeform.drawn === before) await new Promise(requestAnimationFrame);
        return performance.now() - start; }"""
    times = [watched.page.evaluate(clicked, line) for line in range(1, 12)]
    load = watched.page.evaluate("() => msdeform.loaded")
    size = (tmp_path / "page.html").stat().st_size
    print(f"\n{size / 1e6:.1f} MB, ready {load:.0f} ms after it began to load, ", end="")
    print(f"{sorted(times)[5]:.0f} ms from click to drawn (median of 11; most {max(times):.0f})")
    assert sorted(times)[5] < 500
