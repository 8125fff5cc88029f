"""Attentions opened: what a fused kernel hides is computed step by step, so that it can be seen and changed.

Each kind of attention is opened in its own way: ours by its editor, PyTorch's by its ``forward``, and those of
transformers by what their modules call, the operator (`integrations.places`) or the function that a configuration
names. What happens inside is the same for all: changes act on the weights, listeners are told.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...integrations.forms import Operator, OurOperator
from ...kernels.api import ms_deform_attn
from ...kernels.contract import SpatialShapes
from ...models.attention import DeformableCall, MSDeformAttn, Shapes, shapes_of
from ...models.layers.geometry import at_least_float32
from .attention import dense_values
from .sites import Site

_NAME = "msdeform_opened"
"""Of our function among transformers' attention functions."""


@dataclass(frozen=True, eq=False)
class Inside:
    """What a module computed on the way to its output, part of the model's graph."""

    weights: Tensor  # (B, Q, H, L, P), or dense (B, H, Q, S), at least float32
    value: Tensor  # (B, S, H, D)
    out: Tensor  # (B, Q, C), the heads' outputs before the output projection
    mask: Tensor | None  # (B, S), True where padded
    # of deformable attention
    locations: Tensor | None = None  # (B, Q, H, L, P, 2)
    reference: Tensor | None = None  # (B, Q, L, 2 or 4)
    shapes: Shapes | None = None


Listener = Callable[[Inside], None]


class Change(Protocol):
    """What is done to an attention."""

    def changed(
        self, weights: Tensor, locations: Tensor | None, call: DeformableCall | None
    ) -> tuple[Tensor, Tensor | None]:
        """Weights and, of deformable attention, locations, shaped as those of `Inside`; the call where it is ours."""

    def output(self, out: Tensor) -> Tensor:
        """The heads' outputs (B, Q, C), before the output projection."""


class Opened:
    """An attention computed step by step: what changes do, in their order, and listeners are told of."""

    def __init__(self, site: Site, acts: tuple[Change | Listener, ...]) -> None:
        self.site, self.acts = site, acts

    @classmethod
    def at(cls, site: Site) -> "Opened | None":
        """What is there already."""
        raise NotImplementedError

    def put(self) -> Callable[[], object]:
        """Puts this into the site's module; returns what puts back what was there before."""
        raise NotImplementedError

    def edited(
        self, weights: Tensor, locations: Tensor | None, call: DeformableCall | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Weights and locations as they are changed."""
        for act in self.acts:
            if not callable(act):
                weights, locations = act.changed(weights, locations, call)
        if any(map(callable, self.acts)) and torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            # of queries that nothing before them depends on, leaves to derive by
            weights = weights if weights.requires_grad else weights.detach().requires_grad_()
            if locations is not None and not locations.requires_grad:
                locations = locations.detach().requires_grad_()
        return weights, locations

    def told(self, inside: Inside) -> Tensor:
        """Tells the listeners; returns the output as it is changed."""
        out = inside.out
        for act in self.acts:
            if callable(act):
                act(inside)
            else:
                out = act.output(out)
        return out


def replace(module: nn.Module, name: str, value: Any) -> Callable[[], object]:
    """Sets an attribute of the instance; returns what puts back what was there before."""
    before = vars(module).get(name)
    setattr(module, name, value)
    return partial(vars(module).pop, name) if before is None else partial(vars(module).update, {name: before})


def _sizes(shapes: SpatialShapes) -> Shapes:
    return shapes_of(shapes if isinstance(shapes, Tensor) else tuple((int(h), int(w)) for h, w in shapes))


def _owner(method: Any) -> Opened | None:
    """Whose method it is, if an attention's that is open."""
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, Opened) else None


class _OurDeformable(Opened):
    """By `MSDeformAttn.editor`."""

    @classmethod
    def at(cls, site: Site) -> Opened | None:
        return _owner(vars(site.module).get("editor"))

    def put(self) -> Callable[[], object]:
        return replace(self.site.module, "editor", self.editor)

    def editor(self, call: DeformableCall) -> Tensor:
        """Runs on the module's own backend."""
        locations, weights = call.sample()
        weights, changed = self.edited(weights, locations, call)
        assert changed is not None
        value = call.value()
        out = ms_deform_attn(value, call.shapes, changed, weights, backend=call.module.backend)
        return self.told(Inside(weights, value, out, call.mask, changed, call.reference, call.shapes))


