"""Is a heat map any good? What it says of one detection, held to what the detector does and to where the object is.

A heat map is an array (H, W), at least 0, on the pixels of the image; only its order or its shares matter, never its
scale. A map that is zero everywhere says nothing, and counts as a flat one. Boxes are xyxy in pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import ImageFilter
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ...models.layers.boxes import cxcywh_to_xyxy
from ...models.layers.geometry import at_least_float32
from ..options import Fill, Target

Array = np.ndarray
Box = Sequence[float]


class Curve(NamedTuple):
    """A detection's score while pixels are replaced or brought back."""

    shares: Array
    """(steps + 1,) of the image's pixels, rising, mostly from 0 to 1."""
    scores: Array
    """(steps + 1,)"""

    @property
    def auc(self) -> float:
        """The mean score between the first and the last share, by trapezoids."""
        area = (np.diff(self.shares) * (self.scores[1:] + self.scores[:-1]) / 2).sum()
        return float(area / (self.shares[-1] - self.shares[0]))


def detection_score(probabilities: Tensor, boxes: Tensor, box: Box, label: int, target: Target = "class") -> Tensor:
    """How much of a detection is still there: the best query's IoU with its box times the probability of its class.

    D-RISE (Petsiuk et al. 2021, equation 3) multiplies IoU, objectness and the cosine of the class probabilities. A
    DETR has no objectness, and a cosine is 1 for a background that leans to the class ever so little; the probability
    of the class stands for both.

    Where a coordinate of the box is explained, it is how far that query still has it: 1 where it is the same, 0 where
    it is off by the box's side or more, or where the best query's box does not overlap at all.

    Args:
        probabilities: (B, Q, classes)
        boxes: (B, Q, 4) xyxy, in the unit of `box`
        box: the detection's
        label: its class
        target: what is explained: the class, or x, y, w or h of the box

    Returns:
        (B,) from 0 to 1
    """
    overlap = query_scores(probabilities, boxes, box, label)
    if target == "class":
        return overlap.amax(1)
    best, query = overlap.max(1)
    near = boxes[torch.arange(len(boxes), device=boxes.device), query]
    own = torch.tensor([float(value) for value in box], dtype=boxes.dtype, device=boxes.device)
    first, last = (0, 2) if target in ("x", "w") else (1, 3)
    side = own[last] - own[first]
    start, end = near[:, first] - own[first], near[:, last] - own[last]
    moved = (start + end).abs() / 2 if target in ("x", "y") else (end - start).abs()
    return torch.where(best > 0, (1 - moved / side).clamp(min=0), 0)


def query_scores(probabilities: Tensor, boxes: Tensor, box: Box, label: int) -> Tensor:
    """Every query's IoU with a box times its probability of a class, (B, Q); arguments as of `detection_score`."""
    wanted = torch.tensor([[float(value) for value in box]], dtype=boxes.dtype, device=boxes.device)
    return box_iou(boxes.flatten(0, 1), wanted).view(boxes.shape[:2]) * probabilities[..., label]


