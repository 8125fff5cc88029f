"""The page of one image: its numbers are the trace's, and nothing that comes from outside can act in it."""

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msdeform.explain.core.maps import METHODS, token_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.page import page as page_module
from msdeform.explain.page.arrays import FAR, NEAR, encoder_arrays, fitting, head_maps, quantised
from msdeform.explain.page.page import layer_maps, page, write_page
from tests.explain.models import images, uneven
from tests.explain.stand_in import StandInTrace, stand_in_head_maps, stand_in_maps
from tests.models.tiny import tiny

HOSTILE = "</script><img src=x onerror=alert(1)>{{data}}<!--"


@pytest.fixture(autouse=True)
def made_up_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "layer_maps", stand_in_maps)
    monkeypatch.setattr(page_module, "head_maps", stand_in_head_maps)


class Elements(HTMLParser):
    """What a browser would make of a page: its elements, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._inside, []).append(data)


def read(text: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The page's description and its arrays."""
    meta = json.loads(Elements(text).texts["script"][0])
    arrays = {}
    for name, packed in meta["arrays"].items():
        data = zlib.decompress(base64.b64decode(packed["data"]))
        arrays[name] = np.frombuffer(data, packed["dtype"]).reshape(packed["shape"])
    return meta, arrays


def test_the_page_holds_the_scenes_numbers() -> None:
    trace = StandInTrace()
    meta, arrays = read(page(trace, confidence=0.6))
    assert (meta["queries"], meta["layers"], meta["heads"], meta["levels"], meta["points"]) == (6, 3, 2, 2, 2)
    assert meta["shapes"] == [[6, 8], [3, 4]]
    assert (meta["height"], meta["width"]) == (48, 64)
    assert meta["names"] == ["cat", "dog", "bird"]
    np.testing.assert_array_equal(arrays["boxes"], trace.layer_boxes)
    np.testing.assert_array_equal(arrays["references"], torch.stack(trace.references))
    for layer in range(3):
        record = trace.tape[f"decoder.{layer}.cross"]
        np.testing.assert_array_equal(arrays["locations"][layer], record.locations[0])
        np.testing.assert_array_equal(arrays["weights"][layer], record.weights[0])
    final = trace.layer_scores[-1].argmax(-1)
    np.testing.assert_array_equal(arrays["labels"][-1, :, 0], final)
    np.testing.assert_array_equal(arrays["own"], trace.layer_scores[:, torch.arange(6), final])
    np.testing.assert_array_equal(arrays["scores"], trace.layer_scores.sort(-1, descending=True).values)


def test_relevance_is_stored_by_layer_and_over_all() -> None:
    trace = StandInTrace()
    meta, arrays = read(page(trace))
    assert meta["mapped"] == [prediction.query for prediction in trace.detections(0.0)][: len(meta["mapped"])]
    assert arrays["relevance"].shape == (4, len(meta["mapped"]), 60)
    for column, query in enumerate(meta["mapped"]):
        expected = stand_in_maps(trace, trace.prediction(query), "relevance")
        stored = arrays["relevance"][:, column] * arrays["relevance_scale"][:, column, None]
        for one, other in zip(stored, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=float(other.max()) / 509)


@pytest.mark.parametrize(("confidence", "most", "expected"), [(0.99, 20, 3), (0.0, 20, 6), (0.0, 4, 4), (0.99, 1, 1)])
def test_weak_queries_have_maps_too_and_many_are_capped(confidence: float, most: int, expected: int) -> None:
    assert len(read(page(StandInTrace(), confidence=confidence, most=most))[0]["mapped"]) == expected


def test_dense_attention_is_stored_by_head_for_detections_and_as_mean_for_others() -> None:
    trace = StandInTrace(dense=True)
    meta, arrays = read(page(trace, methods=["raw"]))
    assert not {"locations", "weights", "references", "relevance"} & arrays.keys()
    for layer in range(3):
        weights = trace.tape[f"decoder.{layer}.cross"].weights[0]
        mean = arrays["mean"][layer] * arrays["mean_scale"][layer][:, None]
        np.testing.assert_allclose(mean, weights.mean(0), rtol=0, atol=float(weights.mean(0).max()) / 509)
        for column, query in enumerate(meta["mapped"]):
            stored = arrays["attention"][layer, column] * arrays["attention_scale"][layer, column][:, None]
            np.testing.assert_allclose(stored, weights[:, query], rtol=0, atol=float(weights[:, query].max()) / 509)


