"""Pictures of one detection by method, layer, head and level: one picture, or a grid where several are asked for."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..core.maps import heat_map
from ..core.trace import AttentionTrace, QueryPrediction
from ..options import METHOD_TITLES, View
from .drawing import Drawing, layer_in_words, target_in_words
from .grids import draw_heat_grid, draw_point_grid
from .heat import draw_heat
from .points import draw_points

Cell = tuple[str | None, int | None, int | None]
"""Site, head and level of a map; None for all of them together."""
Job = tuple[str, Callable[[], Drawing]]
"""A picture that can be drawn, and a name for its files."""


@dataclass(frozen=True)
class Layers:
    """What ``--layer`` names: cross-attentions of the decoder, and self-attentions of the encoder."""

    decoder: list[str]
    encoder: list[str]
    every: bool
    """Was it all of them?"""


def find_layers(trace: AttentionTrace, text: str | None) -> Layers:
    """Raises ValueError, with the layers that there are, for what is none."""
    decoder = [name for name, site in trace.sites.items() if site.stack == "decoder" and site.kind == "cross"]
    encoder = [name for name, site in trace.sites.items() if site.stack == "encoder"]
    if text is None:
        return Layers(decoder[-1:], encoder[-1:], False)
    if text == "all":
        return Layers(decoder, encoder, True)
    match = re.fullmatch(r"(encoder|decoder)\.(\d+)(?:\.(?:self|cross))?", text)
    name = f"{match[1]}.{match[2]}." + ("cross" if match[1] == "decoder" else "self") if match else ""
    if name not in trace.sites:
        known = ", ".join(one.rsplit(".", 1)[0] for one in [*encoder, *decoder])
        raise ValueError(f"layer: expected one of {known}, or all; got {text!r}")
    return Layers([name], [], False) if name in decoder else Layers([], [name], False)


def _number(text: str, words: Sequence[str], count: int, what: str) -> int | None:
    """A head or level by number, None for one of the words. Raises ValueError otherwise."""
    if text in words:
        return None
    if not text.isdecimal() or int(text) >= count:
        raise ValueError(f"{what}: expected from 0 to {count - 1}, {' or '.join(words)}, got {text!r}")
    return int(text)


@dataclass(frozen=True, eq=False)
class Explained:
    """One detection in one view."""

    trace: AttentionTrace
    prediction: QueryPrediction
    view: View
    layers: Layers
    image: str
    """The image's name, for titles."""
    among: tuple[QueryPrediction, ...] = ()
    """All that is explained, where one backward pass is for all of it."""

    def __post_init__(self) -> None:
        self.head, self.level  # noqa: B018  a head or level out of range is told before anything is drawn

    @property
    def head(self) -> int | None:
        return _number(self.view.head, ("mean", "all"), self._site.heads, "head")

    @property
    def level(self) -> int | None:
        return _number(self.view.level, ("together", "all"), len(self.trace.shapes), "level")

    @property
    def _site(self) -> Any:
        return self.trace.sites[(self.layers.decoder or self.layers.encoder)[0]]

    @property
    def heads(self) -> list[int | None]:
        """Those drawn each by itself; None for all of them together."""
        return list(range(self._site.heads)) if self.view.head == "all" else [self.head]

    @property
    def levels(self) -> list[int | None]:
        """Those drawn each by itself; None for all of them together."""
        return list(range(len(self.trace.shapes))) if self.view.level == "all" else [self.level]

    def jobs(self, method: str) -> Iterator[Job]:
        """A method's pictures."""
        view = self.view
        file = method
        if method not in ("rollout", "input-grad") and (view.layer is not None or method != "relevance"):
            file += "-all" if self.layers.every else f"-{_short(self.layers.decoder[0])}"
        file += f"-head{view.head}" * (view.head != "mean") + f"-level{view.level}" * (view.level != "together")
        if method == "points":
            yield from self._points(file)
        else:
            yield from self._heats(method, file)

    def _points(self, file: str) -> Iterator[Job]:
        sites, view = self.layers.decoder, self.view
        draw = partial(draw_point_grid, self.trace, self.prediction, image=self.image)
        if not (self.layers.every or "all" in (view.head, view.level)):
            heads = None if self.head is None else [self.head]
            levels = None if self.level is None else [self.level]
            slopes = view.target if view.slopes else None
            some: dict[str, Any] = {"heads": heads, "levels": levels, "slopes": slopes, "image": self.image}
            yield file + "-slopes" * view.slopes, partial(draw_points, self.trace, self.prediction, sites[0], **some)
        elif view.head == "all" and view.level == "all":
            for site in sites:
                name = file if len(sites) == 1 else f"{file}-{_short(site)}"
                yield name, partial(draw, [site], by="heads x levels")
        else:
            yield file, partial(draw, sites, by="layers x levels" if view.level == "all" else "layers x heads")

    def _heats(self, method: str, file: str) -> Iterator[Job]:
        what = METHOD_TITLES[method]
        if method in ("gradcam", "relevance", "input-grad"):
            what += f" for {target_in_words(self.view.target, self.prediction)}"
        sites: list[str | None] = list(self.layers.decoder)
        heads, levels = self.heads, self.levels
        if method in ("rollout", "input-grad"):
            sites, heads = [None], [None]
        elif method == "relevance" and self.view.layer is None:
            sites = [None]
        if method == "input-grad":
            levels = [None]
        of_head = {one: "all heads" if one is None else f"head {one}" for one in heads}
        of_level = {one: "all levels" if one is None else f"level {one}" for one in levels}
        of_site = {one: "all layers" if one is None else layer_in_words(one) for one in sites}
        if len(heads) > 1 and len(levels) > 1:
            for site, where in of_site.items():
                cells = [[(site, head, level) for level in levels] for head in heads]
                name = file if site is None or len(sites) == 1 else f"{file}-{_short(site)}"
                titles = (list(of_head.values()), list(of_level.values()), f"{what}, {where}, by head and level")
                yield name, partial(self._grid, method, cells, *titles)
        elif len(sites) * len(heads) * len(levels) == 1:
            title = what
            if method != "input-grad":
                title = ", ".join([what, *of_site.values(), *of_head.values(), *of_level.values()])
            yield file, partial(self._single, method, (sites[0], heads[0], levels[0]), title)
        else:
            cells = [[(site, head, level) for head in heads for level in levels] for site in sites]
            columns = list((of_level if len(levels) > 1 else of_head).values())
            by = " and level" if len(levels) > 1 else " and head" if len(heads) > 1 else ""
            yield file, partial(self._grid, method, cells, list(of_site.values()), columns, f"{what}, by layer{by}")

    def _single(self, method: str, cell: Cell, title: str) -> Drawing:
        return draw_heat(self.trace, self._heat(method, *cell), self.prediction, title, image=self.image)

    def _grid(self, method: str, cells: list[list[Cell]], rows: list[str], columns: list[str], title: str) -> Drawing:
        heats = [[self._heat(method, *cell) for cell in row] for row in cells]
        return draw_heat_grid(self.trace, heats, rows, columns, self.prediction, title, image=self.image)

    def _heat(self, method: str, site: str | None, head: int | None, level: int | None) -> Tensor:
        layer = None if site is None else self.trace.sites[site].layer
        rest: dict[str, Any] = {}
        if method == "relevance":
            rest = {"by": self.view.by, "parity": self.view.parity, "among": self.among}
        return heat_map(
            self.trace, self.prediction, method, layer=layer, head=head, level=level, target=self.view.target, **rest
        )


def _short(site: str) -> str:
    """decoder.5 of decoder.5.cross."""
    return site.rsplit(".", 1)[0]
