"""Arrays of a page that can become too large for it: the encoder's self-attention, and relevance by head.

Of deformable attention these are the points that every pixel of the encoder samples; of attention to every key its
matrix, the mean over heads. What is too large is left out, and a sentence says so.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.capture import Record
from ..core.relevance import factors, relevance
from ..core.trace import AttentionTrace, QueryPrediction

MOST_OF_ENCODER, MOST_BY_HEAD = 9_000_000, 3_000_000
"""Bytes of what is held of an encoder, and of relevance by head, before they are compressed."""
NEAR, FAR = -1.0, 2.0
"""Sampling locations are held within these, in 65,535 steps; what lies beyond is far outside the image."""

Arrays = list[tuple[str, np.ndarray]]


def quantised(name: str, maps: Tensor) -> Arrays:
    """Maps (..., S) >= 0 as uint8 (..., S), and as NAME_scale what one step is worth: 1/255 of each map's maximum."""
    maps = maps.detach().double().cpu().clamp(min=0)
    scale = maps.amax(-1) / 255
    steps = torch.where(scale[..., None] > 0, maps / scale[..., None], 0.0).round()
    return [(name, steps.numpy().astype(np.uint8)), (f"{name}_scale", scale.numpy().astype(np.float32))]


def encoder_arrays(trace: AttentionTrace, most: int = MOST_OF_ENCODER) -> tuple[dict[str, Any] | None, Arrays]:
    """What a page says of an encoder, and its arrays; None for a detector whose encoder's attention is not recorded.

    Of E layers the last n are held, as many as fit into `most` bytes. S pixels of all levels, H heads.

    Returns:
        ``layers``, the numbers of the layers that are held, ``of``, how many there are, ``heads`` and ``points`` (0
        for dense attention) and ``note``, what is left out, as a sentence or nothing; and the arrays
        ``encoder_xy`` (n, S, H, L, P, 2) uint16, ``encoder_weights`` (n, S, H, L * P) uint8 with its scale, or
        ``encoder_rows`` (n, S, S) uint8 with its scale, the mean over heads.
    """
    tokens = sum(h * w for h, w in trace.shapes)
    records = [record for record in trace.tape.values() if record.site.stack == "encoder"]
    # of a hybrid encoder, attention is over the pixels of one level alone
    records = [one for one in records if _rows(one) == tokens and (one.site.deformable or _keys(one) == tokens)]
    if not records:
        return None, []
    site = records[-1].site
    deformable = site.deformable
    layer = tokens * (site.heads * site.levels * site.points * 5 if deformable else tokens)
    kept = min(len(records), most // layer)
    held, numbers = records[len(records) - kept :], range(len(records) - kept, len(records))
    about: dict[str, Any] = {
        "layers": list(numbers),
        "of": len(records),
        "heads": site.heads,
        "points": site.points,
        "note": "" if kept == len(records) else _left_out(kept, len(records), layer, tokens),
    }
    if not held:
        return about, []
    if not deformable:
        return about, quantised("encoder_rows", torch.stack([one.weights[0].mean(0) for one in held]))
    places = torch.stack([one.locations[0].detach().double().cpu() for one in held])
    steps = ((places.nan_to_num(FAR, FAR, NEAR).clamp(NEAR, FAR) - NEAR) / (FAR - NEAR) * 65535).round()
    weights = torch.stack([one.weights[0] for one in held]).flatten(-2)
    return about, [("encoder_xy", steps.numpy().astype(np.uint16)), *quantised("encoder_weights", weights)]


def _rows(record: Record) -> int:
    return record.weights.shape[1 if record.site.deformable else 2]


def _keys(record: Record) -> int:
    return record.weights.shape[-1]


def _left_out(kept: int, count: int, layer: int, tokens: int) -> str:
    size = f"{layer / 1e6:.0f} MB a layer at {tokens} pixels"
    held = f"the last {kept} of {count} layers are held" if kept else f"none of its {count} layers is held"
    return (
        f"The encoder's attention is large, {size}: {held}. A smaller image (--image-size) makes room; "
        "--layer encoder.N --ref X,Y draws any layer at a place."
    )


def head_maps(trace: AttentionTrace, prediction: QueryPrediction) -> Tensor:
    """Relevance by decoder layer and by head of its cross-attention, (N, H, S).

    The mean over heads and the sum over layers is the detection's relevance: what a layer brings is linear in its
    cross-attention's heads.
    """
    gradients = trace.gradients(prediction)
    heads = trace.tape[trace.cross_sites[0]].site.heads
    each = [
        relevance(factors(trace.tape, gradients, head=head), [prediction.query], by_layer=True)[0]
        for head in range(heads)
    ]
    return torch.stack(each, 1)


def fitting(trace: AttentionTrace, mapped: Sequence[QueryPrediction], most: int = MOST_BY_HEAD) -> int:
    """Of how many queries relevance by head fits into `most` bytes."""
    each = len(trace.cross_sites) * trace.tape[trace.cross_sites[0]].site.heads * sum(h * w for h, w in trace.shapes)
    return min(len(mapped), most // each)
