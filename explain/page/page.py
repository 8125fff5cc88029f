"""One self-contained HTML page for one image: what every query of the detector attends to, to look at and compare.

The page holds numbers, not pictures: sampling locations and weights of all queries in float32, from which it computes
raw attention itself, and maps that it cannot compute (relevance; the dense attention of DETR) in 256 steps of each
map's maximum. Arrays are deflated and in base64. Its policy allows no network request and no script but its own.
"""

import base64
import hashlib
import html
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...common.files import atomic_file
from ..core.maps import METHODS, token_map
from ..core.relevance import factors, relevance
from ..core.trace import AttentionTrace, QueryPrediction
from ..figures.heat import heat_colours
from ..figures.points import point_colours, stack_references
from ..options import METHOD_TITLES, PIXEL_METHODS
from .arrays import FAR, NEAR, encoder_arrays, fitting, head_maps, quantised

SCRIPTS = ("page_maps.js", "page_draw.js", "page_encoder.js", "page_share.js", "page.js")
LONGEST_IMAGE = 1600
CLASSES_KEPT = 5


def write_page(trace: AttentionTrace, path: Path, *, title: str = "", **arguments: Any) -> None:
    """Writes the page to `path`, whole or not at all; arguments and errors as those of `page`."""
    text = page(trace, title=title or path.stem, **arguments)
    with atomic_file(path) as file:
        file.write(text.encode())


def page(
    trace: AttentionTrace,
    *,
    confidence: float = 0.5,
    methods: Sequence[str] = ("raw", "relevance"),
    title: str = "",
    most: int = 20,
    subjects: Sequence[QueryPrediction] = (),
) -> str:
    """The page as text.

    Args:
        trace: a recorded forward pass of a detector with a decoder.
        confidence: minimum score of the queries that are shown at first; the page can change it.
        methods: heat maps, of raw, rollout, gradcam and relevance. All but raw are computed here, for detections and
            the three best queries, once a decoder layer and once over all; rollout over all only. Relevance and
            gradcam cost a backward pass of the detector for each.
        title: heading, such as the image's file name.
        most: for how many queries at most.
        subjects: queries whose maps come first, of the classes given with them; the page opens at the first.

    Raises:
        ValueError: a method that has no map of tokens, a confidence out of its range, or a `most` below 1.
    """
    known = [name for name in METHODS if name not in PIXEL_METHODS]
    for method in methods:
        if method not in known:
            raise ValueError(f"methods: expected any of {', '.join(known)}, got {method!r}")
    if not methods:
        raise ValueError(f"methods: expected at least one of {', '.join(known)}, got none")
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence: expected a number from 0 to 1, got {confidence}")
    if most < 1:
        raise ValueError(f"most: expected at least 1, got {most}")
    ranked = trace.detections(0.0)
    named = {prediction.query: prediction for prediction in reversed(subjects)}
    first = [*named.values()][::-1]
    others = [prediction for prediction in ranked if prediction.query not in named]
    count = max(len(first), min(most, max(3, sum(prediction.score >= confidence for prediction in ranked))))
    mapped = [*first, *others][:count]
    meta = _description(trace, mapped, methods) | {"selected": first[0].query if first else None}
    meta |= {"confidence": confidence, "image": _data_url(trace.image)}
    by_head = fitting(trace, mapped) if "relevance" in methods else 0
    about, arrays = encoder_arrays(trace)
    meta |= {"by_head": by_head, "encoder": about and about | {"near": NEAR, "far": FAR}}
    arrays += _arrays(trace, mapped, methods, by_head)
    meta["arrays"] = {name: _packed(array) for name, array in arrays}
    return _filled(title or "Image", meta)


def _description(trace: AttentionTrace, mapped: Sequence[QueryPrediction], methods: Sequence[str]) -> dict[str, Any]:
    """Everything of the page that is not an array."""
    site = trace.tape[trace.cross_sites[0]].site
    layers, queries = trace.layer_boxes.shape[:2]
    most = "at most " if site.counts else ""
    counts = f"{site.heads} heads" + (f", {site.levels} levels, {most}{site.points} points" if site.deformable else "")
    stored = f"for the {len(mapped)} best queries in 256 steps of each map's maximum (off by 0.2% of it at most)"
    exactness = (
        "Raw attention is computed in the page from the model's own float32 locations and weights, for every query."
        if site.deformable
        else f"Attention of single heads is stored {stored}; of other queries the mean over heads, in as many steps."
    )
    if set(methods) - {"raw"}:
        exactness += f" {', '.join(METHOD_TITLES[m] for m in methods if m != 'raw').capitalize()}: stored {stored}."
    return {
        "about": f"{trace.model.kind}: {queries} queries, {layers} decoder layers, {counts}",
        "exactness": exactness,
        "height": trace.image.shape[1],
        "width": trace.image.shape[2],
        "shapes": [list(shape) for shape in trace.shapes],
        "layers": layers,
        "queries": queries,
        "heads": site.heads,
        "levels": site.levels,
        "points": site.points,
        # of each level, where they differ; the rest of its places is empty
        "counts": list(site.counts or (site.points,) * site.levels),
        "names": list(trace.model.categories or []),
        "mapped": [prediction.query for prediction in mapped],
        "mapped_classes": [prediction.label for prediction in mapped],
        "methods": [{"name": name, "title": METHOD_TITLES[name]} for name in methods],
        "palettes": {"heat": _palette(heat_colours()), "weights": _palette(point_colours())},
    }


