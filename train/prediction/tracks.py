"""Numbers that follow an object through a video: ByteTrack, as supervision has it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ...models.inference.detections import Confidence, Detections, minimum_scores
from .sources import Frame, Source

# detections down to this score continue a track, though they begin none
LEAST = 0.1


class Tracks:
    """Follows the detections of one video after the other.

    Raises ImportError where neither the package trackers, with ByteTrack, nor a supervision before 0.31, which has
    it too, is installed.
    """

    def __init__(self, confidence: Confidence) -> None:
        """``confidence``: minimum score of a detection, which begins a track; the lowest, if each class has its own."""
        self._confidence = confidence
        self._lowest = confidence if isinstance(confidence, int | float) else min(confidence)
        _byte_track(1.0, self._lowest)  # before the work, not after it
        self._source: Source | None = None

    def __call__(self, frame: Frame, everything: Detections) -> list[int | None]:
        """The track of each of a frame's detections of at least the confidence; None for one that belongs to none.

        ``everything`` is what was found at any confidence: what is less certain still continues a track.
        """
        if frame.source is not self._source:
            self._source, self._update = frame.source, _byte_track(max(1.0, float(frame.rate)), self._lowest)
        given = everything.at_least(min(LEAST, self._lowest))
        theirs = given.to_supervision()
        theirs.data["place"] = np.arange(len(given))
        numbers: list[int | None] = [None] * len(given)
        followed = self._update(theirs)
        if len(followed):
            for place, number in zip(followed.data["place"], followed.tracker_id, strict=True):
                numbers[int(place)] = int(number) if number >= 0 else None
        kept = given.scores >= minimum_scores(self._confidence, given.labels)
        return [number for number, is_kept in zip(numbers, kept.tolist(), strict=True) if is_kept]


def _byte_track(rate: float, confidence: float) -> Callable[[Any], Any]:
    try:
        from trackers import ByteTrackTracker
    except ModuleNotFoundError as error:
        if error.name != "trackers":
            raise
    else:
        both = {"track_activation_threshold": confidence, "high_conf_det_threshold": confidence}
        newest: Callable[[Any], Any] = ByteTrackTracker(frame_rate=rate, minimum_consecutive_frames=1, **both).update
        return newest
    try:
        from supervision import ByteTrack
    except ImportError as error:
        raise ImportError(
            "track: needs ByteTrack, of the package trackers, or of supervision before 0.31, "
            "and neither is installed: pip install supervision trackers"
        ) from error
    # it adds 0.1 to the threshold of a new track
    activation = max(0.0, confidence - 0.1)
    update: Callable[[Any], Any] = ByteTrack(
        track_activation_threshold=activation, frame_rate=round(rate)
    ).update_with_detections
    return update
