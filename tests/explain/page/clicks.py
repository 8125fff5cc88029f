"""How long a page takes from a click to the drawn view, in headless Chromium: ``python -m tests.explain.page.clicks``.

The page is of random numbers in the size that is named. "script" is what the page computes for a click, "drawn" the
time until the next frame of the browser that shows it, which comes at most 60 times a second.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest

from msdeform.common.text import counted
from msdeform.explain.page import page as page_module
from msdeform.explain.page.page import write_page
from tests.explain.page.browser import browser
from tests.explain.stand_in import StandInTrace, stand_in_head_maps, stand_in_maps

LARGE = ((100, 134), (50, 67), (25, 34), (13, 17))
SMALL = ((40, 40), (20, 20), (10, 10), (5, 5))
SIZES: list[dict[str, Any]] = [
    {"queries": 300, "layers": 6, "shapes": LARGE, "size": (800, 1066)},
    {"queries": 900, "layers": 12, "shapes": LARGE, "size": (800, 1066)},
    {"queries": 300, "layers": 6, "shapes": SMALL, "size": (320, 320), "encoder": 6},
]
QUERY, HEAD = (
    'document.querySelectorAll("#list li")[i].click()',
    'document.querySelectorAll("#heads input")[i % 8].click()',
)
# i counts the clicks, of which none meets a map that an earlier one made
ACTIONS = {
    "a detection, raw attention": ("setMode('queries'); setAll(false); state.method = 'raw'", QUERY),
    "a detection, all layers": ("setAll(true); state.method = 'raw'", QUERY),
    "a head, relevance": ("select('a', meta.mapped[0]); setAll(false); state.method = 'relevance'", HEAD),
    "a layer, two compared": ("state.method = 'raw'; select('b', ranked[1])", "setLayer(i)"),
    "no detection, all boxes": ("select('a', ranked[0])", "select('a', i % 2 ? ranked[i] : null)"),
    "a pixel of the encoder": (
        "select('a', null); setMode('encoder'); setAll(false)",
        "state.pixel = [W * i / 12, H * i / 12]; redraw()",
    ),
    "a pixel, all its layers": ("setMode('encoder'); setAll(true)", "state.pixel = [W * i / 12, H * i / 12]; redraw()"),
}


def measured(page: Any, before: str, click: str, count: int = 11) -> tuple[list[float], list[float]]:
    """Milliseconds of script, and from click to drawn, of each click."""
    page.evaluate(f"() => {{ {before}; drawNow(); }}")
    script = """(i) => { const start = performance.now(); CLICK; drawNow(); return performance.now() - start; }"""
    drawn = """async (i) => { cache.clear(); const start = performance.now(), before = msdeform.drawn; CLICK;
        while (msdeform.drawn === before) await new Promise(requestAnimationFrame);
        return performance.now() - start; }"""
    times: list[list[float]] = []
    for how in (script, drawn):
        page.evaluate("() => cache.clear()")
        times.append([page.evaluate(how.replace("CLICK", click), i) for i in range(1, count + 1)])
    return times[0], times[1]


def main() -> None:
    """Prints a table for each size."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(page_module, "layer_maps", stand_in_maps)
        patch.setattr(page_module, "head_maps", stand_in_head_maps)
        for size in SIZES:
            path = Path(folder) / "page.html"
            write_page(StandInTrace(heads=8, points=4, **size), path, most=3)
            with browser(viewport={"width": 1300, "height": 900}) as watched:
                watched.page.goto(path.as_uri())
                watched.page.wait_for_function("() => window.msdeform?.drawn > 0")
                opened = watched.page.evaluate("() => msdeform.loaded")
                encoder = f", {counted(size['encoder'], 'encoder layer')}" if "encoder" in size else ""
                print(
                    f"{size['queries']} queries, {size['layers']} decoder layers{encoder}, image of {size['size']}: ",
                    end="",
                )
                print(f"{path.stat().st_size / 1e6:.1f} MB, ready after {opened:.0f} ms")
                print(f"  {'ms: least, median, most of 11':32}{'script':>14}{'drawn':>14}")
                for name, (before, click) in ACTIONS.items():
                    if "pixel" in name and "encoder" not in size:
                        continue
                    cells = [
                        f"{min(one):.0f} {statistics.median(one):.0f} {max(one):.0f}"
                        for one in measured(watched.page, before, click)
                    ]
                    print(f"  {name:32}{cells[0]:>14}{cells[1]:>14}")
                for complaint in watched.complaints:
                    print(f"  the console said: {complaint}")


if __name__ == "__main__":
    main()
