"""The page in a real browser: heads, the encoder's pixels, links, what is saved, what assistive software gets."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msdeform.explain.core.maps import column_map, row_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.page import page as page_module
from msdeform.explain.page.page import write_page
from tests.explain.models import images, uneven
from tests.explain.page.browser import Open, Watched, browser
from tests.explain.stand_in import StandInTrace, stand_in_head_maps, stand_in_maps

pytestmark = pytest.mark.slow

DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(autouse=True)
def made_up_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "layer_maps", stand_in_maps)
    monkeypatch.setattr(page_module, "head_maps", stand_in_head_maps)


def state(watched: Watched) -> dict[str, Any]:
    watched.page.evaluate(DRAWN)
    return watched.page.evaluate("() => msdeform.state")


def press(watched: Watched, *keys: str) -> None:
    for key in keys:
        watched.page.keyboard.press(key)


def test_relevance_is_shown_by_head(open_page: Open) -> None:
    trace = StandInTrace(heads=3)
    watched = open_page(trace)
    query = trace.detections(0.0)[0].query
    maps = stand_in_head_maps(trace, trace.prediction(query))
    for layers, heads in (([1], [1]), ([0, 1, 2], [0, 2])):
        found = watched.page.evaluate(
            "([q, ...where]) => [...msdeform.tokenMap(q, 'relevance', ...where)]", [query, layers, heads, [0, 1]]
        )
        wanted = maps[layers][:, heads].sum(0).mean(0)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=len(layers) / 509)
    # all heads: what is stored of all
    found = watched.page.evaluate("(q) => [...msdeform.tokenMap(q, 'relevance', [1], [0, 1, 2], [0, 1])]", query)
    np.testing.assert_allclose(
        found, stand_in_maps(trace, trace.prediction(query), "relevance")[1], rtol=0, atol=1 / 509
    )


def test_places_without_a_point_are_not_drawn(open_page: Open) -> None:
    """As of D-FINE, whose levels have points of their own number: the others are records of weight 0."""
    trace = StandInTrace()
    for record in trace.tape.values():
        record.site.counts = (2, 1)
        record.weights[..., 1, 1], record.locations[..., 1, 1, :] = 0, torch.nan
    watched = open_page(trace)
    found = watched.page.evaluate("() => [...sampled(0, [1], [0, 1], [0, 1])].map((p) => [p.level, p.point])")
    assert found == [[0, 0], [0, 1], [1, 0]] * 2
    assert watched.page.evaluate("() => msdeform.tokenMap(0).every(Number.isFinite)")


def test_a_query_without_relevance_by_head_is_told(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "fitting", lambda trace, mapped: 1)
    watched = open_page(StandInTrace(), confidence=0.0)
    press(watched, "m", "ArrowDown", "ArrowDown", "1")
    now = state(watched)
    assert (now["method"], now["heads"]) == ("relevance", [False, True])
    told = watched.page.locator("#status").inner_text()
    assert told == f"Of query {now['a']} the page holds relevance over all heads only."


@pytest.mark.parametrize("family", ["two-stage", "detr"])
def test_a_pixel_of_the_encoder_is_the_librarys_row_and_column(open_page: Open, family: str) -> None:
    trace = AttentionTrace(uneven(family), images((40, 56))[0], size=48)
    watched = open_page(trace, methods=["raw"])
    record = trace.tape["encoder.0.self"]
    levels = list(range(len(trace.shapes)))
    heads = list(range(record.site.heads))
    of_heads: list[tuple[list[int], int | None]] = [(heads, None)] + [([1], 1)] * record.site.deformable
    sizes = [h * w for h, w in trace.shapes]
    most = 0.0
    for token, level in ((0, 0), (sizes[0] - 1, 0), (sum(sizes) - 1, len(sizes) - 1)):
        for some, head in of_heads:
            row = watched.page.evaluate(
                "([t, ...where]) => [...msdeform.encoderRow(t, ...where)]", [token, [0], some, levels]
            )
            column = watched.page.evaluate(
                "([t, l, ...where]) => [...msdeform.encoderColumn(t, l, ...where)]", [token, level, [0], some, levels]
            )
            for found, wanted in (
                (row, row_map(record, token, head=head)),
                (column, column_map(record, token, head=head)),
            ):
                most = max(most, float(wanted.max()))
                np.testing.assert_allclose(found, wanted, rtol=0, atol=4e-3 * float(wanted.max()) + 1e-3)
    assert most > 0.1


def test_a_pixel_is_clicked_moved_by_keys_and_left(open_page: Open) -> None:
    watched = open_page(StandInTrace(encoder=2))
    page = watched.page
    page.get_by_role("button", name="a pixel of the encoder").click()
    page.evaluate(DRAWN)
    assert page.locator(".view canvas").count() == 2
    assert page.locator(".what b").all_inner_texts() == ["Where this pixel looks", "Which pixels look here"]
    area = page.locator(".view canvas").first.bounding_box()
    assert area is not None
    page.mouse.click(area["x"] + area["width"] * 20 / 64, area["y"] + area["height"] * 36 / 48)
    assert state(watched)["pixel"] == pytest.approx([20, 36], abs=0.5)
    assert page.locator("#layer-name").inner_text() == "encoder layer 1 of 0 to 1"
    press(watched, "ArrowRight", "ArrowUp", ",")
    now = state(watched)
    # a token of level 0 is 8 x 8 pixels
    assert (now["pixel"], now["encoderLayer"], now["a"]) == ([28, 28], 0, None)
    page.locator("#pixel-level").select_option("1")
    assert state(watched)["pixelLevel"] == 1
    page.locator("#pixel-x").fill("3")
    press(watched, "Enter")
    assert state(watched)["pixel"][0] == 3
    press(watched, "Escape")
    assert state(watched)["mode"] == "queries"
    assert page.locator(".view canvas").count() == 1


def test_an_encoder_that_does_not_fit_is_told(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page_module.encoder_arrays
    monkeypatch.setattr(page_module, "encoder_arrays", lambda trace: whole(trace, 100))
    watched = open_page(StandInTrace(encoder=2))
    assert watched.page.locator("#modes").is_hidden()
    press(watched, "?")
    assert "none of its 2 layers is held" in watched.page.locator("#encoder-note").inner_text()


VIEW = "#a=1&b=3&layer=1&method=relevance&boxes=false&opacity=0.5&confidence=0.25&heads=1&levels=0"


def test_a_link_restores_the_view(open_page: Open) -> None:
    trace = StandInTrace(encoder=2)
    watched = open_page(trace, fragment=VIEW)
    page, now = watched.page, state(watched)
    assert (now["a"], now["b"], now["layer"], now["method"], now["boxes"]) == (1, 3, 1, "relevance", False)
    assert (now["opacity"], now["confidence"], now["heads"], now["levels"]) == (0.5, 0.25, [False, True], [True, False])
    assert page.locator("#heads input").first.is_checked() is False
    assert page.locator("#confidence").input_value() == "0.25"
    assert page.locator("#method-relevance").get_attribute("aria-pressed") == "true"
    page.wait_for_timeout(500)
    assert page.evaluate("() => location.hash") == VIEW
    # changed by hand, the address follows
    press(watched, "b", "e", "ArrowLeft")
    pixel = state(watched)["pixel"]
    page.wait_for_function("() => location.hash.includes('pixel=')")
    page.reload()
    page.wait_for_function("() => window.msdeform?.drawn > 0")
    now = state(watched)
    assert (now["mode"], now["a"], now["b"]) == ("encoder", 1, None)
    assert now["pixel"] == pytest.approx(pixel, abs=0.06)
    # and as an address that is opened in the same window
    page.evaluate("() => { location.hash = 'a=2'; }")
    page.wait_for_function("() => msdeform.state.a === 2 && msdeform.state.mode === 'queries'")


@pytest.mark.parametrize("fragment", ["#a=99&layer=-1&method=none&heads=x&opacity=9&pixel=1", "#%%%", "#pixel=NaN,2"])
def test_a_link_that_does_not_fit_is_harmless(open_page: Open, fragment: str) -> None:
    now = state(open_page(StandInTrace(encoder=1), fragment=fragment))
    assert (now["a"], now["layer"], now["method"], now["mode"]) == (None, 2, "raw", "queries")
    assert now["opacity"] <= 1


def test_the_link_is_copied_or_shown(open_page: Open) -> None:
    watched = open_page(StandInTrace())
    page = watched.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#list li").first.click()
    page.locator("#link").click()
    page.wait_for_function("() => document.querySelector('#status').textContent === 'The link is copied.'")
    query = state(watched)["a"]
    assert page.evaluate("() => navigator.clipboard.readText()").endswith(f"page.html#a={query}")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    page.locator("#link").click()
    page.locator("#link-text").wait_for()
    assert page.locator("#link-text").input_value().endswith(f"page.html#a={query}")


def saved(watched: Watched, button: str) -> tuple[str, bytes]:
    with watched.page.expect_download() as waiting:
        watched.page.locator(button).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_the_view_is_saved_as_a_picture_and_as_numbers(open_page: Open) -> None:
    trace = StandInTrace()
    watched = open_page(trace, title="a street.jpg")
    page = watched.page
    one, two = (seen.query for seen in trace.detections()[:2])
    page.locator("#list li").first.click()
    page.locator("#list li .pin").nth(1).click()
    page.evaluate(DRAWN)
    name, data = saved(watched, "#save-png")
    assert name == f"a-street.jpg-{one}-{two}.png"
    picture = Image.open(io.BytesIO(data))
    wide = page.locator(".view canvas").first.bounding_box()["width"]
    assert picture.width == pytest.approx(2 * wide + 36, abs=3)
    assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 1000

    name, data = saved(watched, "#save-json")
    numbers = json.loads(data)
    assert name.endswith(".json")
    assert [view["query"] for view in numbers["views"]] == [one, two]
    record = trace.tape["decoder.2.cross"]
    points = numbers["views"][0]["points"]
    wanted = record.locations[0, one].reshape(-1, 2) * torch.tensor([64, 48])
    assert len(points) == 2 * 2 * 2
    found = {(p["head"], p["level"], p["point"]): (p["x"], p["y"], p["weight"]) for p in points}
    np.testing.assert_allclose(found[0, 0, 0][:2], wanted[0], rtol=1e-6)
    assert found[1, 1, 1][2] == pytest.approx(float(record.weights[0, one, 1, 1, 1]), rel=1e-6)
    raw = np.concatenate([level["values"] for level in numbers["views"][1]["map"]])
    shown = page.evaluate("(q) => [...msdeform.tokenMap(q)]", two)
    np.testing.assert_array_equal(raw, shown)

    _, data = saved(watched, "#save-csv")
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert {row["view"] for row in rows} == {str(one), str(two)}
    assert sum(float(row["value"]) for row in rows if row["view"] == str(two)) == pytest.approx(raw.sum())


def test_the_encoders_numbers_are_saved(open_page: Open) -> None:
    watched = open_page(StandInTrace(encoder=2), fragment="#pixel=20,36&encoder-layer=0")
    numbers = json.loads(saved(watched, "#save-json")[1])
    assert numbers["encoder_layers"] == [0]
    assert numbers["pixel"] == [20, 36]
    assert len(numbers["points"]) == 8
    rows = list(csv.DictReader(io.StringIO(saved(watched, "#save-csv")[1].decode())))
    assert {row["view"] for row in rows} == {"looks", "looked-at"}


def test_every_control_is_reached_by_tab_and_shows_the_focus(open_page: Open) -> None:
    watched = open_page(StandInTrace(encoder=1))
    page = watched.page
    press(watched, "?")
    assert page.evaluate("() => document.activeElement.textContent") == "Help and keys"
    press(watched, "?")
    page.locator("h1").click()
    wanted = page.evaluate("""() => [...document.querySelectorAll("button, input, select, summary, [tabindex='0']")]
        .filter((one) => one.offsetParent && !one.disabled).length""")
    seen = set()
    for _ in range(wanted + 3):
        press(watched, "Tab")
        place, outline = page.evaluate("""() => { const one = document.activeElement;
            return [[...document.querySelectorAll("*")].indexOf(one), getComputedStyle(one).outlineStyle]; }""")
        if page.evaluate("() => document.activeElement !== document.body"):
            seen.add(place)
            assert outline == "solid", page.evaluate("() => document.activeElement.outerHTML")
    assert len(seen) == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_assistive_software_finds_no_fault(tmp_path: Path, scheme: Any) -> None:
    """By axe's rules: names, roles, contrast, landmarks; in every mode of the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    write_page(StandInTrace(encoder=2), tmp_path / "page.html", title="street.jpg")
    with browser(viewport={"width": 1300, "height": 900}, color_scheme=scheme) as watched:
        for view in ("", "#a=1&b=3&method=relevance&path=true", "#pixel=20,36", "#confidence=1"):
            watched.page.goto("about:blank")
            watched.page.goto((tmp_path / "page.html").as_uri() + view)
            watched.page.wait_for_function("() => window.msdeform?.drawn > 0")
            press(watched, "?")
            found = axe.Axe().run(watched.page).response
            faults = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]
            assert faults == [], view
            assert len(found["passes"]) > 20
        assert watched.complaints == []
