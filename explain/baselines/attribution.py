"""Integrated gradients and occlusion, both by Captum, of the resized and normalised image.

What is taken away becomes ImageNet's mean colour, which is zero for the detector, as under the masks of D-RISE.
"""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...common.packages import optional_package
from ..core.interventions import intervene
from ..core.sites import makes_queries
from ..core.trace import AttentionTrace, QueryPrediction, frozen
from ..quality.measures import probabilities_and_boxes
from .black_box import ask, images_at_once, score_of

STEPS = 32
"""Images between the mean colour and the image, for integrated gradients."""
WINDOW = 8
"""The windows of occlusion are this part of the image's shorter side wide, and half of that apart."""


def captum_methods() -> Any:
    """Captum's `captum.attr`. Raises ImportError, naming the remedy, where it is not installed."""
    return optional_package("captum.attr", "method: integrated-gradients and occlusion need", "'msdeform[explain]'")


def check_installed(methods: Iterable[str]) -> None:
    """Raises ImportError where one of these methods needs Captum, and it is missing."""
    if {"integrated-gradients", "occlusion"}.intersection(methods):
        captum_methods()


def integrated_gradients(
    trace: AttentionTrace, prediction: QueryPrediction, target: str = "class", *, steps: int = STEPS
) -> tuple[Tensor, float]:
    """Integrated gradients (Sundararajan et al. 2017) from the mean colour to the image, by colour and pixel.

    Args:
        target: of `TARGETS`. Where the detector makes its queries of the image a query's number means another place in
            every image on the way, so there the class stands for the detection's score, `black_box.score_of`.
        steps: of Gauss-Legendre quadrature.

    Returns:
        Attributions (3, h, w) of the resized image, which sum up to what the target gains on the way, as far as `steps`
        go; and the rest, what their sum is above the gain. More steps do not close it where the target jumps, as when
        other pixels become queries, or where the detector passes no gradient on, as by the references of a refining
        decoder: of two detections of DEIMv2 Femto it was 13% and 31% of the gain with 32 steps, 35% with 128.

    Raises:
        ImportError: captum is missing.
        ValueError: a target that is none, or a coordinate of a detector that makes its queries of the image.
    """
    attr = captum_methods()
    model = trace.model
    of_image = makes_queries(model)
    if of_image and target != "class":
        raise ValueError(
            f"target: {model.kind} makes its queries of the image, so that a query is another one in each image that "
            f"integrated-gradients looks at; expected class, got {target!r}"
        )

    def y(pixels: Tensor) -> Tensor:
        outputs = model(list(pixels))
        if of_image:
            return score_of(trace, prediction, *probabilities_and_boxes(model, outputs))
        last = {name: outputs[name] for name in ("pred_logits", "pred_boxes")}
        each = [{name: values[[image]] for name, values in last.items()} for image in range(len(pixels))]
        return torch.stack([trace.y(prediction, target, one) for one in each])

    pixels = trace.pixels.detach()[None]
    with frozen(model), torch.enable_grad(), intervene(model, *trace.masks):
        found, rest = attr.IntegratedGradients(y).attribute(
            pixels.requires_grad_(),
            baselines=torch.zeros_like(pixels),
            n_steps=steps,
            internal_batch_size=min(4, images_at_once(trace)),
            return_convergence_delta=True,
        )
    return found[0].detach(), float(rest)


# windows are the same for all detections of an image, and so are the answers; forgotten with the trace
_ANSWERS: WeakKeyDictionary[AttentionTrace, list[tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def occlusion(trace: AttentionTrace, prediction: QueryPrediction) -> Tensor:
    """Occlusion (Zeiler & Fergus 2014): what the detection's score loses when a window is covered, (3, h, w).

    At each pixel of the resized image the mean over the windows that cover it, the same for the three colours; negative
    where the score rises. Raises ImportError where captum is missing.
    """
    attr, answers = captum_methods(), _ANSWERS.setdefault(trace, [])
    side = max(2, round(min(trace.pixels.shape[1:]) / WINDOW))
    calls = iter(range(2**31))

    def score(pixels: Tensor) -> Tensor:
        # captum shows the same images in the same order for every detection
        if (call := next(calls)) == len(answers):
            probabilities, boxes = ask(trace, pixels)
            answers.append((probabilities.cpu(), boxes.cpu()))
        return score_of(trace, prediction, *answers[call]).to(pixels)

    return attr.Occlusion(score).attribute(
        trace.pixels.detach()[None],
        sliding_window_shapes=(3, side, side),
        strides=(3, side // 2, side // 2),
        baselines=0,
        perturbations_per_eval=images_at_once(trace),
    )[0]
