"""What every detector of the family is: a module with a dtype, a post-processing and, once built by name, a config."""

from typing import Any

import torch
from torch import Tensor

from ..configs import Config
from ..inference.post_processing import post_process
from ..weights.hub import HubDetector


class Detector(HubDetector):
    """Base of the detectors.

    ``model(images)`` takes a list of normalised images (3, h, w) of any sizes, or the pair of images (B, 3, H, W) and
    padding mask (B, H, W), bool, True where padded, or images (B, 3, H, W) alone; in any float dtype, which becomes
    the model's own.
    """

    config: Config | None = None
    """Set by `zoo.build_model`; None for a detector built from parts by hand, which has no description to store."""
    focal: bool = True
    """Are the classes independent sigmoids, or one softmax with a last class for no object?"""

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[dict[str, Tensor]]:
        """Detections of each image in pixels: see `postprocess.post_process`."""
        return post_process(outputs, target_sizes, top_k, focal=self.focal)


def layer_outputs(logits: list[Tensor], boxes: list[Tensor], *, aux_loss: bool) -> dict[str, Any]:
    """The official dictionary: the last layer's ``pred_logits``, ``pred_boxes``; the others in ``aux_outputs``."""
    layers = [{"pred_logits": l, "pred_boxes": b} for l, b in zip(logits, boxes, strict=True)]
    outputs: dict[str, Any] = dict(layers[-1])
    if aux_loss:
        outputs["aux_outputs"] = layers[:-1]
    return outputs
