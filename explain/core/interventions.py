"""Parts of a model's attention switched off, or changed, while a block runs.

    with intervene(model, Mask("decoder.*.cross", heads=(0, 1))):
        outputs = model(images)

An attention's heads weigh samples of their values; a mask changes those weights (or locations) after the softmax,
without normalising them again, so that a head whose weights are zero gives zero, as if its columns of the output
projection were. What a block captures, and its gradients, are of the changed model.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...models.attention import DeformableCall, MSDeformAttn
from .calls import DenseCall, dense_answer, read_call
from .masks import Mask, Mode
from .sites import Site, find_sites


def check_mask(site: Site, mask: Mask) -> None:
    """Raises ValueError where a mask names what a site has not."""
    for what, numbers, count in (
        ("head", mask.heads, site.heads),
        ("level", mask.levels, site.levels),
        ("point", mask.points, site.points),
    ):
        if numbers is None:
            continue
        if what != "head" and not site.deformable:
            raise ValueError(f"mask {mask}: {site.name} attends to every key, it has no {what}s")
        wrong = [number for number in numbers if not 0 <= number < count]
        if wrong:
            raise ValueError(f"mask {mask}: expected a {what} from 0 to {count - 1} of {site.name}, got {wrong[0]}")
    if mask.mode == "frozen" and not site.deformable:
        raise ValueError(f"mask {mask}: {site.name} attends to every key, it has no locations to freeze")
    if mask.mode == "mean" and (mask.levels is not None or mask.points is not None or mask.queries is not None):
        raise ValueError(f"mask {mask}: a mean replaces the output of whole heads, of every query; name heads alone")


@dataclass(frozen=True, eq=False)
class Inside:
    """What a module computed on the way to its output, part of the model's graph."""

    call: DeformableCall | DenseCall
    weights: Tensor  # (B, Q, H, L, P), or dense (B, H, Q, S)
    locations: Tensor | None  # (B, Q, H, L, P, 2)
    out: Tensor  # (B, Q, C), the heads' outputs before the output projection


Listener = Callable[[Inside], None]


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
        return query[:, None, None, None] & head[:, None, None] & level[:, None] & point

    def order(self, queries: int, device: torch.device) -> Tensor:
        """Whose weights and locations a query has when shuffled: (Q,)."""
        rows = torch.arange(queries) if self.mask.queries is None else torch.tensor(self.mask.queries)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.mask.seed))]
        order = torch.arange(queries)
        # each the next one's, in a circle: of two or more none keeps its own
        order[rows] = rows.roll(1)
        return order.to(device)

    def sampled(self, call: DeformableCall, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, H, L, P, 2) and weights (B, Q, H, L, P) as changed."""
        selected = self.selected(weights.shape[1], weights.device)
        if self.mask.mode in ("zero", "mean"):
            return locations, weights.masked_fill(selected, 0)
        if self.mask.mode == "uniform":
            share = (weights * selected).sum((-1, -2), keepdim=True) / selected.sum((-1, -2), keepdim=True).clamp(min=1)
            return locations, torch.where(selected, share, weights)
        if self.mask.mode == "shuffled":
            order = self.order(weights.shape[1], weights.device)
            return (
                torch.where(selected[..., None], locations[:, order], locations),
                torch.where(selected, weights[:, order], weights),
            )
        # of a query of zeros, the linear layer gives its bias
        plain, _ = replace(call, query=torch.zeros_like(call.query)).sample()
        return torch.where(selected[..., None], plain, locations), weights

    def weighed(self, call: DenseCall, weights: Tensor) -> Tensor:
        """Probabilities (B, H, Q, S) as changed."""
        selected = self.selected(weights.shape[2], weights.device)
        if self.mask.mode in ("zero", "mean"):
            return weights.masked_fill(selected, 0)
        if self.mask.mode == "uniform":
            allowed = call.allowed.to(weights.dtype).expand(len(weights), -1, -1, -1)
            return torch.where(selected, allowed / allowed.sum(-1, keepdim=True), weights)
        return torch.where(selected, weights[:, :, self.order(weights.shape[2], weights.device)], weights)

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


# what acts on a module now, in the order in which it came, and who is told of what it computes
_ACTIVE: WeakKeyDictionary[nn.Module, tuple[Edit, ...]] = WeakKeyDictionary()
_LISTENERS: WeakKeyDictionary[nn.Module, tuple[Listener, ...]] = WeakKeyDictionary()


def active(module: nn.Module) -> tuple[Edit, ...]:
    """The edits that act on a module at this moment."""
    return _ACTIVE.get(module, ())


def edited_sample(call: DeformableCall, edits: tuple[Edit, ...]) -> tuple[Tensor, Tensor]:
    """Locations (B, Q, H, L, P, 2) and weights (B, Q, H, L, P) of a call under edits."""
    locations, weights = call.sample()
    for edit in edits:
        locations, weights = edit.sampled(call, locations, weights)
    return locations, weights


def edited_weights(call: DenseCall, edits: tuple[Edit, ...]) -> Tensor:
    """Probabilities (B, H, Q, S) of a call under edits."""
    weights = call.weights()
    for edit in edits:
        weights = edit.weighed(call, weights)
    return weights


def _edited_attend(call: DeformableCall) -> Tensor:
    """The `editor` of deformable attention while edits act or listeners wait; runs on the module's own backend."""
    edits, listeners = active(call.module), _LISTENERS.get(call.module, ())
    locations, weights = edited_sample(call, edits)
    if listeners:
        locations, weights = _derivable(locations), _derivable(weights)
    return _told_and_edited(Inside(call, weights, locations, call.attend(locations, weights)), edits, listeners)


