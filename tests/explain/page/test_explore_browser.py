"""``msdeform explore`` in a real browser: an upload, heads off, what became of the detections; and nobody is called."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msdeform.explain.options import ExploreOptions
from msdeform.explain.page.interface import serving
from msdeform.models.inference.image_size import Size
from tests.explain.page.browser import HOSTILE, NARROW, Watched, browser, dark, wider_than_the_window
from tests.models.tiny import tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture
def street(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    return tmp_path / "street.png"


@pytest.fixture
def explorer() -> Iterator[Watched]:
    """The interface of a tiny detector, opened; at the end only this machine may have been asked for anything."""
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    options = ExploreOptions(checkpoint=Path("none"), image_size=48, confidence=0.0, port=0)
    with (
        browser(viewport={"width": 1400, "height": 1000}) as watched,
        serving(tiny("two-stage"), options) as address,
    ):
        watched.page.goto(address)
        watched.page.wait_for_selector("#image input[type=file]", state="attached")
        yield watched
        assert watched.hosts == {"127.0.0.1"}
        # gradio's own client says so of a stream that it closes, in every app
        assert set(watched.complaints) <= {"Method not implemented."}


def test_heads_are_switched_off_and_the_model_runs_again(explorer: Watched, street: Path) -> None:
    page = explorer.page
    page.locator("#again").click()
    page.get_by_text("Choose an image first.").wait_for()
    page.set_input_files("#image input[type=file]", street)
    frame = page.frame_locator("#page iframe")
    frame.locator("h1", has_text="street.png").wait_for()
    frame.locator("#list li").first.click()
    assert "query" in frame.locator(".what").inner_text()
    page.locator("#again").click()
    page.get_by_text("Every head and level is on: switch one off first.").wait_for()
    page.locator("#decoder-1-cross-heads input").first.uncheck()
    page.locator("#again").click()
    page.get_by_text("Off: decoder.1.cross:h0").wait_for()
    page.locator("#became table").wait_for()
    assert page.locator("#became img").count() == 2
    assert "10 detections of at least 0 before, 10 after." in page.locator("#became p").first.inner_text()
    page.get_by_role("tab", name="As switched").click()
    page.frame_locator("#switched iframe").locator("h1", has_text="street.png, as switched").wait_for()


def test_two_images_stand_side_by_side_in_another_mode(explorer: Watched, street: Path) -> None:
    page = explorer.page
    second = street.with_name("lane.png")
    second.write_bytes(street.read_bytes())
    assert page.locator("#page-2").is_hidden()
    for name, file in (("image", street), ("image-2", second)):
        page.set_input_files(f"#{name} input[type=file]", file)
        page.frame_locator(f"#{name.replace('image', 'page')} iframe").locator("h1", has_text=file.name).wait_for()
    one, two = (page.locator(f"#{name} iframe").bounding_box() for name in ("page", "page-2"))
    assert one is not None
    assert two is not None
    assert (one["y"], one["width"]) == pytest.approx((two["y"], two["width"]), abs=2)
    assert two["x"] > one["x"] + one["width"]
    assert page.frame_locator("#page iframe").locator("#link").is_hidden()  # a frame has no address to hand on
    page.get_by_label("another query's weights and places").check()
    page.locator("#decoder-1-cross-heads input").first.uncheck()
    page.locator("#again").click()
    page.get_by_text("Off: decoder.1.cross:h0:shuffled").wait_for()
    page.locator("#became h3").nth(1).wait_for()
    assert page.locator("#became h3").all_inner_texts() == ["street.png", "lane.png"]
    # what a frame shows can be saved
    page.get_by_role("tab", name="As switched").click()
    with page.expect_download() as waiting:
        page.frame_locator("#switched-2 iframe").locator("#save-json").click()
    assert waiting.value.suggested_filename == "lane.png-as-switched-all.json"


def test_a_bad_upload_is_one_sentence(explorer: Watched, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("<img src=x onerror=alert(1)>")
    explorer.page.set_input_files("#image input[type=file]", tmp_path / "notes.png")
    explorer.page.get_by_text("image notes.png cannot be decoded").wait_for()
    assert explorer.page.locator("#page iframe").count() == 0


def test_names_that_are_code_do_nothing_in_a_narrow_window_in_the_dark(tmp_path: Path) -> None:
    """Of classes and of the uploaded file, reached by the address with the token."""
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    model = tiny("two-stage")
    model.categories = [f"{HOSTILE}{number}" for number in range(len(model.categories or range(3)))]
    name = "<img src=x onerror=alert(1)>${alert(2)}.png"
    Image.new("RGB", (56, 40), (90, 120, 30)).save(tmp_path / name)
    options = ExploreOptions(checkpoint=Path("none"), image_size=48, confidence=0.0, port=0, host="0.0.0.0")
    with browser(**NARROW) as watched, serving(model, options) as address:
        page = watched.page
        page.on("dialog", lambda dialog: watched.complaints.append(dialog.message))
        page.goto(address)
        page.set_input_files("#image input[type=file]", tmp_path / name)
        frame = page.frame_locator("#page iframe")
        frame.locator("#list li").first.click()
        assert HOSTILE in frame.locator(".what").inner_text()
        page.locator("#decoder-1-cross-heads input").first.uncheck()
        page.locator("#again").click()
        page.locator("#became table").wait_for()
        assert f"{HOSTILE}0" in page.locator("#became table").inner_text()
        assert page.title() == "msdeform explore"
        assert page.locator("#became img").count() == 2
        assert [line for line in wider_than_the_window(page) if "became" in line or "the page" in line] == []
        assert dark(page)
        assert watched.hosts == {"localhost"}
        assert "token" not in page.url
        assert set(watched.complaints) <= {"Method not implemented."}


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    model = tiny("deformable")
    model.input_size = Size(48, 48)
    model.save_pretrained(tmp_path / "model")
    words = ["explore", "--checkpoint", str(tmp_path / "model"), "--device", "cpu", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "msdeform", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline().startswith("open http://127.0.0.1:")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
            assert process.stdout.read() == "stopped by Ctrl-C\n"
            assert process.stderr.read() == ""
        finally:
            process.kill()
