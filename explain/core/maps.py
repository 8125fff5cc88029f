"""Heat maps of a detection, by method: over the levels' pixels, and put back on the image's.

``raw``        attention of the query in one decoder layer's cross-attention, mean over heads
``rollout``    attention of all layers multiplied, half of each layer passing by it (Abnar & Zuidema 2020), from the
               query through the decoder to the encoder's pixels
``gradcam``    attention of one layer, heads weighted by the mean derivative of the target (Selvaraju et al. 2017, as
               Chefer et al. 2021 carry it to attention), the positive part
``relevance``  `relevance.relevance`: every layer's attention times its derivative
``relevance-rollout`` the same in the decoder, and ``rollout`` in the encoder: `relevance.Factors.rollout`
``relevance-mirrored`` the mean of that and of the mirrored image's, mirrored back, each scaled to a total of 1:
               chance of one pass cancels (as of Grad-CAM over augmented images, Morbidelli et al. 2020)
``input-grad`` absolute derivative of the target with respect to the pixels, summed over colours (Simonyan et al. 2014)

and those of `pixel_maps`, which know nothing of attention: ``odam``, ``backbone-gradcam``, ``integrated-gradients``,
``drise``, ``occlusion``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..baselines.pixel_maps import pixel_map
from ..options import BLACK_BOX, METHODS, PIXEL_METHODS
from .attention import applied, share_of_levels, times
from .capture import Record
from .relevance import By, factors, relevance
from .sites import in_range
from .trace import TARGETS, AttentionTrace, QueryPrediction


def row_map(record: Record, query: int, *, head: int | None = None) -> Tensor:
    """Row of an attention's matrix: where a query looks, (S,), mean over heads or of one."""
    row = torch.tensor([query], device=record.weights.device)
    return record.dense(row)[0, record.heads(head), 0].mean(0).cpu()


def column_map(record: Record, key: int, *, head: int | None = None) -> Tensor:
    """Column of an attention's matrix: who looks at a pixel, (Q,), mean over heads or of one."""
    matrix = record.matrix(head=head)
    size = sum(h * w for h, w in record.shapes) if record.site.deformable else record.weights.shape[-1]
    unit = record.weights.new_zeros(size)
    unit[key] = 1
    return applied(matrix, unit).cpu()


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
        method: any of METHODS but those of PIXEL_METHODS, which know no levels.
        layer: of the decoder; the last by default, and for relevance all of them summed. ``rollout`` has no layer.
        head: of that layer's cross-attention; the mean, or for ``gradcam`` the weighted sum, by default.
        level: what lies on other levels is zero.
        target: one of TARGETS.
        by: see `Gradients.factor`.
        parity: with the faults of the relevance's authors' code, see `relevance`.
        among: of relevance: several detections, whose targets' sum is derived by in one pass for all of them. Exact
            relevance is by one's own target; what others look at takes part in this.

    Raises ValueError for what is out of range, or has no meaning for the method.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    if method in PIXEL_METHODS:
        raise ValueError(f"method: {method} is a map of the image's pixels, it has no map over levels")
    _check_inside(trace, method)
    if method == "rollout" and (layer is not None or head is not None):
        raise ValueError("method: rollout goes through all layers and heads; leave layer and head out")
    layers = trace.cross_sites
    record = trace.tape[layers[-1 if layer is None else in_range(layer, len(layers), "layer", " of the decoder")]]
    record.heads(head)
    if method == "raw":
        found = row_map(record, prediction.query, head=head)
    elif method == "rollout":
        found = _rollout(trace, prediction.query)
    elif method == "gradcam":
        found = _gradcam(trace, prediction, record, head, target)
    else:
        how: dict[str, Any] = {"layer": layer, "head": head, "target": target, "by": by, "parity": parity}
        make = _mirrored if method == "relevance-mirrored" else partial(_relevance, rollout=method != "relevance")
        found = make(trace, prediction, among, **how)
    if level is None:
        return found
    part = share_of_levels(trace.shapes)[in_range(level, len(trace.shapes), "level")]
    kept = torch.zeros_like(found)
    kept[part] = found[part]
    return kept