def _edited_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stands in the place of dense attention's ``forward``, which computes all in one, likewise."""
    call, edits, listeners = read_call(module, args, kwargs), active(module), _LISTENERS.get(module, ())
    assert isinstance(call, DenseCall)
    weights = edited_weights(call, edits)
    if listeners:
        weights = _derivable(weights)
    value = call.value()
    out = torch.einsum("bhqs,bshd->bqhd", weights.to(value.dtype), value).flatten(2)
    return dense_answer(call, kwargs, _told_and_edited(Inside(call, weights, None, out), edits, listeners), weights)


def _told_and_edited(inside: Inside, edits: tuple[Edit, ...], listeners: tuple[Listener, ...]) -> Tensor:
    """Tells the listeners; returns the output as the edits change it."""
    for listener in listeners:
        listener(inside)
    out = inside.out
    for edit in edits:
        out = edit.output(out)
    return out


def _derivable(x: Tensor) -> Tensor:
    """Of queries that nothing before them depends on, a leaf to derive by."""
    graph = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return x.detach().requires_grad_() if graph and not x.requires_grad else x


@contextmanager
def opened(
    edits: Sequence[tuple[nn.Module, Edit]] = (), listeners: Sequence[tuple[nn.Module, Listener]] = ()
) -> Iterator[None]:
    """Modules compute what a fused kernel hides one step after the other while the block runs."""
    modules = dict.fromkeys(module for module, _ in (*edits, *listeners))
    before = [(module, active(module), _LISTENERS.get(module, ())) for module in modules]
    # without gradients PyTorch's encoder layer calls a kernel for all of itself, and passes its attention by
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module, edit in edits:
            _ACTIVE[module] = (*active(module), edit)
        for module, listener in listeners:
            _LISTENERS[module] = (*_LISTENERS.get(module, ()), listener)
        for module in modules:
            if isinstance(module, MSDeformAttn):
                module.editor = _edited_attend
            else:
                module.forward = functools.partial(_edited_forward, module)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, edits_before, listeners_before in before:
            _ACTIVE[module], _LISTENERS[module] = edits_before, listeners_before
            if not edits_before and not listeners_before:
                for name in ("editor", "forward"):
                    module.__dict__.pop(name, None)


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
    with opened([(edit.site.module, edit) for edit in edits]):
        yield


@contextmanager
def mean_outputs(model: nn.Module, pattern: str = "*") -> Iterator[dict[str, Tensor]]:
    """Means of the heads' outputs (H, D), before the output projection, over all that the model sees in the block.

    The dictionary, by site, is filled when the block ends; padded pixels of an encoder count as any other.
    """
    means: dict[str, Tensor] = {}
    sums: dict[str, list[Any]] = {}

    def add(site: Site, inside: Inside) -> None:
        total = sums.setdefault(site.name, [0.0, 0])
        total[0] = total[0] + inside.out.detach().double().flatten(0, 1).sum(0)
        total[1] += inside.out.shape[:2].numel()

    chosen = find_sites(model, pattern)
    with opened(listeners=[(site.module, functools.partial(add, site)) for site in chosen]):
        yield means
    for site in chosen:
        if site.name in sums:
            total, count = sums[site.name]
            means[site.name] = (total / count).unflatten(-1, (site.heads, -1))