def _arrays(
    trace: AttentionTrace, mapped: Sequence[QueryPrediction], methods: Sequence[str], by_head: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The page's arrays by name. N decoder layers, Q queries, D of them mapped, H heads, S tokens, K classes kept."""
    scores = trace.layer_scores.detach().float().cpu()  # (N, Q, classes)
    best = scores.topk(min(CLASSES_KEPT, scores.shape[-1]), dim=-1)
    yield "boxes", _float32(trace.layer_boxes)  # (N, Q, 4) xyxy, pixels
    yield "labels", best.indices.numpy().astype(np.uint16)  # (N, Q, K), the likeliest first
    yield "scores", _float32(best.values)
    final = best.indices[-1, :, 0].expand(len(scores), -1)
    yield "own", _float32(scores.gather(-1, final[..., None])[..., 0])  # (N, Q) of the last layer's class
    records = [trace.tape[name] for name in trace.cross_sites]
    if records[0].site.deformable:
        # (N, Q, 2 or 4), pixels
        yield "references", stack_references([_float32(reference) for reference in trace.references])
        # normalised to each padded level, (N, Q, H, L, P, 2)
        yield "locations", np.stack([_float32(record.locations[0]) for record in records])
        yield "weights", np.stack([_float32(record.weights[0]) for record in records])  # (N, Q, H, L, P)
    else:
        attention = torch.stack([record.weights[0].detach().float().cpu() for record in records])  # (N, H, Q, S)
        chosen = attention[:, :, [prediction.query for prediction in mapped]].transpose(1, 2)
        yield from quantised("attention", chosen)
        yield from quantised("mean", attention.mean(1))
    for method in methods:
        if method != "raw":
            # (N + 1, D, S), over all layers last; of rollout (1, D, S)
            # and of relevance, of the first `by_head` of them, by head (N, by_head, H, S), whose mean is the first
            found, heads = [], []
            for place, one in enumerate(mapped):
                found.append(layer_maps(trace, one, method))
                if method == "relevance" and place < by_head:
                    heads.append(head_maps(trace, one))  # by the same backward pass
            yield from quantised(method, torch.stack(found, 1))
            if heads:
                yield from quantised("relevance_heads", torch.stack(heads, 1))


def layer_maps(trace: AttentionTrace, prediction: QueryPrediction, method: str) -> Tensor:
    """Maps of a detection (N + 1, S): of each decoder layer, then of all, summed. Rollout has the last alone."""
    if method == "rollout":
        return token_map(trace, prediction, method)[None]
    if method == "relevance":
        # all layers at once: it is linear in what each of them brings
        maps = relevance(factors(trace.tape, trace.gradients(prediction)), [prediction.query], by_layer=True)[0]
    else:
        maps = torch.stack([token_map(trace, prediction, method, layer=n) for n in range(len(trace.cross_sites))])
    return torch.cat([maps, maps.sum(0, keepdim=True)])


def _float32(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _packed(array: np.ndarray) -> dict[str, Any]:
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": _base64(zlib.compress(little.tobytes(), 6))}


def _data_url(image: Tensor) -> str:
    """(3, H, W) uint8 as a JPEG, smaller where it is large: coordinates stay those of the image."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((LONGEST_IMAGE, LONGEST_IMAGE))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{_base64(encoded.getvalue())}"


def _palette(colours: Any) -> str:
    """A matplotlib colour map in 256 steps of red, green, blue and opacity, a byte each, in base64."""
    return _base64(colours(np.arange(256), bytes=True).tobytes())


def _filled(title: str, meta: dict[str, Any]) -> str:
    def read(name: str) -> str:
        return (Path(__file__).parent / name).read_text(encoding="utf-8")

    def digest(text: str) -> str:
        """As a content security policy names an inline element."""
        return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"

    style, script = read("page.css"), "\n".join(map(read, SCRIPTS))
    policy = f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}; "
    # in JSON < can only stand in a string: escaped, nothing in it ends the element or opens another
    data = json.dumps(meta, allow_nan=False, sort_keys=True).replace("<", "\\u003c")
    parts = {"title": html.escape(title), "policy": f"{policy}base-uri 'none'; form-action 'none'"}
    parts |= {"style": style, "data": data, "script": script}
    # in one pass, so that what is put in is not searched
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read("page.html"))
