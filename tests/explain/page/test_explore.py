"""``msdeform explore``: what became of detections, which masks the switches mean, and what a wrong flag is told."""

import socket
import tempfile
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from msdeform.cli import main
from msdeform.explain import commands
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace, QueryPrediction
from msdeform.explain.options import ExploreOptions
from msdeform.explain.page import interface as page_interface
from msdeform.explain.page.became import changes, in_words, left_of, report
from msdeform.explain.page.interface import MODES, interface, look, masks_of, modes, serving, switches
from tests.explain.stand_in import StandInTrace
from tests.models.tiny import tiny


def prediction(query: int, label: int, x: float, score: float = 0.9) -> QueryPrediction:
    return QueryPrediction(query, label, f"class <{label}>", score, (x, 0.0, x + 10, 10.0))


def test_detections_are_paired_by_place_and_then_by_class() -> None:
    before = [prediction(0, 0, 0), prediction(1, 1, 100), prediction(2, 2, 200), prediction(3, 0, 300)]
    after = [
        prediction(7, 1, 301),
        prediction(1, 0, 101),
        prediction(9, 2, 203),
        prediction(8, 2, 201),
        prediction(5, 1, 500),
    ]
    found = [
        (one.fate, one.before and one.before.query, one.after and one.after.query) for one in changes(before, after)
    ]
    assert found == [
        ("lost", 0, None),
        ("changed", 1, 1),
        ("kept", 2, 8),
        ("changed", 3, 7),
        ("gained", None, 9),
        ("gained", None, 5),
    ]


def test_a_pair_of_one_class_goes_before_a_closer_one_of_another() -> None:
    fate, _, after, _ = changes([prediction(0, 0, 0)], [prediction(1, 1, 0), prediction(2, 0, 2)])[0]
    assert (fate, after and after.query) == ("kept", 2)


@pytest.mark.parametrize(("before", "after"), [([], [1]), ([1], [])])
def test_nothing_before_or_after_is_all_gained_or_lost(before: list[int], after: list[int]) -> None:
    found = changes([prediction(q, 0, 0) for q in before], [prediction(q, 0, 0) for q in after])
    assert [one.fate for one in found] == (["lost"] if before else ["gained"])


def test_the_report_counts_and_escapes() -> None:
    text = report(
        torch.zeros(3, 20, 30, dtype=torch.uint8),
        changes([prediction(0, 0, 0), prediction(1, 1, 100)], [prediction(0, 0, 0)]),
        0.5,
    )
    assert "2 detections of at least 0.5 before, 1 after. 1 of 2 lost: class &lt;1&gt; 0.90." in text
    assert "class &lt;1&gt; 0.90" in text
    assert "<1>" not in text


def test_what_changed_is_said_in_words() -> None:
    before = [prediction(0, 0, 0, 0.91), prediction(1, 1, 100, 0.8), prediction(2, 2, 200), prediction(3, 2, 300, 0.7)]
    after = [prediction(1, 0, 100, 0.6), prediction(2, 2, 200, 0.5), prediction(3, 2, 300), prediction(4, 1, 900, 0.55)]
    left = prediction(5, 0, 0, 0.32)
    assert in_words(changes(before, after, lambda lost: left), 0.5) == (
        "4 detections of at least 0.5 before, 4 after. 1 of 4 lost: class <0> 0.91 → 0.32. "
        "1 of 4 of another class now: class <1> 0.80 → class <0> 0.60. 1 gained: class <1> 0.55. "
        "2 kept; their scores changed by -0.10 in the mean, most class <2> 0.90 → 0.50."
    )
    assert in_words(changes(before, before), 0.5) == (
        "4 detections of at least 0.5 before, 4 after. The scores of the 4 kept are as before."
    )
    assert in_words(changes([], []), 0.25) == "Nothing is detected with at least 0.25, before or after."
    many = [prediction(q, 0, 50.0 * q) for q in range(6)]
    assert in_words(changes(many, []), 0.5).endswith("6 of 6 lost: " + "class <0> 0.90, " * 4 + "and 2 more.")


