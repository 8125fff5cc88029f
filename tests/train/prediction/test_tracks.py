"""Tracks: what ByteTrack is given, and what becomes of its answer."""

import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from msdeform.models.inference.detections import Detections
from msdeform.train.prediction.sources import Frame, Source
from msdeform.train.prediction.tracks import Tracks

CLIPS = [Source(Path(name), name, name) for name in ("a.mp4", "b.mp4")]


def frame(number: int, clip: int = 0) -> Frame:
    return Frame(
        CLIPS[clip], torch.zeros(3, 4, 4, dtype=torch.uint8), number, number, Fraction(number, 25), Fraction(25)
    )


def detections(*rows: tuple[float, float]) -> Detections:
    """Boxes of 20 pixels at x, with a score each."""
    boxes = torch.tensor([[x, 10.0, x + 20.0, 30.0] for x, _ in rows]).reshape(-1, 4)
    scores = torch.tensor([score for _, score in rows])
    return Detections(boxes, torch.zeros(len(rows), dtype=torch.int64), scores, (100, 100), ["car"] * len(rows))


@dataclass
class FakeDetections:
    xyxy: np.ndarray
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict[str, Any]
    tracker_id: np.ndarray = field(default_factory=lambda: np.empty(0, int))

    def __len__(self) -> int:
        return len(self.xyxy)


class FakeTrack:
    """Gives the last of the detections number 7, and all others none; in the order from last to first."""

    made: list[dict[str, Any]]

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)

    def update(self, given: FakeDetections) -> FakeDetections:
        order = np.arange(len(given))[::-1]
        given = FakeDetections(given.xyxy[order], given.confidence[order], given.class_id[order], given.data)
        given.data = {"place": given.data["place"][order]}
        given.tracker_id = np.where(np.arange(len(given)) == 0, 7, -1)
        return given

    update_with_detections = update


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeTrack]:
    FakeTrack.made = []
    for name, contents in (
        ("supervision", {"Detections": FakeDetections, "ByteTrack": FakeTrack}),
        ("trackers", {"ByteTrackTracker": FakeTrack}),
    ):
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return FakeTrack


@pytest.mark.parametrize("newest", [True, False])
def test_numbers_are_those_of_the_detections_that_are_kept(
    fake: type[FakeTrack], newest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not newest:
        monkeypatch.delitem(sys.modules, "trackers")
        monkeypatch.setitem(sys.modules, "trackers", None)
    follow = Tracks(0.4)
    assert follow(frame(0), detections((0, 0.9), (40, 0.5))) == [None, 7]
    # what is less certain continues a track, and is not kept; what is hardly anything is not even given
    assert follow(frame(1), detections((0, 0.9), (40, 0.5), (70, 0.2), (75, 0.05))) == [None, None]
    assert follow(frame(2), detections()) == []
    made = len(fake.made)
    assert follow(frame(0, clip=1), detections((0, 0.9))) == [7]
    assert len(fake.made) == made + 1  # another video, another tracker
    begins = fake.made[-1]["track_activation_threshold"]
    assert begins == pytest.approx(0.4 if newest else 0.3)  # to which supervision adds 0.1


def test_without_byte_track_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"^track: needs ByteTrack.* pip install supervision trackers$"):
        Tracks(0.5)


@pytest.mark.parametrize("package", ["trackers", "supervision"])
def test_objects_keep_their_numbers(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "trackers":
        pytest.importorskip("trackers", reason="needs the package trackers")
    else:
        if not hasattr(pytest.importorskip("supervision", reason="needs supervision"), "ByteTrack"):
            pytest.skip("this supervision has no ByteTrack")
        monkeypatch.setitem(sys.modules, "trackers", None)
    follow = Tracks([0.5])
    follow(frame(0), detections((0, 0.9), (60, 0.8)))
    # the newest numbers an object where it is met again
    first = follow(frame(1), detections((2, 0.9), (60, 0.8)))
    assert len({*first} - {None}) == 2
    for number in range(2, 12):
        # they pass each other in the order of their scores
        scores = (0.9, 0.8) if number % 2 else (0.7, 0.8)
        rows = sorted([(2.0 * number, scores[0]), (60.0, scores[1])], key=lambda row: -row[1])
        numbers = dict(zip([row[0] for row in rows], follow(frame(number), detections(*rows)), strict=True))
        assert [numbers[2.0 * number], numbers[60.0]] == first
