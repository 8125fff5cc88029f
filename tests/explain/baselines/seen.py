"""A detector that nothing inside need be known of: its score is the share of a square that it sees."""

from typing import Any

import torch
from torch import Tensor, nn

from msdeform.models.inference.image_size import ExactSize
from msdeform.models.inference.predictor import Predictor

HEIGHT, WIDTH = 48, 72
SQUARE = (9, 18, 27, 36)
"""xyxy in pixels."""


class SquareSeen(Predictor):
    """Finds one square of class 1 with the score of its mean brightness, from ImageNet's mean colour, 0, to white, 1.

    Below a score of `least` it finds nothing, as a detector with its own threshold. `passes` counts images.
    """

    num_classes = 2

    def __init__(self, least: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.least, self.passes = least, 0
        self.categories, self.input_size = ["none", "square"], ExactSize(HEIGHT, WIDTH)

    def forward(self, images: list[Tensor]) -> dict[str, Any]:
        self.passes += len(images)
        x0, y0, x1, y1 = SQUARE
        box = torch.tensor([[x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT]])
        found = []
        for image in images:
            score = image[0, y0:y1, x0:x1].mean() / WHITE
            kept = int(score > self.least)
            one = {"boxes": box, "labels": torch.tensor([1]), "scores": score[None]}
            found.append({name: values[:kept] for name, values in one.items()})
        return {"detections": found}


# of the first colour, normalised
WHITE = (1 - 0.485) / 0.229


def white() -> Tensor:
    return torch.full((3, HEIGHT, WIDTH), 255, dtype=torch.uint8)
