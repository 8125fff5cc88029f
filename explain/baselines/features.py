"""Maps made of features and their derivatives: ODAM of the maps that attention begins with, Grad-CAM of the backbone's.

Both multiply what a map holds by how the target depends on it and keep the positive part of the sum over channels.
Grad-CAM (Selvaraju et al. 2017) takes one derivative for a channel, its mean over the image: made for classifiers, it
tells one object of a class hardly from another. ODAM (Zhao & Chan 2023) takes each pixel's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.interventions import intervene
from ..core.trace import AttentionTrace, QueryPrediction, frozen


def odam(trace: AttentionTrace, prediction: QueryPrediction, target: str = "class") -> Tensor:
    """ODAM's map on the image's pixels, (H, W) float32: sum over channels of A dy/dA, the positive part.

    A are the maps that attention begins with: the encoder's input or, in detectors without one of deformable attention,
    what their neck made of the backbone's maps. Each level's map is shared out over its pixels' area and all are added
    up, as a detector does that looks at all of them. As in the authors' code the score alone, here the logit, or one
    coordinate is derived, and nothing is smoothed but by the interpolation.
    """
    slopes = torch.autograd.grad(trace.y(prediction, target), trace.begins, retain_graph=True, allow_unused=True)
    parts = []
    for maps, slope in zip(trace.begins, slopes, strict=True):
        product = torch.zeros_like(maps) if slope is None else maps.detach() * slope
        # (1, C, h, w) of a level, or (1, S, C) of all of them
        parts.append(product.sum(1).flatten() if product.ndim == 4 else product.sum(2).flatten())
    return trace.to_pixels(torch.cat(parts).clamp(min=0))


def backbone_gradcam(trace: AttentionTrace, prediction: QueryPrediction, target: str = "class") -> Tensor:
    """Grad-CAM of the backbone's last map, on the image's pixels, (H, W) float32. Runs the model anew.

    Captum's `LayerGradCam` computes the same of a layer that gives one tensor; backbones give several, among other
    things.
    """
    model, pixels = trace.model, trace.pixels.detach().clone().requires_grad_()
    with frozen(model), torch.enable_grad(), intervene(model, *trace.masks), _watched(backbone_of(model)) as maps:
        y = trace.y(prediction, target, model([pixels]))
    found = torch.autograd.grad(y, maps[-1])[0].mean((2, 3), keepdim=True)
    heat = (found * maps[-1].detach()).sum(1, keepdim=True).clamp(min=0).float().cpu()
    return F.interpolate(heat, (trace.height, trace.width), mode="bilinear", align_corners=False)[0, 0]


def backbone_of(model: nn.Module) -> nn.Module:
    """The module whose output holds the backbone's maps, the coarsest last."""
    modules = dict(model.named_modules())
    # of ours all but one have the position encoding second in it; transformers' stands deeper, and has a name with us
    for name in ("backbone.0", "backbone"):
        if name in modules:
            return modules[name]
    body: Any = model
    return body.body


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """Maps (B, C, h, w) that come out of a module within the block, in their order."""
    maps: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: maps.extend(_maps_in(output)))
    try:
        yield maps
    finally:
        handle.remove()


def _maps_in(output: Any) -> Iterator[Tensor]:
    """In nested lists, tuples and dictionaries; masks are none."""
    if isinstance(output, Tensor):
        if output.ndim == 4 and output.is_floating_point():
            yield output
        return
    for part in output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ():
        yield from _maps_in(part)
