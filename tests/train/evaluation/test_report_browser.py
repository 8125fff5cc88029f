"""The report in a real browser: hostile names are text, nothing is asked for, and a telephone in the dark shows all."""

import json
import shutil
from pathlib import Path

import pytest

from msdeform.train.config.options import Input, Source
from msdeform.train.data.loader import validation_data
from msdeform.train.evaluation.report import write_report
from tests.explain.page.browser import HOSTILE, NARROW, browser, dark, wider_than_the_window
from tests.train.evaluation.test_report import analysed

pytestmark = pytest.mark.slow


def test_a_report_of_hostile_names(shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes, tmp_path / "shapes")
    file = tmp_path / "shapes" / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for number, category in enumerate(content["categories"]):
        category["name"] = f"{HOSTILE}{number}"
    for number, image in enumerate(content["images"]):
        name = f"<img src=x onerror=alert({number})>.png"
        (tmp_path / "shapes" / "val2017" / image["file_name"]).rename(tmp_path / "shapes" / "val2017" / name)
        image["file_name"] = name
    file.write_text(json.dumps(content))
    data = validation_data(Source(data=tmp_path / "shapes"), Input(image_size=64), None, progress=False)
    origin = {"model": HOSTILE, "data": HOSTILE, "checkpoint": HOSTILE, "images": 4, "of_images": 4}
    write_report(tmp_path / "report.html", analysed(data), data, origin, progress=False)
    with browser(**NARROW) as watched:
        page = watched.page
        page.on("dialog", lambda dialog: watched.complaints.append(dialog.message))
        page.goto((tmp_path / "report.html").as_uri())
        text = page.locator("body").inner_text()
        assert text.count(HOSTILE) > 10
        assert "<img src=x onerror=alert(0)>.png" in text
        assert page.evaluate("() => [...document.images].every((one) => one.src.startsWith('data:'))")
        assert page.locator("script").count() == 0
        assert page.title().startswith(HOSTILE)
        assert wider_than_the_window(page) == []
        assert dark(page)
        assert watched.complaints == []
        assert watched.requests == [(tmp_path / "report.html").as_uri()]
