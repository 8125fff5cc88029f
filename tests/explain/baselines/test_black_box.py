"""A detector seen from outside: its answers, its trace, and ``msdeform explain`` of Faster R-CNN."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msdeform.cli import main
from msdeform.explain.baselines.black_box import DetectionTrace, OwnDetection, ask, score_of, trace_of
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.figures.drawing import told
from tests.explain.baselines.seen import SQUARE, SquareSeen, white
from tests.explain.models import images, uneven
from tests.models.tiny import tiny


@pytest.fixture(scope="module")
def faster_rcnn() -> Any:
    model = tiny("faster r-cnn").eval()
    model.categories = ["cat", "dog", "cow"]
    return model


def test_answers_of_a_detr_are_its_predictions() -> None:
    trace = AttentionTrace(uneven("detr"), images((64, 64))[0], size=64)
    probabilities, boxes = ask(trace, trace.pixels[None].repeat(2, 1, 1, 1))
    torch.testing.assert_close(probabilities[1], trace.layer_scores[-1])
    torch.testing.assert_close(boxes[1] * 64, trace.layer_boxes[-1])
    best = trace.detections(0.0)[0]
    assert float(score_of(trace, best, probabilities, boxes)[0]) == pytest.approx(best.score)


def test_answers_of_a_detector_that_finds_its_own() -> None:
    trace = DetectionTrace(SquareSeen(least=0.4), white())
    probabilities, boxes = ask(trace, torch.stack([trace.pixels, 0 * trace.pixels, trace.pixels / 2]))
    assert probabilities.tolist() == [[[0, pytest.approx(1)]], [[0, 0]], [[0, pytest.approx(0.5)]]]
    assert (boxes[0, 0] * torch.tensor([72, 48, 72, 48])).tolist() == pytest.approx(SQUARE)
    scores = score_of(trace, trace.prediction(0), probabilities, boxes)
    assert scores.tolist() == pytest.approx([1, 0, 0.5])
    # nothing was found in any
    probabilities, boxes = ask(trace, 0 * trace.pixels[None])
    assert float(score_of(trace, trace.prediction(0), probabilities, boxes)) == 0


def test_a_trace_of_faster_rcnn_has_what_it_predicts(faster_rcnn: Any) -> None:
    image = images((48, 64))[0]
    trace = trace_of(faster_rcnn, image, size=64)
    assert isinstance(trace, DetectionTrace)
    expected = faster_rcnn.predict(image, confidence=0.0, size=64)
    found = trace.detections(0.0)
    assert len(found) == len(expected) > 0
    assert [one.score for one in found] == pytest.approx(expected.scores.tolist())
    assert [one.label for one in found] == expected.labels.tolist()
    assert found[0].box == pytest.approx(expected.boxes[0].tolist(), abs=1e-3)
    assert trace.nearest(found[-1].box).box == pytest.approx(found[-1].box)
    of_class = trace.detections(0.0, found[0].label)
    assert {one.label for one in of_class} == {found[0].label}
    assert len(of_class) == expected.labels.tolist().count(found[0].label)
    assert told(found[0]) == f"{found[0].text} (detection 0)"
    assert isinstance(trace_of(uneven("detr"), image, size=64), AttentionTrace)
    assert not isinstance(trace_of(uneven("detr"), image, size=64), DetectionTrace)


def test_nothing_found_and_no_numbers() -> None:
    model = SquareSeen()
    dark = DetectionTrace(model, 0 * white())
    assert dark.queries == 0
    assert dark.detections(0.0) == []
    with pytest.raises(ValueError, match="box: SquareSeen found nothing in the image that could be near it"):
        dark.nearest((1, 1, 5, 5))
    with pytest.raises(TypeError, match="model: expected a detector, got int"):
        DetectionTrace(3, white())  # type: ignore[arg-type]
    assert isinstance(DetectionTrace(model, white()).prediction(0), OwnDetection)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, faster_rcnn: Any) -> list[str]:
    folder = tmp_path_factory.mktemp("outside")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "street.png")
    # fewer boxes come out of its file than there are proposals by default
    faster_rcnn.save_pretrained(folder / "model")
    files = [str(folder / "street.png"), "--checkpoint", str(folder / "model"), "--out", str(folder / "out")]
    return ["explain", *files, "--confidence", "0", "--image-size", "40", "--no-progress", "--dpi", "40"]


def test_the_command_draws_faster_rcnn_from_outside(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--most", "2", "--samples", "10"]) == 0
    out = Path(command[5])
    about = json.loads((out / "street-explanation.json").read_text())
    assert [name for name in about["files"] if name.endswith("png")] == [
        "street-det0-drise.png",
        "street-det1-drise.png",
    ]
    heat = np.load(out / "street-det0-drise.npz")["heat"]
    assert heat.shape == (32, 40)
    assert heat.max() > 0
    printed = capsys.readouterr().out
    assert " has no attention: what it found is explained from outside, by changed images\n" in printed
    assert "query" not in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--method raw", "method: FasterRcnn has no attention, and is explained from outside alone, by --method drise"),
        ("--html", "html: FasterRcnn has no attention"),
        ("--mask decoder.*.cross:h0", "mask: FasterRcnn has no attention"),
        ("--layer all", "layer: FasterRcnn has no attention"),
        ("--ref 3,3", "ref: FasterRcnn has no attention"),
        ("--query 1", "query: FasterRcnn has no attention"),
        ("--samples 3", "samples: expected at least 10"),
        ("--target w", "target: FasterRcnn has no attention"),
        ("--target w --method drise", "target: drise explains a detection as a whole"),
    ],
)
def test_what_it_has_none_of(command: list[str], words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([*command, *words.split()])
    except SystemExit as error:  # told before anything is read
        status = int(error.code or 0)
    assert status in (1, 2)
    assert sentence in capsys.readouterr().err