def test_what_is_left_of_a_lost_detection_is_its_class_at_its_place() -> None:
    trace = StandInTrace(queries=4)
    # three queries at one place, of which one is detected as something; a fourth elsewhere, the surest of the class
    trace.layer_boxes[-1] = torch.tensor([[0.0, 0, 20, 20], [1, 0, 20, 20], [0, 1, 20, 20], [40, 20, 60, 40]])
    trace.layer_scores[-1] = torch.tensor([[0.6, 0.9, 0], [0.2, 0, 0], [0.3, 0, 0.4], [0.5, 0, 0]])
    found = [trace.prediction(0)]
    lost = QueryPrediction(9, 0, "cat", 0.9, (0.0, 0.0, 20.0, 20.0))
    trace.prediction = lambda query, label: (query, label)  # type: ignore[method-assign]
    assert left_of(trace, found, lost) == (2, 0)
    elsewhere = QueryPrediction(9, 0, "cat", 0.9, (200.0, 0.0, 220.0, 20.0))
    trace.nearest = lambda box: found[0]  # type: ignore[attr-defined]
    assert left_of(trace, found, elsewhere) == (0, 0)


def test_modes_are_those_that_act_on_the_model() -> None:
    assert modes(tiny("deformable")) == list(MODES) == ["zero", "uniform", "shuffled", "frozen"]
    assert modes(tiny("detr")) == ["zero", "uniform", "shuffled"]  # which samples no places
    rows = switches(tiny("deformable"))["decoder.*.cross"]
    on = [list(range(row.number)) for row in rows]
    assert masks_of(rows, [[1], *on[1:]], "uniform") == [Mask("decoder.0.cross", heads=(0,), mode="uniform")]


def test_switches_become_masks() -> None:
    grouped = switches(tiny("two-stage"))
    assert list(grouped) == ["decoder.*.cross", "decoder.*.self", "encoder.*.self"]
    rows = grouped["decoder.*.cross"]
    assert [row.what for row in rows] == ["heads", "heads", "levels"]
    on = [list(range(row.number)) for row in rows]
    assert masks_of(rows, on) == []
    assert masks_of(rows, [[1], *on[1:]]) == [Mask("decoder.0.cross", heads=(0,))]
    assert masks_of(rows, [*on[:2], [0]]) == [Mask("decoder.*.cross", levels=(1,))]
    dense = grouped["decoder.*.self"]
    assert [row.what for row in dense] == ["heads", "heads"]
    assert masks_of(dense, [[], on[1]]) == [Mask("decoder.0.self", heads=tuple(range(dense[0].number)))]


def options(**changed: Any) -> ExploreOptions:
    return ExploreOptions(checkpoint=Path("none"), image_size=48, **changed)


def test_a_look_is_the_models_own_under_the_masks() -> None:
    model, image = tiny("deformable"), torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    masks = [Mask("decoder.*.cross", heads=(0,))]
    found, text, _ = look(model, options(), image, 0.0, masks, "street.jpg")
    assert found == AttentionTrace(model, image, size=48, masks=masks).detections(0.0)
    assert found != AttentionTrace(model, image, size=48).detections(0.0)
    assert "<h1>street.jpg</h1>" in text
    assert '"name": "relevance"' in text
    assert '"name": "relevance"' not in look(model, options(relevance=0), image, 0.0, masks, "street.jpg")[1]


def test_an_upload_is_run_again_as_switched(tmp_path: Path) -> None:
    """What the buttons do, without a server."""
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    blocks = interface(tiny("two-stage"), options(relevance=0))
    asked = {function.name: function.fn for function in blocks.fns.values()}
    Image.new("RGB", (56, 40), (90, 120, 30)).save(tmp_path / "street.png")
    visit, said, page, *_ = asked["upload"](str(tmp_path / "street.png"), 0.0)
    assert said.startswith("street.png: 10 detections")
    assert page.startswith("<iframe")
    rows = [row for group in switches(tiny("two-stage")).values() for row in group]
    on = [list(range(row.number)) for row in rows]
    assert asked["run_again"](visit, None, 0.0, "zero", *on)[0].startswith("Every head and level is on")
    status, became, *_ = asked["run_again"](visit, None, 0.0, "zero", [1], *on[1:])
    assert status == "Off: decoder.0.cross:h0"
    assert became.count("<img ") == 2
    (tmp_path / "notes.png").write_text("<img src=x onerror=alert(1)>")
    assert asked["upload"](str(tmp_path / "notes.png"), 0.0)[1].startswith("image notes.png cannot be decoded")