def probabilities_and_boxes(model: Any, outputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """A DETR's last layer: class probabilities (B, Q, classes), without that of no object, and boxes (B, Q, 4), xyxy
    as shares of the image."""
    logits = at_least_float32(outputs["pred_logits"])
    probabilities = logits.sigmoid() if model.focal else logits.softmax(-1)[..., :-1]
    return probabilities, cxcywh_to_xyxy(at_least_float32(outputs["pred_boxes"]))


def filled(image: Tensor, fill: Fill = "blur") -> Tensor:
    """What stands where pixels are taken away, (3, H, W) uint8: the image blurred, or its mean colour.

    The blur has a standard deviation of a tenth of the shorter side: objects are gone, and no new edges come.
    """
    if fill == "mean":
        return image.float().mean((1, 2), keepdim=True).round().to(torch.uint8).expand_as(image).contiguous()
    if fill != "blur":
        raise ValueError(f"fill: expected blur or mean, got {fill!r}")
    # pillow's takes the same time for any width
    blurred = to_pil_image(image).filter(ImageFilter.GaussianBlur(max(1.0, min(image.shape[1:]) / 10)))
    return pil_to_tensor(blurred).to(image.device)


def perturbation_curve(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    heat: Array,
    kind: Literal["deletion", "insertion"],
    *,
    baseline: Tensor,
    steps: int = 12,
    batch_size: int = 8,
    seed: int = 0,
) -> Curve:
    """The score while the hottest pixels are replaced by the baseline's, or brought back into it.

    Petsiuk et al. 2018 (RISE): the area under the curve is low for good deletion, high for good insertion.

    Args:
        score: of images (B, 3, H, W) uint8, B scores.
        image: (3, H, W) uint8.
        heat: (H, W).
        kind: deletion starts from the image, insertion from the baseline.
        baseline: (3, H, W) uint8, such as `filled` gives.
        steps: after step i of n, (i / n)^2 of the pixels are changed: an object is a small share of its image, and most
            happens among the first.
        batch_size: images to a call of `score`.
        seed: pixels equally hot follow each other at random.

    Raises:
        ValueError: shapes that do not fit.
    """
    heat = checked(heat, tuple(image.shape[1:]))
    if baseline.shape != image.shape:
        raise ValueError(f"baseline: expected {tuple(image.shape)} like image, got {tuple(baseline.shape)}")
    before, after = (image, baseline) if kind == "deletion" else (baseline, image)
    place = torch.from_numpy(falling(heat, seed)).to(image.device)
    counts = [round(heat.size * (step / steps) ** 2) for step in range(steps + 1)]
    scores = [
        score(torch.stack([torch.where(place < count, after, before) for count in counts[start : start + batch_size]]))
        for start in range(0, len(counts), batch_size)
    ]
    return Curve(np.array(counts) / heat.size, torch.cat(scores).double().cpu().numpy())


def falling(heat: Array, seed: int = 0) -> Array:
    """(H, W) int: the place of each pixel, the hottest's 0; pixels equally hot follow each other at random."""
    # the last key is the first to sort by
    order = np.lexsort((np.random.default_rng(seed).random(heat.size), -heat.ravel()))
    return order.argsort().reshape(heat.shape)


def noised(image: Tensor, noise: Array) -> Tensor:
    """An image (3, H, W), uint8 or floats from 0 to 1, and noise of its shape and unit, back in its range."""
    noisy = (image.double().cpu() + torch.from_numpy(noise)).clamp(0, 1 if image.is_floating_point() else 255)
    return (noisy if image.is_floating_point() else noisy.round()).to(image)


def checked(heat: Array, shape: tuple[int, ...] | None = None) -> Array:
    """A heat map in float64; a map of nothing becomes a flat one. Raises ValueError for one that is not a heat map."""
    heat = np.asarray(heat, dtype=np.float64)
    if heat.ndim != 2 or (shape is not None and heat.shape != shape):
        raise ValueError(f"heat: expected {shape or '(H, W)'}, got {heat.shape}")
    if not np.isfinite(heat).all() or heat.min() < 0:
        raise ValueError("heat: expected finite numbers of at least 0")
    return heat if heat.any() else np.ones_like(heat)


def inside(box: Box, shape: tuple[int, ...]) -> Array:
    """(H, W) bool: the pixels whose centre is in a box."""
    x0, y0, x1, y1 = (float(value) for value in box)
    y, x = (np.arange(size) + 0.5 for size in shape)
    return ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))


def pointing(heat: Array, region: Array) -> float:
    """1 if the hottest pixel is in the region (H, W) bool, a box's or a mask's, else 0 (Zhang et al. 2016).

    Of several equally hot pixels, the share of them that is in the region: the expected result of choosing one.
    """
    heat = checked(heat, region.shape)
    return float(region[heat == heat.max()].mean())


def rank_accuracy(heat: Array, region: Array) -> float:
    """The share of the K hottest pixels that is in the region of K pixels, (H, W) bool (Arras et al. 2022, CLEVR-XAI).

    Relevance rank accuracy: 1 is best, and a random or flat map has the region's share of the image. Of pixels equally
    hot it is the expected result of choosing some. NaN for a region of nothing.
    """
    heat = checked(heat, region.shape)
    count = int(region.sum())
    if not count:
        return np.nan
    last = np.partition(heat.ravel(), heat.size - count)[heat.size - count]
    above, equal = heat > last, heat == last
    return float((region[above].sum() + (count - above.sum()) * region[equal].mean()) / count)


def energy(heat: Array, region: Array) -> float:
    """The share of the map that is in the region (H, W) bool (Wang et al. 2020, Score-CAM)."""
    heat = checked(heat, region.shape)
    return float(heat[region].sum() / heat.sum())


def energy_elsewhere(heat: Array, box: Box, others: Sequence[Box]) -> float:
    """The share of the map that is in other objects' boxes, and not in the object's own."""
    shape = np.shape(heat)
    return energy(heat, np.any([inside(other, shape) for other in others], 0) & ~inside(box, shape))


def compactness(heat: Array) -> float:
    """The smallest share of the pixels that holds half of the map: a half for a flat map, small for a spot.

    The last pixel counts by the part of it that is needed.
    """
    falling = np.sort(checked(heat).ravel())[::-1]
    held = np.concatenate([[0.0], falling.cumsum() / falling.sum()])
    return float(np.interp(0.5, held, np.linspace(0, 1, len(held))))


def box_map(shape: tuple[int, int], box: Box) -> Array:
    """The detection's own box and no more: a Gaussian of a quarter of its sides, cut off at its edges.

    A box with no pixel's centre in it has the pixel nearest its middle.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    region = inside(box, shape)
    if not region.any():
        region[int(np.clip(y, 0, shape[0] - 1)), int(np.clip(x, 0, shape[1] - 1))] = True
        return region.astype(np.float64)
    rows, columns = (np.arange(size) + 0.5 for size in shape)
    across, down = ((columns - x) / max(x1 - x0, 1.0) * 4) ** 2, ((rows - y) / max(y1 - y0, 1.0) * 4) ** 2
    return np.where(region, np.exp(-(down[:, None] + across) / 2), 0.0)
