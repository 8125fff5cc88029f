"""Names for the attentions of a detector: ``encoder.0.self``, ``decoder.5.self``, ``decoder.5.cross``."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ...common.text import suggest
from ...models.attention import MSDeformAttn

_NAMED = re.compile(r"(?:^|\.)(encoder|decoder)\.layers\.(\d+)\.(self_attn|cross_attn|multihead_attn)$")
_KINDS = {"self_attn": "self", "cross_attn": "cross", "multihead_attn": "cross"}


@dataclass(frozen=True)
class Site:
    """One attention of a model."""

    name: str
    module: MSDeformAttn | nn.MultiheadAttention
    heads: int
    levels: int
    """Of deformable attention; 1 for attention to every key."""
    points: int
    """Of one head on one level; 0 for attention to every key."""
    stack: str = ""
    """``encoder`` or ``decoder``; empty for a module that stands in neither."""
    layer: int = -1
    """Counted from 0; -1 for a module that stands in neither stack."""
    kind: str = ""
    """``self`` or ``cross``; empty for a module that stands in neither stack."""

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

    Those of an encoder or decoder with official names are called by stack, layer and kind; others, in models of other
    people, by their place in the model. A module that stands in several places is listed once.
    """
    found: dict[str, Site] = {}
    for path, module in model.named_modules():
        if isinstance(module, MSDeformAttn):
            counts = (module.n_heads, module.n_levels, module.n_points)
        elif isinstance(module, nn.MultiheadAttention):
            counts = (module.num_heads, 1, 0)
        else:
            continue
        name, place = path, tuple[Any, ...]()
        if match := _NAMED.search(path):
            place = (match[1], int(match[2]), _KINDS[match[3]])
            name = ".".join(map(str, place))
        found[name] = Site(name, module, *counts, *place)
    # in the order in which they run: by the official names a decoder layer's cross-attention is registered first
    order = ["", "encoder", "decoder"]
    ranked = sorted(found.values(), key=lambda site: (order.index(site.stack), site.layer, site.kind != "self"))
    return {site.name: site for site in ranked}


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