def test_two_images_are_run_again_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    model = tiny("two-stage")
    asked = {function.name: function.fn for function in interface(model, options(relevance=0)).fns.values()}
    visits = []
    for name, colour, upload in (("one.png", 30, "upload"), ("two.png", 200, "upload_second")):
        Image.new("RGB", (56, 40), (90, 120, colour)).save(tmp_path / name)
        visits.append(asked[upload](str(tmp_path / name), 0.0)[0])
    rows = [row for group in switches(model).values() for row in group]
    ticked = [[1], *(list(range(row.number)) for row in rows[1:])]
    said, became, first, second = asked["run_again"](*visits, 0.0, "shuffled", *ticked)
    assert said == "Off: decoder.0.cross:h0:shuffled"
    assert became.count("<img ") == 4
    assert "<h3>one.png</h3>" in became
    assert "<h3>two.png</h3>" in became
    assert "one.png, as switched" in first
    assert "two.png, as switched" in second["value"]
    assert second["visible"]
    assert asked["run_again"](None, visits[1], 0.0, "zero", *ticked)[1].count("<img ") == 2
    assert asked["upload_second"](None, 0.0)[2]["visible"] is False
    dense = next(i for i, row in enumerate(rows) if row.sites == "decoder.0.self")
    ticked = [list(range(row.number)) if i != dense else [1] for i, row in enumerate(rows)]
    said, became, *_ = asked["run_again"](*visits, 0.0, "frozen", *ticked)
    assert said.startswith("mask decoder.0.self:h0:frozen: decoder.0.self attends to every key")
    assert became == ""


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == "gradio" else util.find_spec(name))
    assert main(["explore", "--checkpoint", __file__]) == 1
    assert capsys.readouterr().err == (
        "msdeform explore: the interface needs the package gradio, which is not installed: pip install gradio\n"
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--port", "70000"], "--port: expected a number from 0 to 65535, got 70000"),
        (["--confidence", "2"], "confidence: expected a number from 0 to 1, got 2.0"),
        (["--relevance", "-1"], "relevance: expected at least 0, got -1"),
        (["--image-size", "8"], "image-size: expected at least 32, got 8"),
    ],
)
def test_a_wrong_flag_is_told(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["explore", "--checkpoint", "x.pt", *flags])
    assert caught.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_taken_port_is_told() -> None:
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sentence = f"cannot listen on 127.0.0.1, port {port}; choose another with --port"
        with pytest.raises(ValueError, match=sentence), serving(tiny("deformable"), options(port=port)):
            pass


def test_uploads_are_bounded_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    import httpx

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(page_interface, "MOST_BYTES", 1000)
    with serving(tiny("deformable"), options(port=0)) as address:

        def upload(length: int) -> httpx.Response:
            return httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", b"0" * length)})

        assert upload(1001).status_code == 413
        (place,) = upload(1000).json()
        assert Path(place).is_relative_to(tmp_path)
        assert Path(place).stat().st_size == 1000
    assert list(tmp_path.iterdir()) == []


def test_a_large_or_strange_image_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    monkeypatch.setattr(page_interface, "MOST_PIXELS", 1000)
    asked = {function.name: function.fn for function in interface(tiny("deformable"), options()).fns.values()}
    path = tmp_path / "large.png"
    Image.new("RGB", (40, 26)).save(path)
    sentence = "image large.png cannot be decoded: the image has 40 x 26 pixels, more than 1000"
    assert asked["upload"](str(path), 0.0)[1] == sentence
    Image.new("RGB", (4, 4)).save(tmp_path / "a.gif")  # a decoder that nobody needs here
    assert "it is no image in JPEG, PNG" in asked["upload"](str(tmp_path / "a.gif"), 0.0)[1]
    path.unlink()
    assert asked["upload"](str(path), 0.0)[1] == "This image was removed here; choose it again."


def test_who_is_answered() -> None:
    """Of the machine's own names and pages, and, where others reach it, by the token alone."""
    pytest.importorskip("gradio", reason="gradio, the interface of msdeform explore, is not installed")
    import httpx

    upload = {"files": {"files": ("a.png", b"0")}}
    with serving(tiny("deformable"), options(port=0)) as address:
        assert httpx.get(address).status_code == 200
        assert "connect-src 'self'" in httpx.get(address).headers["content-security-policy"]
        assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 421
        for origin, status in (("http://evil.example", 403), ("null", 403), (address.rstrip("/"), 200)):
            answer = httpx.post(f"{address}gradio_api/upload", headers={"Origin": origin}, **upload)
            assert answer.status_code == status
        for path in ("gradio_api/file=/etc/hostname", f"gradio_api/file={__file__}"):
            assert httpx.get(address + path).status_code == 403
    with serving(tiny("deformable"), options(port=0, host="0.0.0.0")) as address:
        plain, _, token = address.partition("?token=")
        assert len(token) >= 43
        for path in ("", "config", "gradio_api/info", "theme.css"):
            assert httpx.get(plain + path).status_code == 401
            assert httpx.get(plain + path, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert httpx.post(f"{plain}gradio_api/upload", **upload).status_code == 401
        with httpx.Client(follow_redirects=True) as client:
            assert client.get(address).url == plain
            assert client.get(f"{plain}config").status_code == 200
