"""A trace made by hand of random numbers, of any shape: what a page reads of one, without a model."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


@dataclass
class StandInSeen:
    """As `trace.QueryPrediction`."""

    query: int
    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]


class StandInTrace:
    """Random boxes, scores and attention; `dense` as DETR's, else deformable with references of 4 coordinates.

    With `encoder` layers of an encoder, too.
    """

    def __init__(
        self,
        *,
        queries: int = 6,
        layers: int = 3,
        heads: int = 2,
        points: int = 2,
        shapes: tuple[tuple[int, int], ...] = ((6, 8), (3, 4)),
        size: tuple[int, int] = (48, 64),
        names: tuple[str, ...] = ("cat", "dog", "bird"),
        dense: bool = False,
        encoder: int = 0,
    ) -> None:
        random = torch.Generator().manual_seed(0)
        height, width = size
        shapes = shapes[:1] if dense else shapes
        tokens = sum(h * w for h, w in shapes)
        centre = torch.rand(1, queries, 2, generator=random).expand(layers, -1, -1)
        centre = centre + 0.05 * torch.randn(layers, queries, 2, generator=random) * torch.linspace(1, 0, layers).view(
            -1, 1, 1
        )
        half = 0.04 + 0.1 * torch.rand(1, queries, 2, generator=random).expand(layers, -1, -1)
        pixels = torch.tensor([width, height, width, height])
        self.image = torch.randint(0, 256, (3, height, width), generator=random).to(torch.uint8)
        self.model: Any = SimpleNamespace(categories=list(names), kind="StandIn")
        self.shapes = shapes
        self.layer_boxes = torch.cat([centre - half, centre + half], -1) * pixels
        self.layer_scores = torch.rand(layers, queries, len(names), generator=random) ** 2
        self.references = [] if dense else list(torch.cat([centre, 2 * half], -1) * pixels)
        self.tape = {}
        for layer in range(encoder):
            self.tape[f"encoder.{layer}.self"] = _attention(
                tokens,
                torch.rand(tokens, 2, generator=random),
                random,
                ("encoder", "self"),
                heads,
                points,
                shapes,
                dense,
            )
        self.cross_sites = [f"decoder.{layer}.cross" for layer in range(layers)]
        for layer, name in enumerate(self.cross_sites):
            place = ("decoder", "cross")
            self.tape[name] = _attention(queries, centre[layer], random, place, heads, points, shapes, dense)

    def prediction(self, query: int) -> StandInSeen:
        score, label = self.layer_scores[-1, query].max(-1)
        box = self.layer_boxes[-1, query].tolist()
        return StandInSeen(query, int(label), self.model.categories[int(label)], float(score), tuple(box))

    def detections(self, confidence: float = 0.5) -> list[StandInSeen]:
        every = [self.prediction(query) for query in range(self.layer_boxes.shape[1])]
        return sorted((s for s in every if s.score >= confidence), key=lambda s: -s.score)


def stand_in_maps(trace: StandInTrace, prediction: StandInSeen, method: str) -> Tensor:
    """In the place of `page.layer_maps`: some maps (N + 1, S), others for every query."""
    tokens = sum(h * w for h, w in trace.shapes)
    random = torch.Generator().manual_seed(prediction.query)
    return torch.rand(len(trace.layer_boxes) + 1, tokens, generator=random) ** 4


def stand_in_head_maps(trace: StandInTrace, prediction: StandInSeen) -> Tensor:
    """In the place of `page.head_maps`: some maps (N, H, S), others for every query."""
    tokens, heads = sum(h * w for h, w in trace.shapes), trace.tape["decoder.0.cross"].site.heads
    random = torch.Generator().manual_seed(1000 + prediction.query)
    return torch.rand(len(trace.layer_boxes), heads, tokens, generator=random) ** 4


def _attention(
    queries: int,
    centre: Tensor,
    random: torch.Generator,
    place: tuple[str, str],
    heads: int,
    points: int,
    shapes: tuple[tuple[int, int], ...],
    dense: bool,
) -> Any:
    """A record of random attention around the centres (Q, 2)."""
    stack, kind = place
    levels = len(shapes)
    how = {"heads": heads, "levels": levels, "points": 0 if dense else points, "counts": ()}
    site = SimpleNamespace(stack=stack, kind=kind, deformable=not dense, **how)
    if dense:
        tokens = sum(h * w for h, w in shapes)
        return SimpleNamespace(
            site=site, weights=(3 * torch.randn(1, heads, queries, tokens, generator=random)).softmax(-1)
        )
    shape = (1, queries, heads, levels, points)
    weights = torch.randn(1, queries, heads, levels * points, generator=random).softmax(-1).view(shape)
    around = centre[:, None, None, None] + 0.1 * torch.randn(*shape[1:], 2, generator=random)
    return SimpleNamespace(site=site, weights=weights, locations=around[None])
