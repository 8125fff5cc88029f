"""Heat maps of the methods of others, on the image's pixels, by name."""

import torch.nn.functional as F
from torch import Tensor

from ..core.trace import TARGETS, AttentionTrace, QueryPrediction
from ..options import BLACK_BOX, SAMPLES
from .attribution import integrated_gradients, occlusion
from .drise import drise
from .features import backbone_gradcam, odam


def pixel_map(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    method: str,
    *,
    target: str = "class",
    samples: int = SAMPLES,
) -> Tensor:
    """A map on the image's own pixels, (H, W) float32, not negative.

    ``odam``, ``backbone-gradcam``      see `features`
    ``integrated-gradients``            absolute attributions, summed over colours
    ``drise``                           see `drise`; the detection as a whole, class and box
    ``occlusion``                       the positive part: where a cover costs something of the detection as a whole

    Args:
        method: of PIXEL_METHODS, but not ``input-grad``.
        target: one of TARGETS, of methods that derive one.
        samples: masked images, of ``drise``.

    Raises:
        ImportError: captum is missing.
        ValueError: a target that is none, or that the method cannot tell from the rest; fewer than 2 samples; a method
            that looks inside, of a detector without attention.
    """
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    if method in BLACK_BOX and target != "class":
        raise ValueError(
            f"target: {method} explains a detection as a whole, its class and box together; expected class, "
            f"got {target!r}"
        )
    if method == "drise":
        return drise(trace, prediction, samples=samples)
    if method == "occlusion":
        return _on_image(trace, occlusion(trace, prediction).mean(0).clamp(min=0))
    if method == "integrated-gradients":
        return _on_image(trace, integrated_gradients(trace, prediction, target)[0].abs().sum(0))
    return (odam if method == "odam" else backbone_gradcam)(trace, prediction, target)


def _on_image(trace: AttentionTrace, values: Tensor) -> Tensor:
    """Numbers (h, w) at the resized image's pixels, (H, W) at its own."""
    size = (trace.height, trace.width)
    heat = values.float().cpu()[None, None]
    return F.interpolate(heat, size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
