"""The benchmark of the server: which answers count as right, and a small run of each kind."""

import json
from pathlib import Path

import pytest
import torch

from msdeform.bench.harness.records import read
from msdeform.bench.options import ServeOptions
from msdeform.bench.serving import broken, tables
from msdeform.bench.serving.benchmark import run
from msdeform.bench.serving.server import TOP_K, is_right, subject
from msdeform.models.inference.detections import Detections
from msdeform.train.serving.app import as_json

SMALL = {"model": "detr_tiny", "image": "64x96", "threads": 1, "device": "cpu"}


def many() -> Detections:
    """More than a request asks for; the first two are nearly equal."""
    scores = torch.tensor([0.9, 0.8999, *(0.8 - 0.02 * torch.arange(18)).tolist()])
    boxes = torch.arange(20)[:, None] * 10 + torch.tensor([0.0, 0, 5, 5])
    return Detections(boxes, torch.arange(20), scores, (30, 40), [str(label) for label in range(20)])


def test_a_right_answer_may_have_its_nearly_equal_in_another_order() -> None:
    whole, order = many(), [1, 0, *range(2, TOP_K)]
    names = [whole.names[place] for place in order]
    swapped = Detections(whole.boxes[order], whole.labels[order], whole.scores[order], whole.image_size, names)
    assert is_right(as_json(swapped), whole)


@pytest.mark.parametrize("wrong", ["size", "fewer", "label", "box", "score", "another"])
def test_a_wrong_answer_is_seen(wrong: str) -> None:
    whole = many()
    answer = as_json(whole)
    answer["detections"] = answer["detections"][:TOP_K]
    assert is_right(answer, whole)
    first = answer["detections"][4]
    changes = {
        "size": lambda: answer["image"].update(width=41),
        "fewer": answer["detections"].pop,
        "label": lambda: first.update(label=5),
        "box": lambda: first.update(box=[one + 1 for one in first["box"]]),
        "score": lambda: first.update(score=first["score"] - 0.01),
        "another": lambda: answer["detections"].__setitem__(4, as_json(whole)["detections"][15]),
    }
    changes[wrong]()
    assert not is_right(answer, whole)


def test_the_load_is_measured_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    assert run(ServeOptions(**SMALL, requests=6, clients=(2,), out=rows)) == 0  # type: ignore[arg-type]
    loop, server = read(rows).of("serve")
    assert (loop["way"], loop["clients"], loop["requests"]) == ("predict, in a loop", 1, 6)
    assert (server["way"], server["clients"], server["requests"], server["failure"]) == ("server", 2, 6, None)
    assert 0 < server["p50_ms"] <= server["p95_ms"] <= server["p99_ms"]
    assert 1 <= server["images_a_batch"] <= 2
    head = capsys.readouterr().out.splitlines()[-3]
    assert " ".join(head.split()) == "model engine way clients requests a second p50 ms p95 ms p99 ms images a batch"


def test_broken_requests_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way but the slow client, which takes ten seconds."""
    monkeypatch.delitem(broken.WAYS, "slow")
    options = ServeOptions(**SMALL, requests=21, broken=2 / 3)  # type: ignore[arg-type]
    with subject(options) as what:
        row = broken.measured(what, [many()] * len(what.bodies))
    answers = {(way, answer) for way, answer, _ in row["answers"]}
    assert answers == {
        *(("good", "200"), ("truncated", "422"), ("decompression bomb", "413"), ("wrong type", "415")),
        *(("no image", "415"), ("empty", "400"), ("too long", "413"), ("gone", "left")),
    }
    counts = {way: count for way, _, count in row["answers"]}
    assert sum(counts.values()) == 21
    assert row["wrong"] == counts["good"], "they are compared with what is expected, here of no such picture"
    assert (row["tracebacks"], row["failure"], len(row["memory_mb"])) == (0, None, 3)
    assert json.dumps(row)
    assert "crashes: none" in tables.summary(row)
