"""What of a model's attention is changed, as it is typed: ``decoder.*.cross:h0-3``. Nothing here needs PyTorch."""

import itertools
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

Mode = Literal["zero", "mean", "uniform", "shuffled", "frozen"]
_FIELDS = {"h": "heads", "l": "levels", "p": "points", "q": "queries"}
_GRAMMAR = "SITE[:hN][:lN][:pN][:qN][:MODE] with N as 0, 0-3 or 0,2,5, such as decoder.*.cross:h0-3"


@dataclass(frozen=True)
class Mask:
    """What of a model's attention is changed, and how. None stands for all."""

    sites: str = "decoder.*.cross"
    """Patterns, as for `sites.find_sites`."""
    heads: tuple[int, ...] | None = None
    levels: tuple[int, ...] | None = None
    """Of deformable attention, finest first."""
    points: tuple[int, ...] | None = None
    """Of deformable attention, within a head and level."""
    queries: tuple[int, ...] | None = None
    """Rows: queries in the decoder, pixels of all levels in the encoder."""
    mode: Mode = "zero"
    """``zero``: weights are zero. ``mean``: the heads' outputs are their means over a data set (`mean_outputs`).
    ``uniform``: the weight is shared out equally among the points, or the keys. ``shuffled``: a query has the weights
    and locations of another of those named, by `seed`. ``frozen``: offsets are those that the layer has for every
    query alike, its bias."""
    seed: int = 0

    def __str__(self) -> str:
        parts = [(letter, getattr(self, name)) for letter, name in _FIELDS.items()]
        text = ":".join([self.sites, *[letter + _ranges(numbers) for letter, numbers in parts if numbers is not None]])
        return text if self.mode == "zero" else f"{text}:{self.mode}"


Masks = tuple[Mask, ...]
"""An intervention: masks that act together; none is the model as it is."""


def _ranges(numbers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) as ``0-2,5``."""
    # within a run, numbers and their places rise alike
    runs = itertools.groupby(enumerate(sorted(set(numbers))), lambda one: one[1] - one[0])
    spans = [[number for _, number in run] for _, run in runs]
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def parse_mask(text: str, mode: Mode = "zero", seed: int = 0) -> Mask:
    """A mask from ``decoder.*.cross:h0-3:l1:q17:uniform``; the parts after the site stand in any order.

    The mode given stands where the text names none; a text names no seed.

    Raises ValueError for anything else.
    """
    site, *parts = text.split(":")
    if not site:
        raise ValueError(f"mask {text!r}: expected {_GRAMMAR}")
    changes: dict[str, Any] = {"mode": mode, "seed": seed}
    for part in parts:
        if part in get_args(Mode):
            changes["mode"] = part
            continue
        match = re.fullmatch(r"([hlpq])(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)", part)
        if match is None:
            raise ValueError(f"mask {text!r}: {part!r} is none of its parts; expected {_GRAMMAR}")
        numbers: list[int] = []
        for span in match[2].split(","):
            low, _, high = span.partition("-")
            if high and int(high) < int(low):
                raise ValueError(f"mask {text!r}: expected a range that rises, got {span}")
            numbers += range(int(low), int(high or low) + 1)
        changes[_FIELDS[match[1]]] = tuple(dict.fromkeys(numbers))
    return Mask(site, **changes)


def parse_masks(text: str, mode: Mode = "zero", seed: int = 0) -> Masks:
    """Masks that act together, from those of `parse_mask` joined by ``+``. Raises ValueError for anything else."""
    return tuple(parse_mask(one.strip(), mode, seed) for one in text.split("+"))
