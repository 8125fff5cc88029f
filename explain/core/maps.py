"""Heat maps of a detection, by method: over the levels' pixels, and put back on the image's.

``raw``        attention of the query in one decoder layer's cross-attention, mean over heads
``rollout``    attention of all layers multiplied, half of each layer passing by it (Abnar & Zuidema 2020), from the
               query through the decoder to the encoder's pixels
``gradcam``    attention of one layer, heads weighted by the mean derivative of the target (Selvaraju et al. 2017, as
               Chefer et al. 2021 carry it to attention), the positive part
``relevance``  `relevance.relevance`: every layer's attention times its derivative
``input-grad`` absolute derivative of the target with respect to the pixels, summed over colours (Simonyan et al. 2014)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..options import METHODS
from .attention import corners
from .capture import Record
from .relevance import By, factors, relevance
from .trace import TARGETS, AttentionTrace, QueryPrediction


def check_method(method: str) -> None:
    """Raises ValueError for a method that is none of METHODS."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")


def decoder_site(trace: AttentionTrace, layer: int | None = None) -> str:
    """The cross-attention of a decoder layer, the last by default. ValueError for a layer that is not there."""
    names = [name for name, record in trace.tape.items() if record.site.kind == "cross"]
    if layer is None:
        return names[-1]
    if not 0 <= layer < len(names):
        raise ValueError(f"layer: expected a decoder layer from 0 to {len(names) - 1}, got {layer}")
    return names[layer]


def row_map(record: Record, row: int, query: int, *, head: int | None = None) -> Tensor:
    """Row of an attention's matrix: where a query looks, (S,), mean over heads or of one."""
    if head is not None and not 0 <= head < record.heads:
        raise ValueError(f"head: expected from 0 to {record.heads - 1}, got {head}")
    heads = record.dense(torch.tensor([query], device=record.call.query.device))[row, :, 0]
    return (heads.mean(0) if head is None else heads[head]).cpu()


def column_map(record: Record, row: int, key: int, *, head: int | None = None) -> Tensor:
    """Column of an attention's matrix: who looks at a pixel, (Q,), mean over heads or of one.

    Of deformable attention the matrix is never made: a query's column entry is what its own points give that pixel.
    """
    if head is not None and not 0 <= head < record.heads:
        raise ValueError(f"head: expected from 0 to {record.heads - 1}, got {head}")
    if record.shapes is None:
        heads = record.weights[row, :, :, key].T
    else:
        index, coefficient = corners(record.locations[row], record.shapes)
        given = (index == key) * coefficient * record.weights[row][..., None]
        heads = given.flatten(2).sum(-1)
        if record.mask is not None and record.mask[row, key]:
            heads = torch.zeros_like(heads)
    return (heads.mean(1) if head is None else heads[:, head]).cpu()


def token_map(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    method: str,
    *,
    layer: int | None = None,
    head: int | None = None,
    level: int | None = None,
    target: str = "class",
    by: By = "point",
    parity: bool = False,
    among: Sequence[QueryPrediction] = (),
) -> Tensor:
    """A map over the levels' pixels, (S,), not negative; its scale is the method's own.

    Args:
        method: any of METHODS but ``input-grad``, which knows no levels.
        layer: of the decoder; the last by default, and for ``relevance`` all of them summed. ``rollout`` has no layer.
        head: of that layer's cross-attention; the mean, or for ``gradcam`` the weighted sum, by default.
        level: what lies on other levels is zero.
        target: one of TARGETS.
        by: see `relevance.factor`.
        parity: with the faults of the relevance's authors' code, see `relevance`.
        among: of ``relevance``: several detections, whose targets' sum is derived by in one pass for all of them. Exact
            relevance is by one's own target; what others look at takes part in this.

    Raises ValueError for what is out of range, or has no meaning for the method.
    """
    check_method(method)
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    if method == "input-grad":
        raise ValueError("method: input-grad is a map of the image's pixels, it has no map over levels")
    site = decoder_site(trace, layer)
    record = trace.tape[site]
    if head is not None and not 0 <= head < record.heads:
        raise ValueError(f"head: expected from 0 to {record.heads - 1}, got {head}")
    if method == "raw":
        found = row_map(record, trace.row, prediction.query, head=head)
    elif method == "rollout":
        if layer is not None or head is not None:
            raise ValueError("method: rollout goes through all layers and heads; leave layer and head out")
        found = _rollout(trace, prediction.query)
    elif method == "gradcam":
        found = _gradcam(trace, prediction, site, head, target)
    else:
        gradients = trace.gradients(among or prediction, target, heads=by == "pixel")
        c = factors(trace.tape, gradients, trace.row, by=by, head=head)
        rows = relevance(c, [prediction.query], by_layer=layer is not None, parity=parity)
        found = rows[0] if layer is None else rows[0, layer]
    return found if level is None else on_level(trace, found, level)


