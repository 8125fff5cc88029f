"""Names for the attentions of a detector: ``encoder.0.self``, ``decoder.5.self``, ``decoder.5.cross``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ...common.text import suggest
from ...integrations.places import Place, find_places
from ...models.attention import MSDeformAttn

_KINDS = {"self_attn": "self", "cross_attn": "cross", "multihead_attn": "cross", "encoder_attn": "cross"}
_NAMED = re.compile(rf"(?:^|\.)(encoder|decoder)\.layers\.(\d+)\.({'|'.join(_KINDS)})$")
# what an attention of transformers calls may be a layer of its own within it
_INNER = re.compile(r"\.attn$")


@dataclass(frozen=True)
class Site:
    """One attention of a model."""

    name: str
    module: nn.Module
    """`MSDeformAttn`, `nn.MultiheadAttention`, or an attention of transformers."""
    heads: int
    levels: int
    """Of deformable attention; 1 for attention to every key."""
    points: int
    """Of one head on one level, at most; 0 for attention to every key."""
    stack: str = ""
    """``encoder`` or ``decoder``; empty for a module that stands in neither."""
    layer: int = -1
    """Counted from 0; -1 for a module that stands in neither stack."""
    kind: str = ""
    """``self`` or ``cross``; empty for a module that stands in neither stack."""
    counts: tuple[int, ...] = ()
    """Points of each level where they differ (D-FINE); records then have `points` on each, the others of weight 0."""
    place: Place | None = field(default=None, compare=False)
    """Of deformable attention of transformers: where it calls the operator."""

    def sampled(self, device: torch.device) -> Tensor:
        """Which points of each level there are: bool (L, P)."""
        counts = torch.tensor(self.counts or (self.points,) * self.levels, device=device)
        return torch.arange(self.points, device=device) < counts[:, None]

    @property
    def deformable(self) -> bool:
        """Does it sample points, or weigh every key?"""
        return self.points > 0


def in_range(number: int, count: int, what: str, where: str = "") -> int:
    """The number. Raises ValueError for one that is not from 0 to below `count`."""
    if not 0 <= number < count:
        raise ValueError(f"{what}: expected from 0 to {count - 1}{where}, got {number}")
    return number


def sites(model: nn.Module) -> dict[str, Site]:
    """Every attention of a model by its name, in the order of the layers, self-attention before cross-attention.

    Those of an encoder or decoder with official names, or transformers', are called by stack, layer and kind; others,
    in models of other people, by their place in the model. A module that stands in several places is listed once.
    """
    found: dict[str, Site] = {}
    for path, module in model.named_modules():
        if isinstance(module, MSDeformAttn):
            counts = (module.n_heads, module.n_levels, module.n_points)
        elif isinstance(module, nn.MultiheadAttention):
            counts = (module.num_heads, 1, 0)
        else:
            continue
        where = _where(path)
        name = ".".join(map(str, where)) if where else path
        found[name] = Site(name, module, *counts, *(where or ("", -1, "")))
    found |= {site.name: site for site in _of_transformers(model)}
    # in the order in which they run: by the official names a decoder layer's cross-attention is registered first
    order = ["", "encoder", "decoder"]
    ranked = sorted(found.values(), key=lambda site: (order.index(site.stack), site.layer, site.kind != "self"))
    return {site.name: site for site in ranked}


def _where(path: str) -> tuple[str, int, str] | None:
    """Stack, layer and kind of a module."""
    match = _NAMED.search(path)
    return (match[1], int(match[2]), _KINDS[match[3]]) if match else None


def _of_transformers(model: nn.Module) -> Iterator[Site]:
    """Deformable attentions of a detector of transformers, and its decoder's self-attentions to every key."""
    if not any(type(module).__module__.startswith("transformers.") for module in model.modules()):
        return  # a look at every module's code takes longer
    stacks = set()
    for place in find_places(model):
        path = _INNER.sub("", place.path)
        where, module = _where(path), model.get_submodule(path)
        sizes: list[Any] = [getattr(module, name, None) for name in ("n_heads", "n_levels", "n_points")]
        if place.problem is not None or not where or None in sizes:
            continue
        stacks.add(where[0])
        heads, levels, points = sizes
        each = tuple(points) if isinstance(points, list | tuple) else (points,) * levels
        counts = each if len(set(each)) > 1 else ()
        yield Site(".".join(map(str, where)), module, heads, levels, max(each), *where, counts=counts, place=place)
    for path, module in model.named_modules():
        where = _where(path)
        if where and where[0] in stacks and all(hasattr(module, name) for name in ("q_proj", "head_dim", "config")):
            heads = module.q_proj.out_features // module.head_dim
            yield Site(".".join(map(str, where)), module, heads, 1, 0, *where)


def find_sites(model: nn.Module, pattern: str) -> list[Site]:
    """The sites whose names match a shell pattern, such as ``decoder.*.cross``, or one of several, between commas.

    Raises ValueError, listing the sites, for a pattern that matches none.
    """
    known = sites(model)
    if not known:
        raise ValueError(
            "model: expected a detector of msdeform.create_model or msdeform.load_model, got a "
            f"{type(model).__name__}, whose attention cannot be recorded; msdeform.load_model(FOLDER) makes one of "
            "transformers' weights"
        )
    chosen: dict[str, Site] = {}
    for one in pattern.split(","):
        matching = {name: site for name, site in known.items() if fnmatchcase(name, one.strip())}
        if not matching:
            sentence = f"site {one.strip()!r} matches nothing; this model has {', '.join(known)}"
            raise ValueError(suggest(sentence, one.strip(), known))
        chosen |= matching
    return [site for name, site in known.items() if name in chosen]


def makes_queries(model: nn.Module) -> bool:
    """Are the queries made of pixels of the image, or the same for all images?"""
    # the second is the name of LW-DETR and its kin for what chooses their boxes
    return any(getattr(one, "two_stage", False) or hasattr(one, "enc_out_class_embed") for one in model.modules())
