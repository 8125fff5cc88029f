"""What relevance adds up to at each attention, and what it misses.

With ``a`` an attention's weights and ``y`` the target, the sum of ``a dy/da`` over a site is the first-order estimate
of what the site adds to ``y``: by how much ``y`` falls when its weights become zero, exactly so where ``y`` is linear
in them. Relevance keeps the products' positive part and loses the negative one; the measured change says how much of
``y`` neither tells, because the network is not linear, or because the model detaches what the site changes (references
of later layers, the choice of queries).

Completeness is the axiom of Sundararajan et al. 2017: contributions add up to what they explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .capture import held_seeds, same_pixel
from .interventions import intervene
from .masks import Mask
from .sites import find_sites
from .trace import AttentionTrace, QueryPrediction, frozen

CROSS = "decoder.*.cross"


@dataclass(frozen=True)
class Contribution:
    """What a site, or several together, add to a target: a logit, or a coordinate of a box as a share of the image."""

    sites: str
    """A pattern of `find_sites`."""
    kept: float
    """The sum of the products a dy/da that are positive, over all queries and heads: what relevance keeps."""
    lost: float
    """The sum of those that are negative: what it loses."""
    change: float | None
    """By how much the target falls when the weights are zero; None where the query is then made of another pixel."""

    @property
    def first_order(self) -> float:
        """The sum of all products: `change`, were the target linear in the weights."""
        return self.kept + self.lost

    @property
    def missed(self) -> float | None:
        """What of the change the first order does not tell."""
        return None if self.change is None else self.change - self.first_order


def completeness(
    trace: AttentionTrace, prediction: QueryPrediction, target: str = "class", patterns: Sequence[str] | None = None
) -> list[Contribution]:
    """Contributions of every attention, in the order of the layers, and of the decoder's cross-attentions together.

    Args:
        trace: with its masks, which act on every further pass as well.
        prediction: whose target.
        target: one of `trace.TARGETS`.
        patterns: what to measure instead, each a pattern of `find_sites`, whose sites are switched off together.

    Returns:
        One contribution a pattern; each costs a forward pass.

    Raises ValueError for a target or a pattern that is not there.
    """
    y = float(trace.y(prediction, target).detach())
    gradients = trace.gradients(prediction, target)
    found = []
    for pattern in [*trace.tape, CROSS] if patterns is None else patterns:
        kept = lost = 0.0
        for site in find_sites(trace.model, pattern):
            if site.name in gradients:
                products = (trace.tape[site.name].weights.detach() * gradients[site.name].weights).double()
                kept, lost = kept + float(products.clamp(min=0).sum()), lost + float(products.clamp(max=0).sum())
        without = _without(trace, pattern, prediction, target)
        found.append(Contribution(pattern, kept, lost, None if without is None else y - without))
    return found


@torch.no_grad()
def _without(trace: AttentionTrace, pattern: str, prediction: QueryPrediction, target: str) -> float | None:
    """The target with these sites' weights at zero; None where the query is then made of another pixel."""
    seeds = trace.tape.seeds
    with frozen(trace.model), held_seeds(trace.model, seeds), intervene(trace.model, *trace.masks, Mask(pattern)):
        outputs = trace.model([trace.pixels])
    same = same_pixel(trace.outputs, outputs, prediction.query)
    return float(trace.y(prediction, target, outputs)) if same else None
