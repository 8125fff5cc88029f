"""Queries through the layers of the decoder: where they start, where each layer takes them, what they become."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from ...common.text import counted
from ..core.trace import AttentionTrace, QueryPrediction
from . import drawing
from .drawing import MARKERS, Array, Drawing, array
from .points import stack_references

_REST = "0.75"
# of a picture's longer side: shorter arrows are nothing but their heads
_VISIBLE = 0.02
# the IoU from which on two boxes look like one
_SAME = 0.95


def draw_journey(trace: AttentionTrace, prediction: QueryPrediction, *, image: str = "") -> Drawing:
    """One query: its box after every decoder layer, a picture each, or one for layers whose boxes coincide.

    A layer's box is in the colour of its most probable class, over the last layer's box, dashed and white. An arrow
    leads from the centre of the box before (of the first layer, from the first reference), where that is far enough to
    be seen; how far the centre moved and the IoU with the last box are written above. Of deformable detectors a cross
    marks the layer's reference; a detector that does not refine boxes has the same at all layers.

    Args:
        trace: of any detector with a decoder.
        prediction: whose query.
        image: the image's name, for the title.

    Returns:
        The drawing; numbers ``boxes`` (N layers, 4) xyxy, ``labels`` and ``scores`` (N,): the best class of each
        layer; ``own_scores`` (N,): of seen's class; ``references`` (N, 2 or 4) of deformable detectors,
        as of `points.stack_references`.
    """
    boxes, scores = array(trace.layer_boxes[:, prediction.query]), array(trace.layer_scores[:, prediction.query])
    labels = scores.argmax(-1)
    best, own = scores.max(-1), scores[:, prediction.label]
    numbers = {"boxes": boxes, "labels": labels, "scores": best, "own_scores": own}
    places = [boxes[:, :2], boxes[:, 2:]]
    references: Array | None = None
    if trace.references:
        references = stack_references([array(reference[prediction.query]) for reference in trace.references])
        numbers["references"] = references
        places.append(references[:, :2])
    groups = _alike(boxes, labels)
    window = drawing.close_up(trace, np.concatenate(places), margin=0.2)
    figure, axes = drawing.gallery(trace, len(groups), window=window)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    stops = centres if references is None else np.concatenate([references[:1, :2], centres])
    for one, (first, final) in zip(axes, groups, strict=True):
        if final < len(boxes) - 1:
            drawing.draw_box(one, boxes[-1], "white", style="--", width=1.4)
        drawing.draw_box(one, boxes[final], drawing.colour_of(int(labels[final])), width=2.2)
        # the stops begin with the first reference, where there is one
        start, end = stops[max(first - (references is None), 0)], centres[final]
        if references is not None:
            drawing.draw_point(one, references[first, :2], "+", "white", 10)
        _arrow(one, start, end, "white")
        drawing.caption(one, _told(trace, prediction, (first, final), numbers, float(np.linalg.norm(end - start))))

    dashed = [drawing.mark("", "box of the last layer", "0.6", linestyle="--")] * (len(groups) > 1)
    crosses = [] if references is None else [drawing.mark("+", "reference point of the layer")]
    if dashed or crosses:
        drawing.show_key(figure, [*dashed, *crosses])
    what = f"the query's box through {counted(len(boxes), 'decoder layer')}"
    together = "" if len(groups) == len(boxes) else "layers whose boxes coincide are one picture"
    drawing.headline(figure, drawing.told(prediction, image), "; ".join(part for part in (what, together) if part))
    return Drawing(figure, numbers)


def _alike(boxes: Array, labels: Array) -> list[tuple[int, int]]:
    """The first and last of layers in a row whose boxes (N, 4) cannot be told apart and whose class is the same."""
    groups = [(0, 0)]
    for layer in range(1, len(boxes)):
        first, before = groups[-1]
        overlap = box_iou(torch.from_numpy(boxes[[first]]), torch.from_numpy(boxes[[layer]]))
        if float(overlap) >= _SAME and labels[layer] == labels[before]:
            groups[-1] = (first, layer)
        else:
            groups.append((layer, layer))
    return groups


def _told(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    layers: tuple[int, int],
    numbers: dict[str, Array],
    way: float,
) -> str:
    """What stands above one picture of a query's: of the layers from the first to the last, class, score, and way."""
    first, final = layers
    boxes, labels, best = numbers["boxes"], numbers["labels"], numbers["scores"]
    named = f"layer {first}" if first == final else f"layers {first} to {final}"
    rising = f"{best[final]:.2f}" if first == final else f"{best[first]:.2f} to {best[final]:.2f}"
    said = f"{named}: {trace.class_name(int(labels[final]))} {rising}"
    if labels[final] != prediction.label:
        said += f" ({prediction.name} {numbers['own_scores'][final]:.2f})"
    parts = []
    if first > 0 or "references" in numbers:
        parts.append(f"moved by {way:.1f} pixels")
    if final < len(boxes) - 1:
        overlap = box_iou(*(torch.from_numpy(boxes[[which]]) for which in (final, -1)))
        parts.append(f"IoU {float(overlap):.2f} with the last")
    return "\n".join([said, ", ".join(parts)])