def heat_map(
    trace: AttentionTrace, prediction: QueryPrediction, method: str, *, level: int | None = None, **where: Any
) -> Tensor:
    """A map on the image's own pixels, (H, W) float32, not negative. Arguments and errors as of `token_map`.

    PIXEL_METHODS take ``target`` alone, and ``drise`` ``samples``: see `pixel_maps.pixel_map`.
    """
    if method not in PIXEL_METHODS:
        return trace.to_pixels(token_map(trace, prediction, method, level=level, **where), level)
    if level is not None or where.get("layer") is not None or where.get("head") is not None:
        raise ValueError(f"method: {method} has no layer, head or level")
    if method not in BLACK_BOX:
        _check_inside(trace, method)
    if method != "input-grad":
        given = {name: value for name, value in where.items() if name in ("target", "samples")}
        return pixel_map(trace, prediction, method, **given)
    slopes = trace.input_gradient(prediction, where.get("target", "class")).abs().sum(0).float().cpu()
    size = (trace.height, trace.width)
    return F.interpolate(slopes[None, None], size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0]


def _check_inside(trace: AttentionTrace, method: str) -> None:
    if not trace.cross_sites:
        raise ValueError(
            f"method: {trace.model.kind} has no attention, and is explained from outside alone; "
            f"expected {' or '.join(BLACK_BOX)}, got {method}"
        )


def _relevance(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    among: Sequence[QueryPrediction],
    *,
    rollout: bool,
    layer: int | None,
    head: int | None,
    target: str,
    by: By,
    parity: bool,
) -> Tensor:
    gradients = trace.gradients(among or prediction, target, heads=by == "pixel")
    c = factors(trace.tape, gradients, by=by, head=head, rollout=rollout)
    rows = relevance(c, [prediction.query], by_layer=layer is not None, parity=parity)
    return rows[0] if layer is None else rows[0, layer]


def _mirrored(
    trace: AttentionTrace, prediction: QueryPrediction, among: Sequence[QueryPrediction], **how: Any
) -> Tensor:
    """Of all layers and heads the total is 1, of one layer or head its share, as `relevance` has it."""
    maps = []
    for one, seen, others in (
        (trace, prediction, among),
        (trace.mirrored, trace.in_mirror(prediction), [trace.in_mirror(other) for other in among]),
    ):
        found = _relevance(one, seen, others, rollout=True, **how)
        every = how | {"layer": None, "head": None}
        whole = found if how == every else _relevance(one, seen, others, rollout=True, **every)
        maps.append(found / whole.sum().clamp(min=torch.finfo(whole.dtype).tiny))
    own, other = maps
    parts = zip(share_of_levels(trace.shapes), trace.shapes, strict=True)
    back = torch.cat([other[part].unflatten(0, (h, w)).flip(-1).flatten() for part, (h, w) in parts])
    return (own + back) / 2


def _rollout(trace: AttentionTrace, query: int) -> Tensor:
    """Abnar & Zuidema's rollout of encoder and decoder: half of every layer's answer is its own input."""
    left = trace.tape[trace.cross_sites[0]].weights.new_zeros(trace.queries)
    left[query] = 1
    found: Tensor | None = None
    # the encoder's layers come first on the tape
    for record in reversed(list(trace.tape.values())):
        if record.site.stack == "encoder":
            assert found is not None
            found = (found + times(found, record.matrix())) / 2
        elif record.site.kind == "cross":
            left = left / 2
            looked = times(left, record.matrix())
            found = looked if found is None else found + looked
        else:
            left = (left + times(left, record.matrix())) / 2
    assert found is not None
    return found.cpu()


def _gradcam(
    trace: AttentionTrace, prediction: QueryPrediction, record: Record, head: int | None, target: str
) -> Tensor:
    found = trace.gradients(prediction, target).get(record.site.name)
    gradients = torch.zeros_like(record.weights) if found is None else found.weights
    slopes = gradients[0, prediction.query] if record.site.deformable else gradients[0, :, prediction.query]
    maps = record.dense(torch.tensor([prediction.query], device=slopes.device))[0, :, 0]
    weighed = slopes.flatten(1).mean(1)[:, None] * maps
    return weighed[record.heads(head)].mean(0).clamp(min=0).cpu()
