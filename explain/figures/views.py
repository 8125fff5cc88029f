"""Pictures of one detection by method, layer, head and level: one picture, or a grid where several are asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..core.maps import heat_map
from ..core.trace import AttentionTrace, QueryPrediction
from ..options import METHOD_TITLES, OF_A_TARGET, PIXEL_METHODS, View
from .drawing import Drawing, layer_in_words, target_in_words
from .heat import STRONGEST, draw_heat, draw_heat_grid, draw_strongest
from .points import draw_point_grid, draw_points

Job = tuple[str, Callable[[], Drawing]]
"""A picture that can be drawn, and a name for its files."""
Part = int | None
"""A head or level; None for all of them together."""
Cell = tuple[str | None, Part, Part]
"""Site, head and level of a map."""


@dataclass(frozen=True)
class Layers:
    """What ``--layer`` names: cross-attentions of the decoder, and self-attentions of the encoder."""

    decoder: list[str]
    encoder: list[str]
    every: bool
    """Was it all of them?"""


def find_layers(trace: AttentionTrace, text: str | None) -> Layers:
    """Raises ValueError, with the layers that there are, for what is none."""
    decoder, encoder = trace.cross_sites, [name for name, site in trace.sites.items() if site.stack == "encoder"]
    if text is None:
        return Layers(decoder[-1:], encoder[-1:], False)
    if text == "all":
        return Layers(decoder, encoder, True)
    stem = text.removesuffix(".self").removesuffix(".cross")
    found = [[name for name in names if _short(name) == stem] for names in (decoder, encoder)]
    if not any(found):
        known = ", ".join(map(_short, [*encoder, *decoder]))
        raise ValueError(f"layer: expected one of {known}, or all; got {text!r}")
    return Layers(found[0], found[1], False)


def _parts(text: str, together: str, count: int, what: str) -> list[Part]:
    """The heads or levels that are drawn each by itself. Raises ValueError for one that is not there."""
    if text == "all":
        return list(range(count))
    if text != together and (not text.isdecimal() or int(text) >= count):
        raise ValueError(f"{what}: expected from 0 to {count - 1}, {together} or all, got {text!r}")
    return [None if text == together else int(text)]


@dataclass(eq=False)
class Explained:
    """One detection in one view. Raises ValueError for a head or level out of range."""

    trace: AttentionTrace
    prediction: QueryPrediction
    view: View
    layers: Layers
    image: str
    """The image's name, for titles."""
    among: tuple[QueryPrediction, ...] = ()
    """All that is explained, where one backward pass is for all of it."""

    def __post_init__(self) -> None:
        site = self.trace.sites[(self.layers.decoder or self.layers.encoder)[0]]
        self._heads = _parts(self.view.head, "mean", site.heads, "head")
        self._levels = _parts(self.view.level, "together", len(self.trace.shapes), "level")

    def jobs(self, method: str) -> Iterator[Job]:
        """A method's pictures."""
        view = self.view
        file = method
        if method not in ("rollout", *PIXEL_METHODS) and (view.layer is not None or not method.startswith("relevance")):
            file += "-all" if self.layers.every else f"-{_short(self.layers.decoder[0])}"
        file += f"-head{view.head}" * (view.head != "mean") + f"-level{view.level}" * (view.level != "together")
        yield from self._points(file) if method == "points" else self._heats(method, file)

    def _points(self, file: str) -> Iterator[Job]:
        sites, view = self.layers.decoder, self.view
        draw = partial(draw_point_grid, self.trace, self.prediction, image=self.image)
        if not (self.layers.every or "all" in (view.head, view.level)):
            heads, levels = (None if one == [None] else one for one in (self._heads, self._levels))
            how: dict[str, Any] = {"heads": heads, "levels": levels, "slopes": view.target if view.slopes else None}
            how["image"] = self.image
            yield file + "-slopes" * view.slopes, partial(draw_points, self.trace, self.prediction, sites[0], **how)
        elif view.head == "all" and view.level == "all":
            for site in sites:
                yield self._by_site(file, site), partial(draw, [site], by="heads x levels")
        else:
            yield file, partial(draw, sites, by="layers x levels" if view.level == "all" else "layers x heads")

    def _heats(self, method: str, file: str) -> Iterator[Job]:
        what = METHOD_TITLES[method]
        if method in OF_A_TARGET:
            what += f" for {target_in_words(self.view.target, self.prediction)}"
        whole = method in ("rollout", *PIXEL_METHODS)
        sites = [None] if whole or (method.startswith("relevance") and self.view.layer is None) else self.layers.decoder
        heads, levels = [None] if whole else self._heads, [None] if method in PIXEL_METHODS else self._levels
        of_site = ["all layers" if one is None else layer_in_words(one) for one in sites]
        of_head = ["all heads" if one is None else f"head {one}" for one in heads]
        of_level = ["all levels" if one is None else f"level {one}" for one in levels]
        grid = partial(self._grid, method)
        if len(heads) > 1 and len(levels) > 1:
            for site, where in zip(sites, of_site, strict=True):
                cells = [[(site, head, level) for level in levels] for head in heads]
                title = f"{what}, {where}, by head and level"
                yield self._by_site(file, site), partial(grid, cells, of_head, of_level, title)
            return
        cells = [[(site, head, level) for head in heads for level in levels] for site in sites]
        if len(sites) * len(cells[0]) == 1:
            parts = [] if method in PIXEL_METHODS else [*of_site, *of_head, *of_level]
            yield file, partial(self._alone, method, cells[0][0], ", ".join([what, *parts]))
        else:
            columns, by = (of_level, " and level") if len(levels) > 1 else (of_head, " and head" * (len(heads) > 1))
            yield file, partial(grid, cells, of_site, columns, f"{what}, by layer{by}")

    def _by_site(self, file: str, site: str | None) -> str:
        """A file's name, of one of several layers with the layer's."""
        return file if site is None or len(self.layers.decoder) == 1 else f"{file}-{_short(site)}"

    def _alone(self, method: str, cell: Cell, title: str) -> Drawing:
        return draw_heat(self.trace, self._heat(method, *cell), self.prediction, title, image=self.image)

    def _grid(self, method: str, cells: list[list[Cell]], rows: list[str], columns: list[str], title: str) -> Drawing:
        heats = [[self._heat(method, *cell) for cell in row] for row in cells]
        # raw attention of every head adds up to 1: none is stronger than another
        many = len(rows) * len(columns) > STRONGEST + 1 and method != "raw"
        draw = draw_strongest if many else draw_heat_grid
        return draw(self.trace, heats, rows, columns, self.prediction, title, image=self.image)

    def _heat(self, method: str, site: str | None, head: Part, level: Part) -> Tensor:
        how: dict[str, Any] = {"head": head, "level": level, "target": self.view.target}
        if site is not None:
            how["layer"] = self.trace.sites[site].layer
        if method.startswith("relevance"):
            how |= {"by": self.view.by, "parity": self.view.parity, "among": self.among}
        if method == "drise":
            how["samples"] = self.view.samples
        return heat_map(self.trace, self.prediction, method, **how)


def draw_outside(
    trace: AttentionTrace, prediction: QueryPrediction, method: str, view: View, *, image: str = ""
) -> Drawing:
    """A method of BLACK_BOX, of any detector."""
    how: dict[str, Any] = {"target": view.target} | ({"samples": view.samples} if method == "drise" else {})
    heat = heat_map(trace, prediction, method, **how)
    return draw_heat(trace, heat, prediction, METHOD_TITLES[method], image=image)


def _short(site: str) -> str:
    """decoder.5 of decoder.5.cross."""
    return site.rsplit(".", 1)[0]
