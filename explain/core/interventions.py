"""Parts of a model's attention switched off, or changed, while a block runs.

    with intervene(model, Mask("decoder.*.cross", heads=(0, 1))):
        outputs = model(images)

An attention's heads weigh samples of their values; a mask changes those weights (or locations) after the softmax,
without normalising them again, so that a head whose weights are zero gives zero, as if its columns of the output
projection were. What a block captures, and its gradients, are of the changed model.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from ...models.attention import DeformableCall, MSDeformAttn
from .masks import Mask, Mode
from .opening import Inside, opened
from .sites import Site, find_sites


def check_mask(site: Site, mask: Mask) -> None:
    """Raises ValueError where a mask names what a site has not."""
    for what in ("head", "level", "point"):
        numbers, count = getattr(mask, f"{what}s"), getattr(site, f"{what}s")
        if numbers is not None and what != "head" and not site.deformable:
            raise ValueError(f"mask {mask}: {site.name} attends to every key, it has no {what}s")
        for number in numbers or ():
            if not 0 <= number < count:
                raise ValueError(f"mask {mask}: expected a {what} from 0 to {count - 1} of {site.name}, got {number}")
    if mask.mode == "frozen" and not site.deformable:
        raise ValueError(f"mask {mask}: {site.name} attends to every key, it has no locations to freeze")
    if mask.mode == "frozen" and not isinstance(site.module, MSDeformAttn):
        raise ValueError(f"mask {mask}: {site.name} is a {type(site.module).__name__}; expected our own to freeze")
    if mask.mode == "mean" and (mask.levels is not None or mask.points is not None or mask.queries is not None):
        raise ValueError(f"mask {mask}: a mean replaces the output of whole heads, of every query; name heads alone")


@dataclass(frozen=True, eq=False)
class Edit:
    """A mask at one site."""

    mask: Mask
    site: Site
    mean: Tensor | None = None  # (H, D), for the mode of that name

    def selected(self, queries: int, device: torch.device) -> Tensor:
        """What is changed: bool (Q, H, L, P) for deformable attention, (H, Q, 1) for dense."""
        mask, site = self.mask, self.site
        if mask.queries is not None and max(mask.queries) >= queries:
            raise ValueError(
                f"mask {mask}: expected a query from 0 to {queries - 1} of {site.name}, got {max(mask.queries)}"
            )
        query, head = _chosen(mask.queries, queries, device), _chosen(mask.heads, site.heads, device)
        if not site.deformable:
            return head[:, None, None] & query[:, None]
        level, point = _chosen(mask.levels, site.levels, device), _chosen(mask.points, site.points, device)
        return query[:, None, None, None] & head[:, None, None] & level[:, None] & point & site.sampled(device)

    def order(self, queries: int, device: torch.device) -> Tensor:
        """Whose weights and locations a query has when shuffled: (Q,)."""
        rows = torch.arange(queries) if self.mask.queries is None else torch.tensor(self.mask.queries)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.mask.seed))]
        order = torch.arange(queries)
        # each the next one's, in a circle: of two or more none keeps its own
        order[rows] = rows.roll(1)
        return order.to(device)

    def changed(
        self, weights: Tensor, locations: Tensor | None, call: DeformableCall | None
    ) -> tuple[Tensor, Tensor | None]:
        """Weights and, of deformable attention, locations, shaped as those of `Inside`, as the mask changes them."""
        axis = 2 if locations is None else 1
        queries = weights.shape[axis]
        selected = self.selected(queries, weights.device)
        if self.mask.mode in ("zero", "mean"):
            return weights.masked_fill(selected, 0), locations
        if self.mask.mode == "uniform":
            # of dense attention, keys without weight are padding
            among, axes = (selected & (weights > 0), (-1,)) if locations is None else (selected, (-1, -2))
            share = (weights * among).sum(axes, keepdim=True) / among.sum(axes, keepdim=True).clamp(min=1)
            return torch.where(among, share, weights), locations
        if self.mask.mode == "shuffled":
            order = self.order(queries, weights.device)
            if locations is not None:
                locations = torch.where(selected[..., None], locations[:, order], locations)
            return torch.where(selected, weights.index_select(axis, order), weights), locations
        assert call is not None
        assert locations is not None
        # of a query of zeros, the linear layer gives its bias
        plain, _ = replace(call, query=torch.zeros_like(call.query)).sample()
        return weights, torch.where(selected[..., None], plain, locations)

    def output(self, out: Tensor) -> Tensor:
        """The heads' outputs (B, Q, C), before the output projection, as changed."""
        if self.mean is None:
            return out
        heads = out.unflatten(-1, (self.site.heads, -1))
        chosen = _chosen(self.mask.heads, self.site.heads, out.device)
        return torch.where(chosen[:, None], self.mean.to(out), heads).flatten(2)


def _chosen(numbers: tuple[int, ...] | None, count: int, device: torch.device) -> Tensor:
    chosen = torch.zeros(count, dtype=torch.bool, device=device)
    chosen[slice(None) if numbers is None else list(numbers)] = True
    return chosen


@contextmanager
def intervene(model: nn.Module, *masks: Mask, means: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Every mask acts on the model while the block runs; blocks nest, and what came first acts first.

    Args:
        model: its attentions keep their weights and backends.
        masks: none leaves the model as it is.
        means: of `mean_outputs`, needed by masks of mode ``mean``.

    Raises ValueError, before the block runs, for a site that matches nothing or a head, level or point out of range,
    and inside for a query out of range.
    """
    edits: list[Edit] = []
    for mask in masks:
        if mask.mode not in get_args(Mode):
            raise ValueError(f"mask mode: expected {', '.join(get_args(Mode))}, got {mask.mode!r}")
        for site in find_sites(model, mask.sites):
            check_mask(site, mask)
            if mask.mode == "mean" and site.name not in (means or {}):
                raise ValueError(f"mask {mask}: the mean output of {site.name} is not in means (mean_outputs makes it)")
            edits.append(Edit(mask, site, means[site.name] if means and mask.mode == "mean" else None))
    with opened((edit.site, edit) for edit in edits):
        yield


@contextmanager
def mean_outputs(model: nn.Module, pattern: str = "*") -> Iterator[dict[str, Tensor]]:
    """Means of the heads' outputs (H, D), before the output projection, over all that the model sees in the block.

    The dictionary, by site, is filled when the block ends; padded pixels of an encoder count as any other.
    """
    means: dict[str, Tensor] = {}
    totals, counts = dict[str, Tensor](), Counter[str]()

    def add(site: Site, inside: Inside) -> None:
        totals[site.name] = totals.get(site.name, 0) + inside.out.detach().double().flatten(0, 1).sum(0)
        counts[site.name] += inside.out.shape[:2].numel()

    chosen = find_sites(model, pattern)
    with opened((site, functools.partial(add, site)) for site in chosen):
        yield means
    heads = {site.name: site.heads for site in chosen}
    means |= {name: (total / counts[name]).unflatten(-1, (heads[name], -1)) for name, total in totals.items()}
