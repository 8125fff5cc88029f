"""The page /docs in a real browser: it loads nothing, breaks no policy, and is read on a telephone in the dark."""

import pytest

from tests.explain.page.browser import NARROW, browser, dark, wider_than_the_window
from tests.serving.servers import StandIn, serving

pytestmark = pytest.mark.slow


def test_the_page_of_the_interface() -> None:
    token = "a-token-of-the-tests-0123456789"
    with serving(StandIn(), host="0.0.0.0", token=token) as port, browser(**NARROW) as watched:
        watched.page.goto(f"http://127.0.0.1:{port}/docs?token={token}")
        assert watched.page.url == f"http://127.0.0.1:{port}/docs"
        assert "POST /detect" in watched.page.locator("h2").first.inner_text()
        # its own style holds, which the policy names by its hash
        assert watched.page.evaluate("() => getComputedStyle(document.querySelector('table')).display") == "block"
        assert wider_than_the_window(watched.page) == []
        assert dark(watched.page)
        assert watched.complaints == []
        assert {url.partition("?")[0] for url in watched.requests} == {f"http://127.0.0.1:{port}/docs"}


def test_a_page_of_another_origin_sends_and_reads_nothing() -> None:
    """As a site would from its reader's browser: an image to be looked at, and what the server tells."""
    attempt = """async ([url, method]) => {
        try { const answer = await fetch(url, {method, body: method === "POST" ? "image" : undefined});
              return `read ${answer.status}`; }
        catch (error) { return "refused"; }
    }"""
    with serving(StandIn()) as port, serving(StandIn()) as other, browser() as watched:
        watched.page.goto(f"http://127.0.0.1:{other}/health")
        watched.page.evaluate("() => document.querySelectorAll('meta').forEach((one) => one.remove())")
        for path, method in (("model", "GET"), ("metrics", "GET"), ("detect", "POST")):
            assert watched.page.evaluate(attempt, [f"http://127.0.0.1:{port}/{path}", method]) == "refused"
