"""A page of a trace, opened in a browser from its file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msdeform.explain.page.page import write_page
from tests.explain.page.browser import Open, Watched, browser


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a trace; at the end nobody may have complained or asked the network."""
    with browser(viewport={"width": 1300, "height": 900}) as watched:

        def show(trace: Any, *, fragment: str = "", **arguments: Any) -> Watched:
            write_page(trace, tmp_path / "page.html", **arguments)
            watched.page.goto((tmp_path / "page.html").as_uri() + fragment)
            watched.page.wait_for_function("() => window.msdeform?.drawn > 0")
            return watched

        yield show
        assert watched.complaints == []
        assert {url.split("#")[0] for url in watched.requests} == {(tmp_path / "page.html").as_uri()}