def test_a_map_of_zeros_stays_zero() -> None:
    found = dict(quantised("map", torch.tensor([[0.0, 0.0], [1.0, 0.5]])))
    steps, scale = found["map"], found["map_scale"]
    assert steps.tolist() == [[0, 0], [255, 128]]
    assert scale.tolist() == pytest.approx([0, 1 / 255])


def test_nothing_from_outside_becomes_an_element() -> None:
    plain, hostile = (
        Elements(page(StandInTrace(names=names), title=title))
        for names, title in ((("a", "b", "c"), "title"), ((HOSTILE, HOSTILE, HOSTILE), HOSTILE))
    )
    policies = [attributes.pop("content") for tags in (plain, hostile) for _, attributes in tags.tags[3:4]]
    assert policies[0] == policies[1]
    assert hostile.tags == plain.tags
    assert HOSTILE in "".join(hostile.texts["h1"])
    assert json.loads(hostile.texts["script"][0])["names"] == [HOSTILE] * 3


def test_the_policy_allows_this_pages_script_and_no_request() -> None:
    text = page(StandInTrace())
    elements = Elements(text)
    policy = next(a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for directive, content in (("style-src", elements.texts["style"][0]), ("script-src", elements.texts["script"][1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=[\"']?(?!data:)\w", text)
    assert "http:" not in text
    assert "https:" not in text


def test_the_same_scene_gives_the_same_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_page(StandInTrace(), tmp_path / f"{name}.html", title="cat.jpg")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.html", "two.html"]


def test_a_page_of_300_queries_in_6_layers_is_below_11_mb() -> None:
    trace = StandInTrace(
        queries=300, layers=6, heads=8, points=4, shapes=((100, 134), (50, 67), (25, 34), (13, 17)), size=(800, 1066)
    )
    size = len(page(trace, confidence=0.9))
    # three detections have relevance by head, whose random numbers do not compress as maps do
    assert size < 11e6, size


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"methods": ["raw", "input-grad"]}, "methods: expected any of raw, rollout, .*, got 'input-"),
        ({"methods": []}, "methods: expected at least one of raw, "),
        ({"confidence": 1.5}, "confidence: expected a number from 0 to 1, got 1.5"),
        ({"most": 0}, "most: expected at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_told_and_nothing_is_written(
    tmp_path: Path, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        write_page(StandInTrace(), tmp_path / "page.html", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["deformable", "refining", "two-stage", "detr"])
def test_a_detectors_page_has_its_points_and_its_maps(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # its own maps
    image = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    # one that refines boxes in one stage has references that begin as points
    model = tiny("two-stage", two_stage=False) if family == "refining" else tiny(family)
    trace = AttentionTrace(model, image, size=48)
    meta, arrays = read(page(trace, methods=METHODS[:4]))
    layers, sites = meta["layers"], [name for name in trace.tape if name.endswith(".cross")]
    for layer, site in enumerate(sites):
        if family == "detr":
            break
        points = trace.points(site, 1)
        scale = np.array([trace.width, trace.height])
        np.testing.assert_allclose(arrays["locations"][layer, 1] * scale, points.xy, rtol=1e-5)
        np.testing.assert_array_equal(arrays["weights"][layer, 1], points.weights)
        reference = arrays["references"][layer, 1]
        np.testing.assert_allclose(reference[~np.isnan(reference)], points.reference, rtol=1e-5)
    for column, query in enumerate(meta["mapped"]):
        for method in ("rollout", "relevance", "gradcam"):
            stored = arrays[method][:, column] * arrays[f"{method}_scale"][:, column, None]
            wanted = [token_map(trace, trace.prediction(query), method)] if method != "gradcam" else []
            if method != "rollout":
                each = [token_map(trace, trace.prediction(query), method, layer=n) for n in range(layers)]
                wanted = [*each, *(wanted or [torch.stack(each).sum(0)])]
            assert len(stored) == len(wanted)
            for one, other in zip(stored, wanted, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=float(other.max()) / 500 + 1e-12)


def test_relevance_is_stored_by_head_as_far_as_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = StandInTrace()
    meta, arrays = read(page(trace))
    assert meta["by_head"] == len(meta["mapped"])
    assert arrays["relevance_heads"].shape == (3, meta["by_head"], 2, 60)
    for column, query in enumerate(meta["mapped"]):
        stored = arrays["relevance_heads"][:, column] * arrays["relevance_heads_scale"][:, column, :, None]
        np.testing.assert_allclose(stored, stand_in_head_maps(trace, trace.prediction(query)), rtol=0, atol=1 / 500)
    monkeypatch.setattr(page_module, "fitting", lambda trace, mapped: fitting(trace, mapped, 3 * 2 * 60 * 2 + 1))
    meta, arrays = read(page(trace, confidence=0.0))
    assert (meta["by_head"], arrays["relevance_heads"].shape[1], len(meta["mapped"])) == (2, 2, 6)
    assert "relevance_heads" not in read(page(trace, methods=["raw"]))[1]


def test_the_encoders_points_are_stored_in_steps() -> None:
    trace = StandInTrace(encoder=2)
    about, arrays = encoder_arrays(trace)
    assert about == {"layers": [0, 1], "of": 2, "heads": 2, "points": 2, "note": ""}
    found = dict(arrays)
    for layer in range(2):
        record = trace.tape[f"encoder.{layer}.self"]
        places = found["encoder_xy"][layer] / 65535 * (FAR - NEAR) + NEAR
        np.testing.assert_allclose(
            places, record.locations[0].clamp(NEAR, FAR), rtol=0, atol=1.01 * (FAR - NEAR) / 131070
        )
        weights = found["encoder_weights"][layer] * found["encoder_weights_scale"][layer][..., None]
        np.testing.assert_allclose(weights, record.weights[0].flatten(-2), rtol=0, atol=1 / 509)


def test_an_encoder_that_is_too_large_is_left_out_and_told() -> None:
    trace = StandInTrace(encoder=3)
    layer = 60 * 2 * 2 * 2 * 5
    about, arrays = encoder_arrays(trace, 2 * layer)
    assert about is not None
    assert (about["layers"], about["of"]) == ([1, 2], 3)
    assert "the last 2 of 3 layers are held" in about["note"]
    np.testing.assert_array_equal(dict(arrays)["encoder_xy"], dict(encoder_arrays(trace)[1])["encoder_xy"][1:])
    about, arrays = encoder_arrays(trace, layer - 1)
    assert about is not None
    assert arrays == []
    assert about["layers"] == []
    assert "0 MB a layer at 60 pixels: none of its 3 layers is held" in about["note"]
    assert encoder_arrays(StandInTrace()) == (None, [])


def test_a_dense_encoder_is_stored_as_its_mean() -> None:
    trace = StandInTrace(dense=True, encoder=2)
    about, arrays = encoder_arrays(trace)
    found = dict(arrays)
    assert about is not None
    assert about["points"] == 0
    stored = found["encoder_rows"] * found["encoder_rows_scale"][..., None]
    wanted = torch.stack([trace.tape[f"encoder.{layer}.self"].weights[0].mean(0) for layer in range(2)])
    np.testing.assert_allclose(stored, wanted, rtol=0, atol=float(wanted.max()) / 509)


@pytest.mark.parametrize("family", ["deformable", "two-stage", "detr"])
def test_heads_relevance_adds_up_to_the_detections(family: str) -> None:
    """Its mean over heads is each layer's, and each head's is that of the library."""
    trace = AttentionTrace(uneven(family), images((40, 56))[0], size=48)
    prediction = trace.detections(0.0)[0]
    maps = head_maps(trace, prediction)
    layers = layer_maps(trace, prediction, "relevance")[:-1]
    assert float(layers.max()) > 0
    torch.testing.assert_close(maps.mean(1), layers, rtol=1e-9, atol=1e-12)
    last = len(maps) - 1
    one = token_map(trace, prediction, "relevance", layer=last, head=1)
    torch.testing.assert_close(maps[last, 1], one, rtol=1e-9, atol=1e-12)
