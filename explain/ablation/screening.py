"""Which heads matter, to first order: how much a loss would change if a head's weights shrank, without taking it away.

With a mask m of 1 on a head's attention weights, dy/dm at 1 is the sum over its weights of weight * dy/dweight, for
deformable attention over the sampled points and for dense attention over the keys: one backward pass for all heads at
once. Its mean absolute value over images is the importance of Michel et al. 2019, equation 3.

Where a model detaches, the slope does not see further: what a head does to the references of later layers, in a decoder
that refines boxes, and to the choice of queries in two stages.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.families.detector import Detector
from ...models.layers.geometry import at_least_float32
from ...models.losses.criterion import SetCriterion
from ..core.capture import capture
from ..core.interventions import intervene
from ..core.masks import Mask
from ..core.sites import find_sites
from ..core.trace import frozen
from ..quality.measures import probabilities_and_boxes


def head_gradients(
    model: Detector,
    pattern: str,
    images: list[Tensor],
    y: Callable[[dict[str, Tensor]], Tensor],
    masks: Sequence[Mask] = (),
    means: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """dy/dm (B, H), for every image and head of the sites that match.

    `y` makes one number of the model's outputs, ``pred_logits`` and ``pred_boxes``, a sum over images; `masks` act
    meanwhile. A site that y does not depend on has zeros. The model stays as it was.
    """
    chosen = find_sites(model, pattern)
    with (
        frozen(model),
        torch.enable_grad(),
        intervene(model, *masks, means=means),
        capture(model, pattern, gradients=True) as tape,
    ):
        outputs = model(images)
        value = y({name: outputs[name] for name in ("pred_logits", "pred_boxes")})
        gradients = tape.gradients(value, locations=False, heads=False) if value.requires_grad else {}
    found = {}
    for site in chosen:
        if site.name not in gradients:
            found[site.name] = torch.zeros(len(images), site.heads, dtype=torch.float64)
            continue
        product = (gradients[site.name].record.weights * gradients[site.name].weights).double().cpu()
        # heads stand third in points' weights, second in probabilities
        head = 2 if site.deformable else 1
        found[site.name] = product.sum([axis for axis in range(1, product.dim()) if axis != head])
    return found


def loss_of(model: Detector, targets: Sequence[dict[str, Any]]) -> Callable[[dict[str, Tensor]], Tensor]:
    """The training loss at the last layer, boxes matched anew; of each image as if it were a batch, added up.

    A target has ``labels`` (N,), the model's, and ``boxes`` (N, 4) cxcywh, normalised.
    """
    criterion = SetCriterion(aux_layers=0, two_stage=False, focal=model.focal)

    def loss(outputs: dict[str, Tensor]) -> Tensor:
        terms = []
        for row, target in enumerate(targets):
            losses = criterion({name: value[row : row + 1] for name, value in outputs.items()}, [target])
            terms += [losses[name] * weight for name, weight in criterion.weight_dict.items()]
        return torch.stack(terms).sum()

    return loss


def logits_of(model: Detector, confidence: float) -> Callable[[dict[str, Tensor]], Tensor]:
    """The sum of the logits of what a model detects, each query's best class."""

    def total(outputs: dict[str, Tensor]) -> Tensor:
        best, label = probabilities_and_boxes(model, outputs)[0].max(-1)
        logits = at_least_float32(outputs["pred_logits"]).gather(-1, label[..., None])[..., 0]
        return logits[best >= confidence].sum()

    return total