class _PyTorchDense(Opened):
    """By the ``forward`` of `nn.MultiheadAttention`."""

    @classmethod
    def at(cls, site: Site) -> Opened | None:
        return _owner(vars(site.module).get("forward"))

    def put(self) -> Callable[[], object]:
        return replace(self.site.module, "forward", self.forward)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Returns what the module's own does."""
        module: Any = self.site.module
        plain = type(module).forward
        bound = inspect.signature(plain).bind(module, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        every = given | {"need_weights": True, "average_attn_weights": False}
        _, plain_weights = plain(**every)
        weights, _ = self.edited(at_least_float32(plain_weights), None)
        inputs = given["value"] if module.batch_first else given["value"].transpose(0, 1)
        value, mask = dense_values(module, inputs), given["key_padding_mask"]
        if mask is not None and mask.dtype != torch.bool:  # added to the scores
            mask = mask.isneginf()
        out = torch.einsum("bhqs,bshd->bqhd", weights.to(value.dtype), value).flatten(2)
        out = module.out_proj(self.told(Inside(weights, value, out, mask)))
        wanted = weights.mean(1) if given["average_attn_weights"] else weights
        return out if module.batch_first else out.transpose(0, 1), wanted if given["need_weights"] else None


class _TheirDeformable(Opened):
    """By the operator that a module of transformers calls."""

    def __init__(self, site: Site, acts: tuple[Change | Listener, ...]) -> None:
        super().__init__(site, acts)
        assert site.place is not None
        self.place, self.before = site.place, site.place.current
        self.given: dict[str, Any] = {}
        """Arguments of the module's ``forward``, of which the operator is not told."""

    @classmethod
    def at(cls, site: Site) -> Opened | None:
        current = site.place and site.place.current
        return current if isinstance(current, Opened) else None

    def put(self) -> Callable[[], object]:
        hook = self.site.module.register_forward_pre_hook(self._note, with_kwargs=True)
        self.place.put(self)

        def undo() -> None:
            hook.remove()
            if self.before is None:
                self.place.restore()
            else:
                self.place.put(self.before)

        return undo

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        self.given = {name: given.get(name) for name in ("reference_points", "attention_mask")}

    def __call__(self, value: Tensor, shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
        weights, changed = self.edited(at_least_float32(weights), at_least_float32(locations))
        assert changed is not None
        out = self._operator(value, shapes, changed, weights)
        # RT-DETR and its kin have one reference for all levels
        reference = self.given["reference_points"].expand(-1, -1, self.site.levels, -1)
        valid = self.given["attention_mask"]
        mask = None if valid is None else ~valid.bool()
        return self.told(Inside(weights, value, out, mask, changed, reference, _sizes(shapes)))

    @property
    def _operator(self) -> Operator:
        """What computed before it was opened; of a model that is not accelerated, ours all the same."""
        if isinstance(self.before, _TheirDeformable):
            return self.before._operator
        return self.before or OurOperator("auto")


class _TheirDense(Opened):
    """By the attention function that a configuration names: one for this module alone names ours."""

    @classmethod
    def at(cls, site: Site) -> Opened | None:
        config = vars(site.module).get("config")
        return config.opened if isinstance(config, _Config) else None

    def put(self) -> Callable[[], object]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
        return replace(self.site.module, "config", _Config(self.site.module.config, self))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """The output (B, Q, H, D) and weights (B, H, Q, S) of (B, H, Q or S, D); a mask is added, or True stays."""
        scores = at_least_float32(query @ key.transpose(2, 3)) * scaling
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights, _ = self.edited(scores.softmax(-1), None)
        values = value.transpose(1, 2)
        out = torch.einsum("bhqs,bshd->bqhd", weights.to(value.dtype), values)
        return self.told(Inside(weights, values, out.flatten(2), None)).view(out.shape), weights


class _Config:
    """A module's configuration, but for the attention function that it names."""

    _attn_implementation = _NAME

    def __init__(self, config: Any, opened: _TheirDense) -> None:
        self.config, self.opened = config, opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """One of transformers' attention functions."""
    return module.config.opened.attend(query, key, value, attention_mask, scaling or query.shape[-1] ** -0.5)


def _way(site: Site) -> type[Opened]:
    """How an attention is opened."""
    if isinstance(site.module, MSDeformAttn):
        return _OurDeformable
    if isinstance(site.module, nn.MultiheadAttention):
        return _PyTorchDense
    return _TheirDense if site.place is None else _TheirDeformable


@contextmanager
def opened(acts: Iterable[tuple[Site, Change | Listener]]) -> Iterator[None]:
    """Attentions are opened while the block runs, for what changes them and listens to them; blocks nest."""
    with ExitStack() as stack:
        # without gradients PyTorch's encoder layer calls a kernel for all of itself, and passes its attention by
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for site, act in acts:
            way = _way(site)
            outer = way.at(site)
            stack.callback(way(site, (*(outer.acts if outer else ()), act)).put())
        yield
