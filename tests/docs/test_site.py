"""The manual as a site: built without a warning, complete, and looked at in a browser, wide and narrow."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import pytest

import msdeform
from msdeform.cli import COMMANDS
from tests.explain.page.browser import browser
from tests.house.project import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning is an error, and so is a link or an anchor that leads nowhere."""
    place = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr
    return place


def test_the_reference_has_every_public_name_and_every_command(site: Path) -> None:
    reference = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    assert [name for name in msdeform.__all__ if f'id="msdeform.{name}"' not in reference] == []
    commands = (site / "reference" / "commands.html").read_text()
    shown = {re.sub(r"<.*?>|¶", "", title).strip() for title in re.findall(r"<h3.*?</h3>", commands)}
    assert {f"msdeform {name}" for name in COMMANDS} == {title.removesuffix("&para;") for title in shown}
    flags = {flag for command in COMMANDS.values() for option in command.known_options() for flag in option.flags}
    assert {flag for flag in flags if f"{flag}" not in commands} == set()


def test_pages_can_be_searched(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    assert any("bilinear" in entry["text"] for entry in entries)
    assert not any(entry["location"].startswith("source/") for entry in entries)


class Loaded(HTMLParser):
    """What a page loads by itself: scripts, styles, pictures, frames; not what its links lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.places += [found.get("src") or ""]
        elif tag == "link" and found.get("rel") != "canonical":
            self.places += [found.get("href") or ""]


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert [place for place in loaded.places if re.match(r"(https?:)?//", place)] == [], page


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_pages_fit_a_phone_and_a_desk(site: Path, width: int, scheme: Literal["dark", "light"]) -> None:
    """Source files are left out, as they scroll, and the page of what is not found, which only a server shows."""
    pages = [page for page in sorted(site.rglob("*.html")) if "source" not in page.parts and page.name != "404.html"]
    with browser(viewport={"width": width, "height": 740}, color_scheme=scheme) as watched:
        for page in pages:
            watched.page.goto(page.as_uri())
            wide = watched.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{page.relative_to(site)} is {wide} pixels wide"
        assert watched.complaints == []
        assert {url for url in watched.requests if not url.startswith("file:")} == set()


def test_the_search_finds_without_a_server(site: Path) -> None:
    with browser(viewport={"width": 1280, "height": 800}) as watched:
        watched.page.goto((site / "index.html").as_uri())
        watched.page.get_by_role("textbox", name="Search").click()
        watched.page.keyboard.type("ms_deform_attn")
        watched.page.wait_for_selector(".md-search-result__item")
        assert watched.complaints == []
