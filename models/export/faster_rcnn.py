"""Faster R-CNN as one graph: what torchvision decides by counting boxes, written without a decision.

torchvision's suppression and box decoding take another way for many boxes, or for none, and `torch.export` refuses a
graph that depends on such a count. Here both have one way, and the sizes that the image decides stay sizes.
"""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms, roi_align
from torchvision.ops.poolers import _setup_scales

from ..families.faster_rcnn import FasterRcnn
from ..layers.geometry import at_least_float32
from .form import Form

# torchvision's, in both of its stages: a box of no area is none
_LEAST_SIDE = {"proposals": 1e-3, "detections": 1e-2}
# the minimum score of a detection that the check starts with; it is lowered until there are some
_CONFIDENCES = (0.5, 0.05, 0.02, 0.01, 0.005, 0.0)


class ExportableFasterRcnn(nn.Module):
    """One image and the minimum score of a detection to (boxes, labels, scores), best first.

    The same layers, thresholds and order as `FasterRcnn`'s in evaluation.
    """

    inputs = ("images", "confidence")
    outputs = ("boxes", "labels", "scores")

    def __init__(self, model: FasterRcnn, form: Form) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, images: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (1, 3, H, W), sides multiples of 32, confidence () float; n detections, as many as there are.

        Boxes (n, 4) xyxy, shares of the image, labels (n,) int64, scores (n,).
        """
        detector = self.model.detector
        size = (images.shape[2], images.shape[3])
        maps = {name: at_least_float32(x) for name, x in detector.backbone(images).items()}
        proposals = self._propose(images, list(maps.values()), size)
        # without a bound that it can see, the exporter writes one that no ONNX integer holds
        torch._check(proposals.shape[0] <= detector.rpn.post_nms_top_n())
        heads = detector.roi_heads
        logits, deltas = heads.box_predictor(heads.box_head(self._pool(maps, proposals, size)))

        classes = logits.shape[1]
        boxes = heads.box_coder.decode_single(deltas, proposals).reshape(-1, classes, 4)
        boxes = box_ops.clip_boxes_to_image(boxes, size)
        # class 0 is the background
        scores, boxes = logits.softmax(-1)[:, 1:].flatten(), boxes[:, 1:].flatten(0, 1)
        labels = torch.arange(classes - 1).expand(logits.shape[0], -1).flatten()
        sure = torch.where(scores > confidence)[0]
        keep = sure[_best(boxes[sure], scores[sure], labels[sure], size, heads.nms_thresh, "detections")]
        keep = keep[: heads.detections_per_img]
        height, width = size
        return boxes[keep] / boxes.new_tensor([width, height, width, height]), labels[keep], scores[keep]

    def _propose(self, images: Tensor, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Proposals (n, 4), xyxy in pixels, of the region proposal network."""
        rpn = self.model.detector.rpn
        objectness, deltas = rpn.head(maps)
        anchors = rpn.anchor_generator(ImageList(images, [size]), maps)
        counts = [x.shape[1] * x.shape[2] * x.shape[3] for x in objectness]
        scores, offsets = concat_box_prediction_layers(objectness, deltas)
        boxes = rpn.box_coder.decode_single(offsets, anchors[0])
        # the best of each level, of which there is a fixed number
        chosen, level, start = [], [], 0
        for i, count in enumerate(counts):
            best = min(rpn.pre_nms_top_n(), count)
            chosen.append(scores[start : start + count, 0].topk(best).indices + start)
            level.append(torch.full((best,), i))
            start += count
        rows = torch.cat(chosen)
        boxes, probability = box_ops.clip_boxes_to_image(boxes[rows], size), scores[rows, 0].sigmoid()
        keep = _best(boxes, probability, torch.cat(level), size, rpn.nms_thresh, "proposals")
        return boxes[keep[: rpn.post_nms_top_n()]]

    def _pool(self, maps: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Features (n, C, h, w) of `boxes`, each from the level that its area calls for."""
        pool = self.model.detector.roi_heads.box_roi_pool
        levels = [maps[name] for name in pool.featmap_names]
        scales, level_of = _setup_scales(levels, [size], pool.canonical_scale, pool.canonical_level)
        level = level_of([boxes])
        pooled = boxes.new_zeros(boxes.shape[0], levels[0].shape[1], *pool.output_size)
        for i, (features, scale) in enumerate(zip(levels, scales, strict=True)):
            rows = torch.where(level == i)[0]
            # of the first and only image
            regions = nn.functional.pad(boxes[rows], (1, 0))
            found = roi_align(features, regions, pool.output_size, scale, pool.sampling_ratio)
            pooled = pooled.index_copy(0, rows, found)
        return pooled

    def example(self, images: Tensor) -> tuple[Tensor, ...]:
        """`images` (1, 3, H, W) with a confidence at which the model finds something in it."""
        for confidence in _CONFIDENCES:
            inputs = images, torch.tensor(confidence)
            if len(self.expected(*inputs)[0]):
                return inputs
        raise ValueError("images: the model finds nothing in one at any confidence, so that nothing can be compared")

    def expected(self, images: Tensor, confidence: Tensor) -> tuple[Tensor, ...]:
        """What `FasterRcnn` itself finds: torchvision's way, not this file's."""
        heads = self.model.detector.roi_heads
        before, heads.score_thresh = heads.score_thresh, confidence.item()
        try:
            found = self.model(images)["detections"][0]
        finally:
            heads.score_thresh = before
        return found["boxes"], found["labels"], found["scores"]

    def paired(self, wanted: Sequence[Tensor], came: Sequence[Tensor]) -> list[Tensor]:
        """Detections `came`, each beside the one `wanted` that it is nearest to; as they are if their number differs.

        Rounding decides which of two equal scores is first.
        """
        if len(wanted[0]) != len(came[0]):
            return list(came)
        far = torch.cdist(wanted[0], came[0], p=1) + (wanted[2][:, None] - came[2]).abs()
        far = far + (wanted[1][:, None] != came[1])
        _, order = linear_sum_assignment(far.numpy())
        return [tensor[torch.from_numpy(order)] for tensor in came]


def _best(boxes: Tensor, scores: Tensor, group: Tensor, size: tuple[int, int], overlap: float, stage: str) -> Tensor:
    """Rows of `boxes` (n, 4), xyxy within the image, that suppression within each `group` (n,) leaves, best first."""
    rows = box_ops.remove_small_boxes(boxes, _LEAST_SIDE[stage])
    # beside each other, boxes of different groups do not overlap
    apart = boxes[rows] + group[rows, None] * float(max(size) + 1)
    # torchvision tells torch.export that suppression leaves two at least: two of the worst score outside of the image,
    # which come last and are taken away
    outside = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    left = nms(torch.cat([apart, outside]), torch.cat([scores[rows], scores.new_full((2,), -1.0)]), overlap)
    return rows[left[left < rows.shape[0]]]
