"""A headless browser for tests, which tells of every error and every request that a page makes."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

HOSTILE = """</script></td></style><img src=x onerror="document.title='owned'">${document.title='owned'}{{7*7}}<!--"""
"""A name of a class or a file that runs where it is taken for more than text."""
NARROW: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
"""A telephone in the dark."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@dataclass
class Watched:
    """A page of the browser, what it complained of, and what it asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> set[str]:
        """Of the requests; a file has none."""
        return {urlsplit(url).hostname or "" for url in self.requests}


Open = Callable[..., Watched]
"""Of `conftest.open_page`."""


def wider_than_the_window(page: Any) -> list[str]:
    """What reaches beyond the window's right edge, but for drawings, and what an element scrolls by itself."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((element) => {
            if (element.ownerSVGElement || element.getBoundingClientRect().right <= innerWidth + 1) return false;
            for (let above = element; above; above = above.parentElement)
                if (["auto", "scroll"].includes(getComputedStyle(above).overflowX)) return false;
            return element.getBoundingClientRect().width > 0;
        }).map((element) => element.outerHTML.slice(0, 100))"""
    )
    width = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    return found + ([f"the page, by {width}"] if width > 0 else [])


def dark(page: Any) -> bool:
    """Is its text light on a dark ground?"""
    colours = """() => {
        const usual = document.body.appendChild(document.createElement("i"));
        usual.style.background = "Canvas";
        const grounds = [usual, document.documentElement, document.body].map((one) => getComputedStyle(one));
        const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        const drawn = (colour) => {
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            return canvas.getImageData(0, 0, 1, 1).data.slice(0, 3).reduce((a, b) => a + b) / 765;
        };
        const ground = grounds.map((one) => drawn(one.backgroundColor)).at(-1);
        usual.remove();
        return [ground, drawn(getComputedStyle(document.body).color)];
    }"""
    ground, text = page.evaluate(colours)
    return ground < 0.2 and text > 0.8


@contextmanager
def browser(**context: Any) -> Iterator[Watched]:
    """One page in a new browser; skips the test where playwright or a browser is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser to drive: none of {', '.join(NAMES)} is installed")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=FLAGS)
        try:
            watched = Watched(chromium.new_context(**context).new_page())
            watched.page.set_default_timeout(20_000)
            complain = watched.complaints.append
            watched.page.on("console", lambda m: complain(m.text) if m.type in ("error", "warning") else None)
            watched.page.on("pageerror", lambda error: complain(str(error)))
            watched.page.on(
                "request", lambda r: None if r.url.startswith(("data:", "blob:")) else watched.requests.append(r.url)
            )
            yield watched
        finally:
            chromium.close()
