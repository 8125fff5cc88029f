"""The report is one page that needs nothing else, tells what it should, and escapes what users name."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.train.config.options import Input, Source
from msdeform.train.data.annotations import Category
from msdeform.train.data.dataset import CocoDetection
from msdeform.train.data.loader import validation_data
from msdeform.train.evaluation.analysis import Analysis, analyse
from msdeform.train.evaluation.coco_metrics import evaluate_boxes
from msdeform.train.evaluation.report import MOST_IN_MATRIX, write_report
from msdeform.train.visual.error_pictures import COLOURS, error_pictures

VOID = {"meta", "link", "img", "br", "input"}


class Checked(HTMLParser):
    """The elements of a page, which must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> CocoDetection:
    """Four images; one of their classes has a name that is HTML."""
    shutil.copytree(shapes, tmp_path / "shapes")
    file = tmp_path / "shapes" / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "<b>bold</b> & co"
    file.write_text(json.dumps(content))
    return validation_data(Source(data=tmp_path / "shapes"), Input(image_size=64), None, progress=False)


def analysed(data: CocoDetection, seed: int = 0, **settings: Any) -> Analysis:
    """Detections near every object, some far off, and one of nothing in each image."""
    draw, rows = np.random.default_rng(seed), []
    ids = [category.id for category in data.annotations.categories]
    for row, label, x, y, width, height, *_ in data.annotations.truth:
        image = data.annotations.images.ids[int(row)]
        off = draw.choice([0.02, 0.4]) * width
        category = ids[int(label)] if draw.random() < 0.8 else int(draw.choice(ids))
        rows.append([image, x + off, y, width, height, draw.random(), category])
        rows.append([image, draw.uniform(0, 50), draw.uniform(0, 50), 9, 9, draw.random() / 2, int(draw.choice(ids))])
    found = np.array(rows, dtype=float)
    evaluation = evaluate_boxes(data.annotations.ground_truth(), found, data.image_ids)
    return analyse(evaluation, found, data.annotations, data.image_ids, **settings)


ORIGIN = {"data": "some <data>", "model": "a & b", "step": 3, "images": 4, "of_images": 4, "image_size": [64, 64]}
ORIGIN["versions"] = {"torch": "2"}


def test_the_page_is_whole_and_needs_no_network(data: CocoDetection, tmp_path: Path) -> None:
    found = analysed(data, intervals=True)
    write_report(tmp_path / "report.html", found, data, ORIGIN, progress=False)
    text = (tmp_path / "report.html").read_text()
    page = Checked(text)
    assert len(page.of("svg")) == 5
    identifiers = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    assert {link["href"] for link in page.of("a")} <= {f"#{name}" for name in identifiers}
    pictures = page.of("img")
    assert len(pictures) == 2 * len(found.worst) > 0
    assert all((picture["src"] or "").startswith("data:image/jpeg;base64,") for picture in pictures)
    assert not page.of("script")
    places = [value or "" for _, found in page.found for name, value in found.items() if re.search("src|href", name)]
    assert all(place.startswith(("data:", "#")) for place in places)
    assert set(re.findall(r"url\((.)|@import", text)) == {"#"}
    assert set(re.findall(r'([a-z:]{1,20})="https?:', text)) == {"xmlns", "xmlns:xlink"}
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "<b>bold" not in text
    assert "some <data>" in page.text
    write_report(tmp_path / "run.html", found, data, {**ORIGIN, "checkpoint": "runs/mine"}, progress=False)
    assert "runs/mine, on some <data>" in Checked((tmp_path / "run.html").read_text()).text
    assert "a & b on 4 images" in page.text
    names = [cell.strip() for cell in re.findall(r'<th scope="row">(.*?)</th>', text)]
    assert html.escape("<b>bold</b> & co") in names
    assert "background" in names
    assert f"{found.evaluation.metrics['AP']:.3f}" in page.text
    assert found.intervals is not None
    assert (
        f"95%: {found.intervals.metrics['AP']['low']:.3f} to {found.intervals.metrics['AP']['high']:.3f}" in page.text
    )
    for one in found.worst:
        assert one["file_name"] in page.text
        assert all(phrase in page.text for phrase in one["why"])
    for count in found.confusion.sum(1)[:-1]:
        assert count > 0


def test_pages_of_odd_evaluations(data: CocoDetection, tmp_path: Path) -> None:
    """Nothing detected; and more classes than a matrix has room for."""
    path = tmp_path / "report.html"
    nothing = np.empty((0, 7))
    evaluation = evaluate_boxes(data.annotations.ground_truth(), nothing, data.image_ids)
    empty = analyse(evaluation, nothing, data.annotations, data.image_ids, worst=1)
    write_report(path, empty, data, {**ORIGIN, "images": 3}, progress=False)
    page = Checked(path.read_text())
    assert len(page.of("img")) == 2
    assert "only the first 3 of 4" in page.text
    assert "precision" not in "".join(page.text.split("Sections")[:1]).split("Classes")[0]

    file = data.annotations.path
    content = json.loads(file.read_text())
    content["categories"] += [{"id": 100 + n, "name": f"more {n}"} for n in range(MOST_IN_MATRIX)]
    file.write_text(json.dumps(content))
    many = validation_data(Source(data=file.parents[1]), Input(image_size=64), None, progress=False)
    found = analysed(many, seed=3, worst=0)
    write_report(path, found, many, ORIGIN, progress=False)
    page = Checked(path.read_text())
    assert not page.of("img")
    assert "The commonest confusions of classes" in page.text
    assert "matrix" not in [attributes.get("class") for attributes in page.of("table")]


@pytest.mark.filterwarnings("error")
def test_charts_show_names_as_they_are(data: CocoDetection, tmp_path: Path) -> None:
    categories = data.annotations.categories
    names = ["$x_{$ <script>", "_hidden", "日本 🙂"]
    data.annotations.categories = [Category(one.id, name) for one, name in zip(categories, names, strict=True)]
    found = analysed(data, worst=0)
    write_report(tmp_path / "report.html", found, data, ORIGIN, progress=False)
    text = (tmp_path / "report.html").read_text()
    page = Checked(text)
    assert not page.of("script")
    charts = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert all(f"{html.escape(name)}</text>" in charts for name in names)


def test_pictures_have_the_colours_of_what_became_of_their_boxes(data: CocoDetection) -> None:
    found = analysed(data)
    outcomes = {"objects": set(), "detections": set()}
    for one in found.worst:
        first, second = error_pictures(found, data, one["image_id"])
        assert first.size == second.size
        for name, picture in (("objects", first), ("detections", second)):
            colours = {colour for _, colour in picture.getcolors(1 << 20) or ()}
            outcomes[name] |= {kind for kind, colour in COLOURS.items() if colour in colours}
        there = {kind for kind in ("missed", "confused", "badly placed") if one[kind]}
        colours = {colour for _, colour in first.getcolors(1 << 20) or ()}
        assert {kind for kind in ("missed", "confused", "badly placed") if COLOURS[kind] in colours} == there
    assert "false" not in outcomes["objects"]
    assert "missed" not in outcomes["detections"]
    assert {"false", "right"} <= outcomes["detections"]
