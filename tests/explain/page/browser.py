"""A headless browser for tests, which tells of every error and every request that a page makes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

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