def on_level(trace: AttentionTrace, tokens: Tensor, level: int) -> Tensor:
    """The same map (S,) with zeros on the other levels. ValueError for a level that is not there."""
    if not 0 <= level < len(trace.shapes):
        raise ValueError(f"level: expected from 0 to {len(trace.shapes) - 1}, got {level}")
    start = sum(h * w for h, w in trace.shapes[:level])
    end = start + trace.shapes[level][0] * trace.shapes[level][1]
    kept = torch.zeros_like(tokens)
    kept[start:end] = tokens[start:end]
    return kept


def heat_map(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    method: str,
    *,
    layer: int | None = None,
    head: int | None = None,
    level: int | None = None,
    target: str = "class",
    by: By = "point",
    parity: bool = False,
    among: Sequence[QueryPrediction] = (),
) -> Tensor:
    """A map on the image's own pixels, (H, W) float32, not negative. Arguments and errors as of `token_map`."""
    if method == "input-grad":
        if layer is not None or head is not None or level is not None:
            raise ValueError("method: input-grad has no layer, head or level")
        return _input_gradient(trace, prediction, target)
    tokens = token_map(
        trace, prediction, method, layer=layer, head=head, level=level, target=target, by=by, parity=parity, among=among
    )
    return trace.to_pixels(tokens, level)


def _rollout(trace: AttentionTrace, query: int) -> Tensor:
    """Abnar & Zuidema's rollout of encoder and decoder: half of every layer's answer is its own input."""
    records = list(trace.tape.values())
    decoder = [record for record in records if record.site.stack == "decoder"]
    left: Tensor | None = None
    found: Tensor | float = 0.0
    for record in reversed(decoder):
        if left is None:
            left = torch.eye(trace.queries, dtype=record.weights.dtype)[query]
        if record.site.kind == "cross":
            found = found + _times(left / 2, record, trace.row)
            left = left / 2
        else:
            left = (left + _times(left, record, trace.row)) / 2
    assert isinstance(found, Tensor)
    for record in reversed([record for record in records if record.site.stack == "encoder"]):
        found = (found + _times(found, record, trace.row)) / 2
    return found


def _times(x: Tensor, record: Record, row: int) -> Tensor:
    """``x @ A`` with A's mean over heads, x (Q,) to (S,)."""
    if record.shapes is None:
        return (x.to(record.weights.device) @ record.weights[row].mean(0)).cpu()
    index, coefficient = corners(record.locations[row], record.shapes)
    weights = record.weights[row] / record.heads
    amount = coefficient * (weights * x.to(weights)[:, None, None, None])[..., None]
    size = sum(h * w for h, w in record.shapes)
    found = amount.new_zeros(size).index_add_(0, index.flatten(), amount.flatten())
    if record.mask is not None:
        found = found.masked_fill(record.mask[row], 0)
    return found.cpu()


def _gradcam(trace: AttentionTrace, prediction: QueryPrediction, site: str, head: int | None, target: str) -> Tensor:
    record = trace.tape[site]
    found = trace.gradients(prediction, target).get(site)
    gradients = torch.zeros_like(record.weights) if found is None else found.weights
    slopes = (
        gradients[trace.row, prediction.query] if record.site.deformable else gradients[trace.row, :, prediction.query]
    )
    heads = record.dense(torch.tensor([prediction.query], device=slopes.device))[trace.row, :, 0]
    importance = slopes.flatten(1).mean(1)
    if head is not None:
        heads, importance = heads[head : head + 1], importance[head : head + 1]
    return (importance[:, None] * heads).mean(0).clamp(min=0).cpu()


def _input_gradient(trace: AttentionTrace, prediction: QueryPrediction, target: str) -> Tensor:
    slopes = trace.input_gradient(prediction, target).abs().sum(0).float().cpu()
    size = (trace.height, trace.width)
    return F.interpolate(slopes[None, None], size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
