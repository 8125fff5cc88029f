"""The one type for what a detector found in an image."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)  # tensors have no single truth to compare by
class Detections:
    """What a detector found in one image, best first; N of them.

    ``detections["scores"]``, ``["labels"]`` and ``["boxes"]`` are the tensors, as in the official code's dictionaries.
    """

    boxes: Tensor
    """(N, 4) float, xyxy in pixels of the image as it is displayed; not clipped to it."""
    labels: Tensor
    """(N,) int64, the model's class numbers."""
    scores: Tensor
    """(N,) float, in [0, 1], falling."""
    image_size: tuple[int, int]
    """(height, width) that the boxes refer to."""
    names: list[str] = field(default_factory=list)
    """The classes' names; their numbers as text for a model that knows no names; none from `post_process`."""

    def __len__(self) -> int:
        return len(self.scores)

    def keys(self) -> tuple[str, ...]:
        return ("scores", "labels", "boxes")

    def items(self) -> list[tuple[str, Tensor]]:
        return [(key, self[key]) for key in self.keys()]

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.keys():
            raise KeyError(f"detections: expected {', '.join(self.keys())}, got {key!r}")
        tensor: Tensor = getattr(self, key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def at_least(self, confidence: float) -> "Detections":
        """Those of at least this score."""
        count = int((self.scores >= confidence).sum())  # scores fall
        return Detections(
            self.boxes[:count], self.labels[:count], self.scores[:count], self.image_size, self.names[:count]
        )

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``, names under ``data["class_name"]``.

        Raises ImportError where that package is not installed.
        """
        return supervision_package().Detections(
            xyxy=self.boxes.float().cpu().numpy().reshape(-1, 4),
            confidence=self.scores.float().cpu().numpy(),
            class_id=self.labels.cpu().numpy().astype(int),
            data={"class_name": np.array(self.names or self.labels.tolist(), dtype=str)},
        )


def nothing_detected(confidence: float, name: str, score: float, what: str = "nothing") -> str:
    """What to tell where no detection, or none of ``what``, reaches ``confidence``: the best's class and score."""
    return f"{what} was detected with at least {confidence:g}; the best is {name} with {score:.3f}"


def supervision_package() -> Any:
    """The package supervision. Raises ImportError where it is not installed."""
    try:
        import supervision
    except ModuleNotFoundError as error:
        if error.name != "supervision":  # installed, but broken: its own error says how
            raise
        raise ImportError(
            "supervision.Detections needs the package supervision, which is not installed: pip install supervision"
        ) from error
    return supervision
