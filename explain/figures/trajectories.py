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


def draw_journey(trace: AttentionTrace, prediction: QueryPrediction, *, image: str = "") -> Drawing:
    """One query: its box after every decoder layer, a picture each, and where it lies in the whole image.

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
    window = drawing.around(trace, np.concatenate(places), margin=0.2)
    figure, [whole, *others] = drawing.gallery(trace, 1 + len(boxes))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    stops = centres if references is None else np.concatenate([references[:1, :2], centres])
    drawing.draw_detection(whole, prediction)
    drawing.show(whole, trace, np.concatenate(places))
    _arrow(whole, stops[0], stops[-1], "white")
    drawing.caption(whole, "the whole image")
    for number, one in enumerate(others):
        last = number == len(boxes) - 1
        if not last:
            drawing.draw_box(one, boxes[-1], "white", style="--", width=1.2)
        drawing.draw_box(one, boxes[number], drawing.colour_of(int(labels[number])))
        # the stops begin with the first reference, where there is one
        start, end = stops[max(number - (references is None), 0)], centres[number]
        if references is not None:
            drawing.draw_point(one, references[number, :2], "+", "white", 9)
        if window is not None:
            drawing.show(one, trace, centres, window)
        _arrow(one, start, end, "white")
        said = f"layer {number}: {trace.class_name(int(labels[number]))} {best[number]:.2f}"
        if labels[number] != prediction.label:
            said += f" ({prediction.name} {own[number]:.2f})"
        parts = []
        if number > 0 or references is not None:
            parts.append(f"centre moved by {np.linalg.norm(end - start):.1f} pixels")
        if not last:
            overlap = box_iou(*(torch.from_numpy(boxes[[which]]) for which in (number, -1)))
            parts.append(f"IoU {float(overlap):.2f} with the last box")
        drawing.caption(one, "\n".join([said, ", ".join(parts)]))

    crosses = [] if references is None else [drawing.mark("+", "reference point of the layer")]
    drawing.show_key(figure, [drawing.mark("", "box of the last layer", "0.6", linestyle="--"), *crosses])
    drawing.headline(figure, drawing.told(prediction, image), "the query's box after every layer of the decoder")
    return Drawing(figure, numbers)


def draw_queries(trace: AttentionTrace, confidence: float = 0.5, *, image: str = "") -> Drawing:
    """Every query's centre through the layers, joined by arrows: coloured by class, as large as its score.

    Circles are first references, of detectors that have them. Queries whose best score at the last layer is below
    `confidence` are grey.

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
    last = len(centres) - 1
    for group, over, width, alpha in ((np.flatnonzero(~sure), 2, 0.0016, 0.45), (np.flatnonzero(sure), 3, 0.0028, 0.9)):
        colours: Any = [drawing.colour_of(int(label)) for label in labels[-1, group]] if over == 3 else _REST
        if trace.references:
            hollow: dict[str, Any] = {"facecolors": "none", "linewidths": 0.7, "path_effects": drawing.outlined(0.7)}
            axes.scatter(*path[0, group].T, s=16, edgecolors=colours, zorder=over, **hollow)
        arrow: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "headwidth": 4.5, "width": width}
        for start, end in pairwise(path[:, group]):
            axes.quiver(*start.T, *(end - start).T, color=colours, alpha=alpha, zorder=over, **arrow)
        for layer, places in enumerate(centres[:, group]):
            sizes = (90 if layer == last else 40) * best[layer, group] + 2
            edge: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.5} if layer == last else {"alpha": 0.6}
            axes.scatter(*places.T, s=sizes, color=colours, zorder=over + 0.5, **edge)
    found = sorted(set(labels[-1, sure].tolist()))
    handles = [drawing.mark("o", trace.class_name(label), drawing.colour_of(label)) for label in found]
    handles.append(drawing.mark("o", f"below {confidence:.2g}", _REST))
    if trace.references:
        handles.append(drawing.mark("o", "first reference", markerfacecolor="none"))
    handles += [drawing.mark("o", f"score {score:g}", markersize=(90 * score + 2) ** 0.5) for score in (0.25, 0.5, 1)]
    drawing.show_key(figure, handles)
    what = f"box centres of {len(sure)} queries through {len(centres)} decoder layers"
    drawing.headline(figure, image, f"{what}; {sure.sum()} of them sure enough")
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