def draw_queries(trace: AttentionTrace, confidence: float = 0.5, *, image: str = "") -> Drawing:
    """Where every query ends, and the way there through the layers of those that detect something, by class.

    A way begins in a white circle, at the first reference or, of detectors without any, after the first layer; it ends
    in a disc as large as the score. Queries whose best score at the last layer is below `confidence` are grey dots.

    Returns:
        The drawing; numbers ``centres`` (N layers, Q, 2), ``labels`` and ``scores`` (N, Q): each layer's best class;
        ``references`` (N, Q, 2 or 4) of deformable detectors, as of `points.stack_references`.
    """
    boxes, scores = array(trace.layer_boxes), array(trace.layer_scores)
    centres, labels, best = (boxes[..., :2] + boxes[..., 2:]) / 2, scores.argmax(-1), scores.max(-1)
    numbers = {"centres": centres, "labels": labels, "scores": best}
    path = centres
    if trace.references:
        numbers["references"] = stack_references([array(reference) for reference in trace.references])
        path = np.concatenate([numbers["references"][:1, :, :2], centres])
    figure, [[axes]] = drawing.canvas(trace)
    sure = best[-1] >= confidence
    rest = {"color": _REST, "edgecolors": "black", "linewidths": 0.4, "zorder": 2}
    axes.scatter(*centres[-1, ~sure].T, s=9, **rest)
    colours: Any = [drawing.colour_of(int(label)) for label in labels[-1, sure]]
    for start, end in pairwise(path[:, sure]):
        for one, other, colour in zip(start, end, colours, strict=True):
            line: dict[str, Any] = {"color": colour, "linewidth": 2, "path_effects": drawing.outlined(2)}
            axes.plot(*np.stack([one, other], -1), zorder=3, solid_capstyle="round", **line)
    axes.scatter(*path[0, sure].T, s=26, color="white", edgecolors="black", linewidths=0.8, zorder=4)
    sizes = 90 * best[-1, sure] + 2
    axes.scatter(*centres[-1, sure].T, s=sizes, color=colours, edgecolors="black", linewidths=0.8, zorder=5)
    found = sorted(set(labels[-1, sure].tolist()))
    begin = "first reference" if trace.references else "after layer 0"
    handles = [drawing.mark("o", f"start: {begin}", "white", markeredgecolor="black", markersize=5)]
    handles += [drawing.mark("o", f"end: {trace.class_name(label)}", drawing.colour_of(label)) for label in found]
    handles.append(drawing.mark("o", "end of other queries", _REST, markersize=3.5, markeredgecolor="black"))
    drawing.show_key(figure, handles)
    what = f"{len(sure)} queries through {counted(len(centres), 'decoder layer')}"
    drawing.headline(figure, image, f"{what}: the way of the {sure.sum()} that detect something, and where others end")
    return Drawing(figure, numbers)


def draw_seeds(trace: AttentionTrace, confidence: float = 0.5, *, image: str = "") -> Drawing:
    """In two stages: the encoder's token that each detection came from, marked by level, joined to its box.

    Returns:
        The drawing; numbers ``queries`` (N,), ``tokens`` (N,) counted over all levels, ``levels`` (N,), ``xy`` (N, 2):
        the middles of the tokens' cells; ``boxes`` (N, 4), ``labels``, ``scores`` (N,): of the detections.

    Raises:
        ValueError: the detector has one stage.
    """
    if trace.tape.seeds is None:
        raise ValueError("seeds: expected a two-stage detector; this one's queries are learned, and come from no pixel")
    found = trace.detections(confidence)
    numbers = drawing.numbers_of(found)
    tokens = array(trace.tape.seeds)[0, numbers["queries"]]
    places = np.array([trace.place_of(token) for token in tokens.tolist()]).reshape(-1, 3)
    levels, xy = places[:, 2].astype(int), places[:, :2]
    figure, [[axes]] = drawing.canvas(trace)
    for prediction, level, place in reversed(list(zip(found, levels.tolist(), xy, strict=True))):  # the surest on top
        drawing.draw_detection(axes, prediction, width=1.4)
        colour, corners = drawing.colour_of(prediction.label), np.array(prediction.box).reshape(2, 2)
        _arrow(axes, place, corners.mean(0), colour, width=1.2)
        drawing.draw_point(axes, place, MARKERS[level % len(MARKERS)], colour, 8)
    drawing.show_key(figure, drawing.level_marks(trace, range(len(trace.shapes))))
    what = f"pixels of the encoder that {counted(len(found), 'detection')} of at least {confidence:.2g} came from"
    drawing.headline(figure, image, what)
    return Drawing(figure, numbers | {"tokens": tokens, "levels": levels, "xy": xy})


def _arrow(axes: Any, start: Array, end: Array, colour: Any, *, width: float = 1.8) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if np.linalg.norm(end - start) < _VISIBLE * max(abs(right - left), abs(top - bottom)):
        return
    line = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "path_effects": drawing.outlined(width)}
    shape = {"mutation_scale": 10, "shrinkA": 2, "shrinkB": 2}
    axes.annotate("", end, start, arrowprops=line | shape, zorder=4, annotation_clip=False, clip_on=True)
