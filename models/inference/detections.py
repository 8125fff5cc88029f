"""The one type for what a detector found in an image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ...common.packages import optional_package

Confidence = float | Sequence[float]
"""A minimum score of detections, from 0 to 1; or one for each class, by label."""


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

    def at_least(self, confidence: "Confidence") -> "Detections":
        """Those of at least this score, or of at least that of their class."""
        kept = (self.scores >= minimum_scores(confidence, self.labels)).nonzero()[:, 0]
        names = [self.names[place] for place in kept.tolist()] if self.names else []
        return Detections(self.boxes[kept], self.labels[kept], self.scores[kept], self.image_size, names)

    def without_duplicates(self, overlap: float) -> "Detections":
        """Those that no surer one of their class overlaps by an IoU above ``overlap``: non-maximum suppression."""
        kept = batched_nms(self.boxes.float(), self.scores.float(), self.labels, overlap)
        names = [self.names[place] for place in kept.tolist()] if self.names else []
        return Detections(self.boxes[kept], self.labels[kept], self.scores[kept], self.image_size, names)

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


def minimum_scores(confidence: Confidence, labels: Tensor) -> Tensor:
    """The score that each detection, of these labels (N,), must reach: (N,) float64.

    Raises ValueError for a score outside of 0 to 1, or a label without one.
    """
    by_class = torch.tensor([confidence] if isinstance(confidence, int | float) else list(confidence)).double()
    wrong = by_class[~((by_class >= 0) & (by_class <= 1))]  # written so that NaN is wrong
    if len(wrong):
        raise ValueError(f"confidence: expected a number from 0 to 1, got {wrong[0].item():g}")
    if isinstance(confidence, int | float):
        return by_class.expand(len(labels))
    if len(labels) and int(labels.max()) >= len(by_class):
        raise ValueError(
            f"confidence: expected a number for every class, got {len(by_class)}, and a detection of class "
            f"{int(labels.max())}"
        )
    return by_class[labels.cpu()]


def nothing_detected(confidence: float, name: str, score: float, what: str = "nothing") -> str:
    """What to tell where no detection, or none of ``what``, reaches ``confidence``: the best's class and score."""
    return f"{what} was detected with at least {confidence:g}; the best is {name} with {score:.3f}"


def supervision_package() -> Any:
    """The package supervision. Raises ImportError where it is not installed."""
    return optional_package("supervision", "supervision.Detections needs")
