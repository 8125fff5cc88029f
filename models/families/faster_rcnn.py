"""Faster R-CNN with a feature pyramid: torchvision's, behind the interface of the other detectors, as a baseline.

Its losses need the images' features and proposals, so in training the model returns those, and `FasterRcnnCriterion`
does the rest. It finds its own detections (non-maximum suppression), so post-processing only scales them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..configs import FasterRcnnConfig
from ..layers.backbone import Backbone
from ..layers.batch import Images, as_batch
from ..layers.boxes import cxcywh_to_xyxy
from ..layers.geometry import at_least_float32
from ..losses.matcher import NonFiniteCostError
from ..losses.targets import Target, check_shapes, check_values, pack_values, pad_targets
from .detector import Detector

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
# images are padded to a multiple of the coarsest stride, as torchvision pads them
STRIDE = 32


class FasterRcnn(Detector, config=FasterRcnnConfig):
    """torchvision's `FasterRCNN`, whose parameters keep torchvision's names under ``detector``.

    Labels are those of the data, from 0; torchvision's, which count from 1, stay inside.
    """

    def __init__(self, backbone: Backbone, *, num_classes: int) -> None:
        super().__init__()
        layers = {stage: str(i) for i, stage in enumerate(backbone.stages)}
        pyramid = BackboneWithFPN(backbone.body, layers, list(backbone.channels), 256, LastLevelMaxPool())
        self.detector = FasterRCNN(pyramid, num_classes + 1)
        for head in (self.detector.rpn.head, self.detector.roi_heads.box_head, self.detector.roi_heads.box_predictor):
            head.register_forward_pre_hook(_to_own_dtype)
            head.register_forward_hook(_output_at_least_float32)
        self.num_classes = num_classes

    @classmethod
    def from_parts_of(cls, config: FasterRcnnConfig, attn_backend: str) -> "FasterRcnn":
        return cls(Backbone.from_config(config, 4), num_classes=config.num_classes)

    @property
    def body(self) -> nn.Module:
        return self.detector.backbone.body

    def forward(self, images: Images) -> dict[str, Any]:
        """In evaluation, ``detections``: for each image ``boxes`` (n, 4) xyxy, normalised, ``labels``, ``scores``.

        In training, what the criterion goes on from.
        """
        batch, mask = as_batch(images, self.dtype)
        sizes = [(int(rows), int(columns)) for rows, columns in _sizes(mask).tolist()]
        height, width = (-side % STRIDE for side in batch.shape[-2:])
        padded = ImageList(nn.functional.pad(batch, (0, width, 0, height)), sizes)
        features = _each(at_least_float32, self.detector.backbone(padded.tensors))
        if self.training:
            return {"images": padded, "features": features, "detector": self.detector, "num_classes": self.num_classes}
        proposals, _ = self.detector.rpn(padded, features)
        found, _ = self.detector.roi_heads(features, proposals, sizes)
        return {
            "detections": [
                {
                    "boxes": one["boxes"] / one["boxes"].new_tensor([width, height, width, height]),
                    "labels": one["labels"] - 1,
                    "scores": one["scores"],
                }
                for one, (height, width) in zip(found, sizes, strict=True)
            ]
        }

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[dict[str, Tensor]]:
        """The best `top_k` detections of each image, in pixels, best first; `target_sizes` (B, 2), height and width."""
        found = []
        for one, (height, width) in zip(outputs["detections"], target_sizes.tolist(), strict=True):
            scores, order = one["scores"].sort(descending=True)
            order = order[:top_k]
            boxes = one["boxes"][order] * one["boxes"].new_tensor([width, height, width, height])
            found.append({"scores": scores[:top_k], "labels": one["labels"][order], "boxes": boxes})
        return found


def _each(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`change` of every tensor in nested lists, tuples and dicts."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _each(change, branch) for key, branch in tree.items()}
    return type(tree)(_each(change, branch) for branch in tree)


# boxes, and what is sampled and suppressed by them, are at least float32: torchvision has no suppression of 16-bit
# boxes on every device, and an anchor at 1001 pixels would be at 1000. Layers with weights compute in those' dtype.
def _to_own_dtype(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return _each(lambda x: x.to(dtype), arguments)


def _output_at_least_float32(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    return _each(at_least_float32, output)


def _sizes(mask: Tensor) -> Tensor:
    """(B, 2): height and width of the unpadded part of each image."""
    return torch.stack([(~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)], dim=1)


class FasterRcnnCriterion(nn.Module):
    """torchvision's four losses, all of weight 1, of what `FasterRcnn` returned in training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_dict = dict.fromkeys(LOSSES, 1.0)

    def forward(
        self,
        outputs: dict[str, Any],
        targets: Sequence[Target],
        *,
        box_counts: Sequence[int] | None = None,
        num_boxes: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses against B targets, as `SetCriterion` takes them.

        They are means over sampled anchors and boxes, so a part of a batch counts by its share of the images, of
        which `box_counts` has one number each; `num_boxes` plays no role. Raises ValueError for a model in evaluation
        and for targets that don't fit, and `matcher.NonFiniteCostError` for a loss that is not finite.
        """
        if "detector" not in outputs:
            raise ValueError("outputs: expected those of the model in training mode, got detections")
        check_shapes(targets, len(outputs["images"].image_sizes))
        # regression is towards the logarithm of the sides
        values = pack_values(*pad_targets(targets, torch.float32)).cpu()
        check_values(values, targets, outputs["num_classes"], flat=False)
        detector, images, features = outputs["detector"], outputs["images"], outputs["features"]
        dtype = next(iter(features.values())).dtype
        wanted = [
            {"boxes": self._in_pixels(target, size).to(dtype), "labels": target["labels"].long() + 1}
            for target, size in zip(targets, images.image_sizes, strict=True)
        ]
        proposals, from_anchors = detector.rpn(images, features, wanted)
        _, from_boxes = detector.roi_heads(features, proposals, images.image_sizes, wanted)
        share = len(targets) / len(targets if box_counts is None else box_counts)
        losses = {name: loss * share for name, loss in (from_anchors | from_boxes).items()}
        if not all(bool(loss.isfinite()) for loss in losses.values()):
            raise NonFiniteCostError(f"losses: expected finite numbers, got {_numbers(losses)}")
        return losses

    @staticmethod
    def _in_pixels(target: Target, size: tuple[int, int]) -> Tensor:
        boxes = at_least_float32(target["boxes"])
        return cxcywh_to_xyxy(boxes) * boxes.new_tensor([size[1], size[0], size[1], size[0]])


def _numbers(losses: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {loss.item():.3g}" for name, loss in losses.items())
