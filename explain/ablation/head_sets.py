"""Sets of attention heads, as interventions, and the orders in which to switch them off."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from torch import nn

from ..core.masks import Mask, Mode
from ..core.sites import find_sites

Head = tuple[str, int]
"""A site's name and a head's number."""


def heads_of(model: nn.Module, pattern: str) -> list[Head]:
    """Every head of the sites that match, in the order of the layers."""
    return [(site.name, head) for site in find_sites(model, pattern) for head in range(site.heads)]


def switched_off(heads: Sequence[Head], mode: Mode = "zero", seed: int = 0) -> tuple[Mask, ...]:
    """The intervention on these heads: one mask a site."""
    sites = groupby(sorted(heads), key=lambda head: head[0])
    return tuple(Mask(site, heads=tuple(head for _, head in part), mode=mode, seed=seed) for site, part in sites)


def orders(
    importance: Mapping[str, Mapping[Head, float]], heads: Sequence[Head], count: int, seed: int = 0
) -> dict[str, list[Head]]:
    """Orders in which to switch heads off: by each importance the greatest first and the least first, and at random.

    Returns ``NAME``, ``NAME, reversed`` for each importance, and ``random 0`` to ``random count-1``.
    """
    found: dict[str, list[Head]] = {}
    for name, values in importance.items():
        greatest = sorted(heads, key=lambda head: -values[head])
        found |= {name: greatest, f"{name}, reversed": greatest[::-1]}
    draw = np.random.default_rng(seed)
    for number in range(count):
        found[f"random {number}"] = [heads[place] for place in draw.permutation(len(heads))]
    return found


def counts_of(heads: int, steps: int) -> list[int]:
    """How many heads are off at each of at most `steps` points of a curve beyond its first, from 0 to all."""
    return sorted({round(number) for number in np.linspace(0, heads, min(steps, heads) + 1).tolist()})
